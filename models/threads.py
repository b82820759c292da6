"""Torch and BLAS with one thread, for work that is many operations on small tensors.

Torch's threads (OpenMP) wait for each other after every operation. On a few hundred numbers the waiting costs
what the second thread saves; and where another process has a core, every wait is until the scheduler comes
round to it. And sums are added up in another order by another number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from threadpoolctl import ThreadpoolController


@contextmanager
def one_thread() -> Iterator[None]:
    """A context, or a decorator, in which torch and numpy have one thread: the same bits on however many
    cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _pools().limit(limits=1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(threads)


@cache
def _pools() -> ThreadpoolController:
    """The libraries that this process has loaded; numpy's is one of them from the start."""
    return ThreadpoolController()
