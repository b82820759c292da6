"""One child process of the embedded stack: started on a leash, restarted when it dies, ended for good."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

log = logging.getLogger("tomotrain.stack")

GRACE_S = 5.0
"""How long a child may take to end by itself; a job that it was running goes on in the next run."""
FIRST_PAUSE_S, LONGEST_PAUSE_S, HEALTHY_S = 0.2, 30.0, 30.0
LOG_BYTES = 10 << 20

_LEASH = Path(__file__).with_name("leash.py")


@dataclass(frozen=True)
class Command:
    """What to run: its name in logs, its arguments, variables added to the environment, open sockets."""

    name: str
    arguments: Sequence[str]
    environment: Mapping[str, str]
    sockets: tuple[int, ...] = ()


@dataclass
class Child:
    """A command on its leash, as it runs or waits for its next start."""

    command: Command
    folder: Path
    lock: int
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    deaths: int = 0
    not_before: float = field(default=0.0)

    def start(self) -> None:
        """Start it in a session of its own."""
        command = [sys.executable, "-I", "-S", str(_LEASH), str(GRACE_S), *self.command.arguments]
        environment = {
            **self.command.environment,
            "LEASH_PASS_FDS": " ".join(map(str, self.command.sockets)),
        }
        with self._log() as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=environment,
                cwd=self.folder,
                start_new_session=True,
                pass_fds=(*self.command.sockets, self.lock),
            )
        self.started_at = time.monotonic()

    def tend(self) -> None:
        """Start it again when it has died, after a pause that grows while it keeps dying."""
        now = time.monotonic()
        if self.process is not None and self.process.poll() is not None:
            self._bury()
            self.deaths = 1 if now - self.started_at > HEALTHY_S else self.deaths + 1
            pause = min(FIRST_PAUSE_S * 2 ** (self.deaths - 1), LONGEST_PAUSE_S)
            self.not_before = now + pause
            log.warning("%s died; starting it again in %.1f s", self.command.name, pause)
        if self.process is None and now >= self.not_before:
            self.start()

    def stop(self) -> None:
        """Let it end within the grace; returns when nothing of it is left."""
        if self.process is None:
            return
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(GRACE_S + 2.0)
        except subprocess.TimeoutExpired:
            log.warning("%s does not end; killing it", self.command.name)
        self._bury()

    def last_words(self, lines: int = 15) -> str:
        """The end of its log."""
        text = self._log_path.read_text("utf-8", "replace") if self._log_path.is_file() else ""
        return "\n".join(text.splitlines()[-lines:])

    def _bury(self) -> None:
        """Kill whatever is left of its process group, and forget it."""
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.close()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None

    @property
    def _log_path(self) -> Path:
        return self.folder / "logs" / f"{self.command.name}.log"

    def _log(self) -> IO[bytes]:
        path = self._log_path
        if path.is_file() and path.stat().st_size > LOG_BYTES:
            path.replace(path.with_suffix(".log.1"))
        return path.open("ab")
