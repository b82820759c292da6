"""Where a worker computes."""

from __future__ import annotations


def resolve_device(wanted: str) -> str:
    """`auto` becomes `cuda` where torch finds one, else `cpu`; any other name is taken as it is.

    To be called in the process that runs the jobs: CUDA does not survive a fork.
    """
    if wanted != "auto":
        return wanted
    import torch  # noqa: PLC0415 - takes a second, and only the process that computes needs it

    return "cuda" if torch.cuda.is_available() else "cpu"
