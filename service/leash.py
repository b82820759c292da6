"""Runs one command for as long as its parent lives, and leaves nothing of it behind.

    python -I -S leash.py GRACE_SECONDS COMMAND [ARGUMENT ...]

Standard input is a pipe that the parent holds open: when the parent closes it, or dies in any way, the
command gets SIGTERM, and after the grace its whole process group gets SIGKILL (a Celery pool's children
included). When the command ends by itself, what it left in the group is killed, too. The parent starts
this in a session of its own. It imports the standard library alone and nothing of this package, so that
it starts in a few milliseconds and stays small.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time


def main() -> None:
    """Start the command and end with it."""
    grace_s, command = float(sys.argv[1]), sys.argv[2:]
    inherited = [int(number) for number in os.environ.pop("LEASH_PASS_FDS", "").split()]
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=inherited)
    threading.Thread(target=_follow_parent, args=(child, grace_s), daemon=True).start()
    status = child.wait()
    print(f"{command[0]} ended with status {status}", file=sys.stderr, flush=True)
    os.killpg(0, signal.SIGKILL)


def _follow_parent(child: subprocess.Popen[bytes], grace_s: float) -> None:
    sys.stdin.buffer.read()
    child.terminate()
    time.sleep(grace_s)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
