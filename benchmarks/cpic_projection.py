"""The feature projection: ours (principal components by the Gram matrix) against tntorch's rounded stack.

24 trains (21 binary modes, rank 10) of a smooth family of fields, 64^3 voxels x 8 features, each made by
cross-approximation. C-PIC projects onto the r right-orthogonal trains of a stack that `tntorch.reduce` rounds
to rank r on every bond (`eig`, rmax 10). The truth comes from the dense tensors: their Gram matrix, centred
and not, and the largest share of energy that any 10 directions can capture.

`captured` is the share of the trains' energy in the 10 features, `gap` what it lacks to the optimum; centred
is about the mean train, as ours is and C-PIC's is not: the mean alone has most of the energy. For the rounded
stack both are given. `gram_error` compares <f_k, f_l> with the Gram matrix, relative, in the form that the
method projects. `time_ratio_tntorch_reduce` compares what makes the basis on either side: `Basis.of`, and
`reduce`; `time_ratio_with_features` has the features of all trains on our side too, and still `reduce` alone
on theirs. Medians over rounds in turn.

`gauge` is the relative change of the matrix of all features when matrices of condition 1,000 and their
inverses are put on every bond (`gauge_worst`: of any one train's features). Three things could move them, and
each is measured on its own: writing the cores anew rounds the tensors themselves (`gauge_tensor`, and
`gauge_floor` what that alone does to the features, by inner products in extended precision, for the worst
train; nothing can be better); inner products of badly conditioned cores round once more; and
`gauge_orthogonal` is with cores made right-orthogonal before their inner products are taken.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks import peers
from benchmarks.approximation import approximate
from benchmarks.fields import Probe, sigmoid_waves
from benchmarks.targets import Target, judged, show_targets
from models.cpic.projection import Basis
from models.tt.qtt import qtt_layout
from models.tt.rounding import right_orthogonal
from models.tt.train import TensorTrain, stacked

SIZE, FEATURES, TRAINS, RANK, ROUNDS = 64, 8, 24, 10, 7
CONDITION = 1e3
TARGETS = (
    Target("captured_gap", 1e-6),
    Target("time_ratio_tntorch_reduce", 0.1),
    Target("time_ratio_with_features", 0.1),
    Target("gauge", 1e-9),
    Target("gauge_worst", 1e-9),
)


Extended = NDArray[np.longdouble]


def run(*, size: int = SIZE, count: int = TRAINS, rounds: int = ROUNDS) -> dict[str, Any]:
    """Ours and, where tntorch is installed, its rounded stack."""
    torch.set_num_threads(1)
    trains = [family_member(size, member) for member in range(count)]
    batch = stacked(trains)
    gram = dense_gram(trains)
    reason = peers.missing("tntorch")
    ways: dict[str, Callable[[], Any]] = {
        "ours": lambda: Basis.of(batch, RANK),
        "ours, with features": lambda: Basis.of(batch, RANK).features(batch),
    }
    if reason is None:
        stacks = peers.tntorch_stacks(trains)
        ways["tntorch"] = lambda: peers.tntorch_reduce(stacks, RANK)
    answers, rows = in_turn(ways, rounds)
    rows["ours"] |= {"centred": quality(answers["ours"].features(batch), centred(gram))}
    result: dict[str, Any] = {
        "captured_gap": rows["ours"]["centred"]["gap"],
        **gauge_movement(answers["ours"], trains),
    }
    if reason is None:
        plain, about_mean = stack_features(answers["tntorch"], trains)
        rows["tntorch"] |= {"plain": quality(plain, gram), "centred": quality(about_mean, centred(gram))}
        ours, theirs = rows["ours"], rows["tntorch"]
        result["time_ratio_tntorch_reduce"] = ours["wall_s"] / theirs["wall_s"]
        result["cpu_ratio_tntorch_reduce"] = ours["cpu_s"] / theirs["cpu_s"]
        result["time_ratio_with_features"] = rows["ours, with features"]["wall_s"] / theirs["wall_s"]
        result["captured_gap_tntorch"] = theirs["plain"]["gap"]
    return {
        **result,
        "targets": judged(result, TARGETS),
        "optimum": optimum(gram),
        "optimum_centred": optimum(centred(gram)),
        "mean_share": float(gram.mean() / gram.diagonal().mean()),
        "skipped": {} if reason is None else {"tntorch": reason},
        "rows": rows,
    }


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    print(f"{'':<22}{'wall s':>10}{'CPU s':>10}{'':>10}{'captured':>12}{'gap':>12}{'gram_error':>12}")
    for name, row in result["rows"].items():
        print(f"{name:<22}{row['wall_s']:10.4f}{row['cpu_s']:10.4f}")
        for form in ("plain", "centred"):
            if form in row:
                cells = (
                    f"{row[form]['captured']:12.8f}{row[form]['gap']:12.2e}{row[form]['gram_error']:12.2e}"
                )
                print(f"{'':<42}{form:>10}{cells}")
    show_targets(result["targets"])
    print()
    for key, value in result.items():
        if key not in {"rows", "targets", "skipped"}:
            print(f"{key:<28}{value:.6g}")
    for reason in result["skipped"].values():
        print(f"skipped: {reason}")


def family_member(size: int, member: int) -> TensorTrain:
    """The train of one field, by cross-approximation."""
    probe = Probe(sigmoid_waves(size, FEATURES, member=member), qtt_layout((size,) * 3, FEATURES))
    return approximate(probe, RANK, 2, member).train


def in_turn(
    ways: dict[str, Callable[[], Any]], rounds: int
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What each way answers, and its median times; one round before is not counted."""
    answers = {name: way() for name, way in ways.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            way()
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    rows: dict[str, dict[str, Any]] = {}
    for name, pairs in times.items():
        walls, cpus = zip(*pairs, strict=True)
        rows[name] = {"wall_s": statistics.median(walls), "cpu_s": statistics.median(cpus)}
    return answers, rows


def dense_gram(trains: Sequence[TensorTrain]) -> Tensor:
    """<T_k, T_l> from all entries: no train algebra."""
    rows = torch.stack([train.full().flatten() for train in trains])
    return rows @ rows.T


def centred(gram: Tensor) -> Tensor:
    """H G H."""
    return gram - gram.mean(dim=0) - gram.mean(dim=1, keepdim=True) + gram.mean()


def optimum(gram: Tensor) -> float:
    """The largest share of the energy that RANK directions capture."""
    return float(torch.linalg.eigvalsh(gram)[-RANK:].sum() / gram.trace())


def quality(features: Tensor, gram: Tensor) -> dict[str, float]:
    """How much of a Gram matrix features (K, q) carry."""
    captured = float(features.square().sum() / gram.trace())
    gram_error = float(torch.linalg.norm(features @ features.T - gram) / torch.linalg.norm(gram))
    return {"captured": captured, "gap": optimum(gram) - captured, "gram_error": gram_error}


def stack_features(stack: TensorTrain, trains: Sequence[TensorTrain]) -> tuple[Tensor, Tensor]:
    """Inner products of trains, and of trains less their mean, with the stack's right-orthogonal trains."""
    first, *rest = right_orthogonal(stack).cores[1:]
    basis = [TensorTrain((first[j : j + 1], *rest)).full().flatten() for j in range(len(first))]
    rows = torch.stack([train.full().flatten() for train in trains])
    features = rows @ torch.stack(basis).T
    return features, features - features.mean(dim=0)


def gauge_movement(basis: Basis, trains: Sequence[TensorTrain]) -> dict[str, float]:
    """How far features move, relative, when cores are written in another gauge."""
    moved = [in_other_gauge(train, seed) for seed, train in enumerate(trains)]
    batch, rewritten = stacked(trains), stacked(moved)
    before = basis.features(batch)
    change = basis.features(rewritten) - before
    orthogonal = basis.features(stacked([right_orthogonal(train) for train in moved])) - before
    exact = extended_features(basis, rewritten) - extended_features(basis, batch)
    tensors = [
        float((a.full() - b.full()).norm() / b.full().norm()) for a, b in zip(moved, trains, strict=True)
    ]

    def worst(difference: Tensor) -> float:
        return float((difference.norm(dim=1) / before.norm(dim=1)).max())

    return {
        "gauge": float(change.norm() / before.norm()),
        "gauge_worst": worst(change),
        "gauge_orthogonal": worst(orthogonal),
        "gauge_floor": worst(torch.from_numpy(exact.astype(np.float64))),
        "gauge_tensor": max(tensors),
    }


def extended_features(basis: Basis, trains: TensorTrain) -> Extended:
    """The features of trains from inner products in extended precision (64 bits of fraction, on x86)."""
    anchors = [core.numpy().astype(np.longdouble) for core in basis.anchors.cores]
    cores = [core.numpy().astype(np.longdouble) for core in trains.cores]
    products = np.empty((trains.batch[0], basis.anchors.batch[0]), np.longdouble)
    for number, anchor in np.ndindex(*products.shape):
        environment = np.ones((1, 1), np.longdouble)
        for ours, theirs in zip(cores, anchors, strict=True):
            terms = [ours[number, :, i].T @ environment @ theirs[anchor, :, i] for i in range(ours.shape[2])]
            environment = np.sum(terms, axis=0)
        products[number, anchor] = environment[0, 0]
    mean, coefficients = basis.mean_products.numpy(), basis.coefficients.numpy()
    return np.asarray((products - mean) @ coefficients)


def in_other_gauge(train: TensorTrain, seed: int) -> TensorTrain:
    """C_k A_k and A_k^-1 C_{k+1} on every bond, with singular values of A_k from 1 to CONDITION."""
    generator = np.random.default_rng(seed)
    cores = list(train.cores)
    for bond, rank in enumerate(train.ranks):
        U, V = (np.linalg.qr(generator.normal(size=(rank, rank)))[0] for _ in range(2))
        values = np.geomspace(1, CONDITION, rank)
        cores[bond] = torch.einsum("anb,bc->anc", cores[bond], torch.from_numpy(U * values @ V))
        inverse = torch.from_numpy(V.T / values @ U.T)
        cores[bond + 1] = torch.einsum("ab,bnc->anc", inverse, cores[bond + 1])
    return TensorTrain(tuple(cores))
