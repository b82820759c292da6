"""The libraries that are compared with, each called as its users call it (papers/cpic.md, section 3).

All of them run in float64 on one thread, and look at the same `Probe`. tntorch prints a notice about maxvolpy
(which does not build on Python 3.11 and newer), which is swallowed.

    tntorch 1.1.2 (LGPL)    cross(..., function_arg="matrix", ranks_tt=r, max_iter=k, eps=1e-6,
                                  detach_evaluations=True, suppress_warnings=True)
    teneva 0.14.11 (MIT)    cross(f, rand(shape, r, seed), nswp=k, dr_min=0, dr_max=0[, cache={}])
    torchTT 0.5.0 (MIT)     interpolate.dmrg_cross(f, shape, eps=1e-6, nswp=3, rmax=r, kick=2)
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.fields import Probe
from models.tt.train import TensorTrain

PEERS = {"tntorch": "1.1.2", "teneva": "0.14.11", "torchTT": "0.5.0"}


def missing(peer: str) -> str | None:
    """Why a peer takes no part; None if it does."""
    try:
        found = version(peer)
    except PackageNotFoundError:
        return f"{peer} is not installed"
    return None if found == PEERS[peer] else f"{peer} {found} is installed, {PEERS[peer]} is meant"


@contextmanager
def float64(seed: int) -> Iterator[None]:
    """Torch's default type and both random generators set for a peer; its notices swallowed."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(seed)
    np.random.seed(seed)  # the generator that tntorch and torchTT draw from
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        torch.set_default_dtype(before)


def tntorch_cross(probe: Probe, modes: Sequence[int], rank: int, iterations: int, seed: int) -> TensorTrain:
    """Fixed ranks, as C-PIC calls it; 1,000 of its evaluations are its own validation set."""
    import tntorch

    with float64(seed):
        train = tntorch.cross(
            function=lambda indices: torch.from_numpy(probe.indices(indices.numpy())),
            domain=[torch.arange(n) for n in modes],
            function_arg="matrix",
            ranks_tt=rank,
            max_iter=iterations,
            eps=1e-6,
            detach_evaluations=True,
            suppress_warnings=True,
            verbose=False,
        )
    return TensorTrain(tuple(train.cores))


def teneva_cross(
    probe: Probe, modes: Sequence[int], rank: int, sweeps: int, seed: int, *, cached: bool = False
) -> TensorTrain:
    """Fixed ranks; with `cached` it remembers what it evaluated, in a dictionary."""
    import teneva

    train = teneva.cross(
        probe.indices,
        teneva.rand(list(modes), rank, seed=seed),
        nswp=sweeps,
        dr_min=0,
        dr_max=0,
        cache={} if cached else None,
    )
    return TensorTrain(tuple(torch.from_numpy(np.ascontiguousarray(core)) for core in train))


def torchtt_cross(probe: Probe, modes: Sequence[int], rank: int, sweeps: int, seed: int) -> TensorTrain:
    """Two-site (DMRG) cross; its ranks may exceed the cap by its kick."""
    import torchtt

    with float64(seed):
        train = torchtt.interpolate.dmrg_cross(
            lambda indices: torch.from_numpy(probe.indices(indices.numpy())),
            list(modes),
            eps=1e-6,
            nswp=sweeps,
            rmax=rank,
            kick=2,
        )
    return TensorTrain(tuple(train.cores))


@dataclass(frozen=True)
class Adaptive:
    """A train, the validation error that its maker reports, and what it looked at."""

    train: TensorTrain
    reported_error: float
    evaluations: int


def tntorch_adaptive(function: Callable[[Tensor], Tensor], modes: Sequence[int], seed: int) -> Adaptive:
    """Growing ranks: kickrank 3, rmax 60, eps 1e-8."""
    import tntorch

    with float64(seed):
        train, info = tntorch.cross(
            function=function,
            domain=[torch.arange(n) for n in modes],
            function_arg="matrix",
            kickrank=3,
            rmax=60,
            eps=1e-8,
            detach_evaluations=True,
            suppress_warnings=True,
            verbose=False,
            return_info=True,
        )
    return Adaptive(TensorTrain(tuple(train.cores)), float(info["val_eps"]), info["nsamples"] + 1000)


def tntorch_gradient(
    function: Callable[[Tensor, Tensor], Tensor], grid: Tensor, dimensions: int, rank: int, seed: int
) -> float:
    """d/dtheta <T, T> at theta = 1, T = cross_forward of `function(points, theta)` on its own index sets."""
    import tntorch

    with float64(seed):
        theta = torch.tensor(1.0, requires_grad=True)
        domain = [grid] * dimensions
        _, info = tntorch.cross(
            function=lambda points: function(points, theta),
            domain=domain,
            function_arg="matrix",
            ranks_tt=rank,
            max_iter=5,
            eps=0,
            detach_evaluations=True,
            suppress_warnings=True,
            verbose=False,
            return_info=True,
        )
        train = tntorch.cross_forward(
            info, function=lambda points: function(points, theta), domain=domain, function_arg="matrix"
        )
        (slope,) = torch.autograd.grad(tntorch.dot(train, train), theta)
    return float(slope)


def tntorch_stacks(trains: Sequence[TensorTrain]) -> list[Any]:
    """Each train as tntorch's, with a first mode of 1 to be concatenated along."""
    import tntorch

    return [tntorch.Tensor([torch.ones(1, 1, 1, dtype=torch.float64), *train.cores]) for train in trains]


def tntorch_reduce(stacks: Sequence[Any], rank: int) -> TensorTrain:
    """All trains along a first mode, every bond truncated to `rank`: C-PIC's feature projection."""
    import tntorch

    with float64(0):
        stack = tntorch.reduce(stacks, tntorch.cat, rmax=rank, algorithm="eig", dim=0)
    return TensorTrain(tuple(stack.cores))
