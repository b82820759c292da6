"""Orthonormal frames, forward and back, against others'; a layer's step against dense.

CPU milliseconds on one thread: medians over TURNS of CALLS each, taken in turns with the others, after a call
that is not counted; of one call where it takes over SLOW seconds. torch-householder takes part where it is
installed (`pip install --no-build-isolation --no-deps torch-householder==1.0.1` compiles it).

    speedup_512x64 ...        the time of torch-householder over ours
    over_torch_linalg_...     the time of torch.linalg.householder_product over ours
    peers                     who took part
    step_over_dense_sttp ...  one step (forward and back, the parameters' gradients) of a 3x3 convolution
                              512 -> 512, r = 64, on 8 maps of 8x8, over that of the dense layer
    generation_ms_sttp ...    all weights of WRN-16-8, r = 64, forward and back
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.sttp_counts import wide_resnet
from benchmarks.targets import Target, judged, number, show_targets
from models.sttp.apply import SpectralConfig, spectral_
from models.sttp.frames import Frame, frame
from models.sttp.parametrizations import NEAR
from models.threads import one_thread

TURNS, CALLS, SLOW = 5, 5, 2.0
HOUSEHOLDER, LINALG = "torch-householder", "torch.linalg"
RANK = 64
FRAMES = {"512x64": (1, 512, 64), "4608x64": (1, 4608, 64), "24x128x64": (24, 128, 64)}
TARGETS = (
    Target("speedup_512x64", 4, at_least=True),
    Target("speedup_4608x64", 7, at_least=True),
    Target("speedup_24x128x64", 10, at_least=True),
    Target("step_over_dense_svdp", 0.6),
    Target("step_over_dense_sttp", 0.6),
)
CASES = ("frames", "layer", "generation")


@one_thread()
def run(only: Sequence[str] | None = None) -> dict[str, Any]:
    """All cases, or those of these names."""
    if unknown := sorted(set(only or ()) - set(CASES)):
        raise SystemExit(f"no case {', '.join(unknown)}: there are {', '.join(CASES)}")
    torch.manual_seed(0)
    cases = only or CASES
    rows = {name: frame_times(*size) for name, size in FRAMES.items()} if "frames" in cases else {}
    keys: dict[str, Any] = {
        f"{start}_{name}": row[peer] / row["ours"]
        for start, peer in (("speedup", HOUSEHOLDER), ("over_torch_linalg", LINALG))
        for name, row in rows.items()
        if peer in row
    }
    peers = sorted({peer for row in rows.values() for peer in row} - {"ours"})
    layers = layer_times() if "layer" in cases else {}
    if layers:
        keys |= {f"step_over_dense_{name}": layers[name] / layers["dense"] for name in ("svdp", "sttp")}
    if "generation" in cases:
        keys |= {f"generation_ms_{method}": generation(method) for method in ("svdp", "sttp")}
    return {**keys, "peers": peers, "frames_ms": rows, "layer_ms": layers, "targets": judged(keys, TARGETS)}


def frame_times(count: int, rows: int, columns: int) -> dict[str, float]:
    """Milliseconds of each way to make `count` frames near the identity, forward and back."""
    shape = Frame(rows, columns)
    packed = (NEAR * torch.randn(count, shape.parameters)).requires_grad_()
    vectors = torch.eye(rows, columns) + NEAR * torch.randn(count, rows, columns).tril(-1)
    vectors.requires_grad_()
    toward = torch.randn(count, rows, columns)
    works = {
        "ours": lambda: back(frame(packed, shape), toward, packed),
        LINALG: lambda: back(householder_product(vectors), toward, vectors),
    }
    if find_spec("torch_householder"):
        import torch_householder

        official = torch_householder.torch_householder_orgqr
        works[HOUSEHOLDER] = lambda: back(official(vectors), toward, vectors)
    return milliseconds(works)


def householder_product(vectors: Tensor) -> Tensor:
    """The frame of reflectors with ones on their diagonal."""
    made: Tensor = torch.linalg.householder_product(vectors, 2 / vectors.square().sum(dim=-2))
    return made


def back(made: Tensor, toward: Tensor, entries: Tensor) -> None:
    """The gradient by the entries of a loss whose gradient by the frames is `toward`."""
    torch.autograd.grad(made, entries, toward)


def layer_times() -> dict[str, float]:
    """Milliseconds of a layer's step: dense, and with each of the two parametrizations."""
    x = torch.randn(8, 512, 8, 8)
    layers = {"dense": convolution()} | {
        method: spectral(convolution(), method) for method in ("svdp", "sttp")
    }
    return milliseconds({name: partial(step, layer, x) for name, layer in layers.items()})


def convolution() -> nn.Module:
    """512 -> 512, 3x3."""
    return nn.Conv2d(512, 512, 3, padding=1)


def spectral(model: nn.Module, method: str) -> nn.Module:
    """The model with fresh weights of rank RANK."""
    return spectral_(model, SpectralConfig(method, rank=RANK, start="identity"))


def step(layer: nn.Module, x: Tensor) -> None:
    """Forward, and the gradients of the parameters."""
    torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))


def generation(method: str) -> float:
    """Milliseconds for all weights of WRN-16-8 and their gradients."""
    shapes, _ = wide_resnet(16, 8)
    layers = [
        nn.Conv2d(shape[1], shape[0], shape[2], bias=False)
        if len(shape) > 2
        else nn.Linear(shape[1], shape[0], bias=False)
        for shape in shapes
    ]
    for layer in layers:
        spectral(layer, method)
    entries = [entry for layer in layers for entry in layer.parameters() if entry.numel()]

    def weights_and_gradients() -> object:
        return torch.autograd.grad([layer.weight.square().sum() for layer in layers], entries)

    return milliseconds({method: weights_and_gradients})[method]


def milliseconds(works: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Of the processor, for a call of each, measured in turns."""
    first = {name: seconds(work) for name, work in works.items()}
    taken: dict[str, list[float]] = {name: [] for name, each in first.items() if each <= SLOW}
    for _ in range(TURNS):
        for name, times in taken.items():
            works[name]()
            times += [seconds(works[name]) for _ in range(CALLS)]
    return {name: 1e3 * statistics.median(taken.get(name, [each])) for name, each in first.items()}


def seconds(work: Callable[[], object]) -> float:
    """Of the processor."""
    start = time.process_time()
    work()
    return time.process_time() - start


def show(result: dict[str, Any]) -> None:
    """A line for each frame, layer and network."""
    for title, rows in (("frame", result["frames_ms"]), ("step", {"512->512": result["layer_ms"]})):
        for name, row in rows.items():
            print(
                f"{title:<8}{name:<12}" + "".join(f"{peer:>20} {number(ms)} ms" for peer, ms in row.items())
            )
    for method in ("svdp", "sttp"):
        if (key := f"generation_ms_{method}") in result:
            print(f"{'weights':<8}{'WRN-16-8':<12}{method:>20} {number(result[key])} ms")
    show_targets(result["targets"])
