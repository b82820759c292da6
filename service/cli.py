"""The command `tomotrain`. Answers go to standard output, everything else to standard error."""

from __future__ import annotations

import logging
import signal
import sys
from types import FrameType
from typing import NoReturn

import typer

from service.client import ServiceProblem, ServiceUnreachable
from service.cohort_table import BadTable
from service.commands.analyze import analyze
from service.commands.audit import audit
from service.commands.backup import backup, restore
from service.commands.common import BadOption
from service.commands.compress import compress
from service.commands.compress_model import compress_model
from service.commands.demo import demo
from service.commands.doctor import doctor
from service.commands.evaluate import evaluate
from service.commands.export import export
from service.commands.gc import gc
from service.commands.keys import keys
from service.commands.predict import predict
from service.commands.recipes import recipes
from service.commands.restore import complete, denoise
from service.commands.submit import submit
from service.commands.train import train
from service.commands.up import up
from service.commands.upload import upload
from service.fetching import FetchFailed
from service.packing import NothingToSend
from service.stack import StackError
from service.terminal import words
from storage.errors import StorageError

BAD_INPUT, FAILED = 2, 1

COMMANDS = (
    (up, "Run broker, workers, API and dashboard until Ctrl-C."),
    (upload, "Send scans in parts, which a lost connection does not undo."),
    (analyze, "Send a scan and print what was found."),
    (compress, "Make a compressed volume of a scan and print what was lost."),
    (export, "Write a volume as NIfTI or as a zip of OME-Zarr."),
    (denoise, "Make a volume of a scan without its noise."),
    (complete, "Make a volume of a scan with its gaps filled."),
    (recipes, "List what a model can be made by, with all settings."),
    (train, "Make a model of a cohort and print what it is worth."),
    (predict, "Ask a model about a scan."),
    (evaluate, "Judge a model on scans whose answers are known."),
    (compress_model, "Make a smaller model of a model and print what that changes."),
    (submit, "Submit the jobs of a file, and wait for them with --wait."),
    (doctor, "Look at everything that the service needs, and say what cures it."),
    (backup, "Copy everything that persists while the service runs; or --verify a copy."),
    (restore, "Make a data root of a backup."),
    (gc, "Remove files that belong to nobody."),
    (demo, "Try it on a real scan; leaves nothing behind."),
)

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Health indicators from medical volumes too big for memory, by tensor trains. For research.",
)
for command, short_help in COMMANDS:
    app.command(short_help=short_help)(command)
app.add_typer(audit, name="audit", short_help="Prove the audit log, or take a copy of it.")
app.add_typer(keys, name="keys", short_help="Make, list and end API keys; make projects.")


def main() -> None:
    """Entry point: run the command; an error is one line on standard error."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    logging.basicConfig(format="tomotrain: %(message)s", level=logging.WARNING)
    try:
        app()
    except ServiceProblem as error:
        _end(str(error), FAILED if error.problem.status >= 500 else BAD_INPUT)
    except FetchFailed as error:
        _end(str(error), FAILED)
    except (BadOption, BadTable, NothingToSend, ServiceUnreachable, StackError) as error:
        _end(str(error), BAD_INPUT)
    except StorageError as error:
        _end(str(error), FAILED if error.retryable else BAD_INPUT)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    """Leave by way of every `with`, so that nothing is left running."""
    sys.exit(128 + number)


def _end(message: str, status: int) -> NoReturn:
    print(f"tomotrain: {words(' '.join(message.split()))}", file=sys.stderr)
    sys.exit(status)
