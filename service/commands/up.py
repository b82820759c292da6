"""`tomotrain up`: the embedded stack until Ctrl-C."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated

import typer

from service.commands.common import DEFAULT_HOST, DEFAULT_PORT, DataRoot, data_root, errors
from service.settings import ServiceSettings
from service.stack import LOOPBACK, Stack
from service.terminal import words


def up(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = DEFAULT_HOST,
    port: Annotated[
        int, typer.Option(help="Port to listen on; 0 takes a free one.", max=65535)
    ] = DEFAULT_PORT,
    root: DataRoot = None,
) -> None:
    """Run the embedded stack, until Ctrl-C: broker, workers, API and dashboard."""
    folder = data_root(root)
    if host not in LOOPBACK and not ServiceSettings().authentication:
        errors.print(words(f"Careful: {host} can be reached by others, and nobody is asked who they are."))
    with ExitStack() as cleanup:
        with errors.status("Starting broker, workers and API"):
            stack = cleanup.enter_context(Stack(folder, host=host, port=port))
        errors.print(words(f"Ready: {stack.url} (data in {folder}; Ctrl-C stops it)"))
        if stack.key is not None:
            errors.print(words(f"Sign in: {stack.url}/#key={stack.key}"), soft_wrap=True)
        stack.wait()
