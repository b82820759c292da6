"""Torch with one thread, for work that is many operations on small tensors.

Torch's threads (OpenMP) wait for each other after every operation. On a few hundred numbers the waiting costs
what the second thread saves; and where another process has a core, every wait is until the scheduler comes
round to it: what takes a third of a second has then taken half a minute (benchmarks/README.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """A context, or a decorator, in which torch has one thread: the same bits on however many cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
