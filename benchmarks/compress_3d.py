"""A trained 3-D ResNet made small, and a plan for one of 63.5 M parameters.

`cohort`: the recipe `resnet3d` (WIDTH, DEPTH) learns *spread* at 32^3, 198 volumes of 22 people; 102 of 11
others judge. By the workflow of the job `compress-model`: a plan for a budget, factors, normalisations anew
on the scans of the training (no targets), one epoch at a tenth of the training's rate; the dense network
descends by the same epoch. `answers` is planned in the metric of the curvature that those scans give, as the
job does it; `rings by answers` is that without sums of terms, `kernels` by relative errors of kernels; `svd`
is this with plain SVDs alone, `svdp` the import into spectral weights; TensorLy-Torch's factorisations have
no fewer parameters than `answers`. Of the seeds of the training the first has all of these and every PCR of
CURVE, the others `answers` at the first PCR.

    pcr                     at the first PCR, the least of the seeds
    rmse_ratio              RMSE after recalibration and the epoch over the trained network's, the largest
    rmse_ratio_recalibrated the same without the epoch
    rmse_ratio_tuned_dense  after the epoch, over the dense network's after the same
    latency_ratio           processor time of a batch over the dense network's, medians in turn, the largest
    wins_MEASURE_KIND       how many layers became a KIND in all plans by that measure: ring3, ring4, ring5,
                            terms, svd_out (O against the rest), svd_in (I against the rest), svd_between

`plan`: `benchmarks.compress_3d_plan`, each plan in a process of its own, one thread.

    plan_seconds, plan_peak_mib   the largest: processor seconds, and the process' high-water mark
"""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.cohorts import spread
from benchmarks.compress_3d_plan import planned_alone
from benchmarks.kernel_peers import at_parameters, parameters
from benchmarks.targets import Target, judged, number, show_targets
from benchmarks.tltorch_peers import missing, tltorch_peers
from models.compression.budgets import BudgetConfig
from models.compression.curvature import Curvature, curvature
from models.compression.planning import BUDGET, Config, plan
from models.compression.plans import CompressionPlan, LayerPlan
from models.compression.recalibration import recalibrate_
from models.compression.reports import report
from models.learning.cohort import Cohort
from models.learning.task import Task
from models.regressors.compressed import batches_of, compressed_model, example_of, tuned
from models.regressors.network_model import NetworkModel
from models.regressors.resnet3d import ResNet3d, WholeSight
from models.sttp.apply import SpectralConfig
from models.threads import one_thread
from models.training import TrainingConfig, Watch
from workers.jobs.compress_model_schema import FINER

SIDE, COHORT_SEED, SEEDS = 32, 1, (0, 1)
WIDTH, DEPTH = 12, 18
TRAINING = TrainingConfig(epochs=20, batch=8, rate=1e-3, weight_decay=1e-3)
CURVE = (3.0, 4.0, 6.0, 10.0)
ANSWERS, RINGS, KERNELS = "answers", "rings by answers", "kernels"
REPEATS, TICK = 9, 1e-6
"""Of a latency, and the least that one is counted as, in seconds."""
CASES = ("cohort", "plan")
TARGETS = (
    Target("pcr", 3.0, at_least=True),
    Target("rmse_ratio", 1.05),
    Target("plan_seconds", 600),
    Target("plan_peak_mib", 4096),
)
TASK, CPU, WATCH = Task(), torch.device("cpu"), Watch()

Model = NetworkModel[WholeSight]
Row = dict[str, Any]


@one_thread()
def run(only: Sequence[str] | None = None) -> dict[str, Any]:
    """Both cases, or those named."""
    if unknown := sorted(set(only or ()) - set(CASES)):
        raise SystemExit(f"no case {', '.join(unknown)}: there are {', '.join(CASES)}")
    cases = only or CASES
    result: dict[str, Any] = {}
    keys: dict[str, float] = {}
    if "cohort" in cases:
        seeds = [of_seed(seed, *cohorts(), full=seed == SEEDS[0]) for seed in SEEDS]
        keys |= keys_of(seeds)
        result |= {"seeds": seeds, "peers": missing() or "TensorLy-Torch"}
    if "plan" in cases:
        plans = planned_alone()
        keys["plan_seconds"] = max(row["seconds"] for row in plans.values())
        keys["plan_peak_mib"] = max(row["peak_mib"] for row in plans.values())
        result["plans"] = plans
    return {**keys, **result, "targets": judged(keys, TARGETS)}


def cohorts() -> tuple[Cohort, Cohort]:
    """To learn from, and to judge by; of other people."""
    made = spread(SIDE, seed=COHORT_SEED).dense()
    return made.cohort().only(made.split.train), made.cohort().only(made.split.test)


@dataclass(frozen=True)
class Judge:
    """What a model is worth on people whom nobody had seen; `dense` is the trained one."""

    dense: Model
    training: Cohort
    test: Cohort
    seed: int

    def rmse(self, model: Model) -> float:
        """Of the answers."""
        return float(np.sqrt(np.mean((model.predict(self.test.inputs)[:, 0] - self.test.targets) ** 2)))

    def tuned(self, model: Model) -> Model:
        """After one epoch, as the job descends."""
        once = replace(TRAINING, epochs=1, rate=TRAINING.rate / FINER)
        return tuned(model, self.training, once, seed=self.seed, watch=WATCH)

    def row(self, small: Model, made: CompressionPlan | None = None) -> Row:
        """RMSE of a recalibrated model, before and after the epoch, and what it saves and changes."""
        after, deviation = self.tuned(small), self.dense.answers.deviation
        told = report(
            self.dense.network,
            after.network,
            next(batches_of(self.dense, self.test.inputs, TRAINING.batch)),
            self._batches(),
            lambda answers, targets: deviation * float((answers - targets).square().mean().sqrt()),
            plan=made,
            repeats=REPEATS,
        )
        assert told.change is not None
        assert told.metric is not None
        change = {key: deviation * getattr(told.change, key) for key in ("largest", "mean", "lower", "upper")}
        return {
            "pcr": told.pcr,
            "fcr": told.fcr,
            "bytes": told.bytes,
            "latency_ms": [1e3 * each.median for each in told.latency],
            "latency_ratio": told.latency[1].median / max(told.latency[0].median, TICK),
            "rmse_recalibrated": self.rmse(small),
            "rmse_tuned": self.rmse(after),
            "rmse_change_95": [told.metric.lower, told.metric.upper],
            "change": change,
        }

    def _batches(self) -> Iterator[tuple[Any, Tensor]]:
        """Rows to judge by, in the unit of the network."""
        targets = torch.from_numpy(self.dense.answers.scaled(self.test.targets)).float()[:, None]
        for batch, rows in zip(
            batches_of(self.dense, self.test.inputs, 1), range(len(self.test)), strict=True
        ):
            yield batch, targets[rows : rows + 1]


def of_seed(seed: int, training: Cohort, test: Cohort, *, full: bool) -> Row:
    """A network of one seed, and what is made of it."""
    recipe, start = ResNet3d(width=WIDTH, depth=DEPTH, training=TRAINING), time.process_time()
    dense = recipe.fit(training, TASK, seed=seed, device=CPU, watch=WATCH)
    seconds, judge = time.process_time() - start, Judge(dense, training, test, seed)
    found: Row = {
        "seed": seed,
        "parameters": parameters(dense.network),
        "fit_s": seconds,
        "rmse": judge.rmse(dense),
        "rmse_tuned": judge.rmse(judge.tuned(dense)),
        "target_sd": float(test.targets.std()),
    }
    start = time.process_time()
    bent = curvature(dense.network, batches_of(dense, training.inputs, TRAINING.batch))
    found["curvature_s"] = time.process_time() - start
    curve = CURVE if full else CURVE[:1]
    plans = {
        f"{ANSWERS} {pcr:g}": by_plan(judge, BudgetConfig(pcr=pcr, canonical=True), bent) for pcr in curve
    }
    if full:
        made = plans[f"{ANSWERS} {CURVE[0]:g}"][1]
        plans[f"{RINGS} {CURVE[0]:g}"] = by_plan(judge, BudgetConfig(pcr=CURVE[0]), bent)
        plans[f"{KERNELS} {CURVE[0]:g}"] = by_plan(judge, BudgetConfig(pcr=CURVE[0]))
        plans[f"svd {CURVE[0]:g}"] = by_plan(judge, BudgetConfig(pcr=CURVE[0], modes=()))
        plans[f"svdp {CURVE[0]:g}"] = by_plan(judge, spectral(made))
    found["ways"] = {name: row for name, (row, _) in plans.items()}
    if full:
        found["ways"] |= of_peers(judge, made)
    found["wins"] = {
        measure: wins([told for name, (_, told) in plans.items() if name.startswith(measure)])
        for measure in (ANSWERS, KERNELS)
    }
    return found


def by_plan(judge: Judge, config: Config, bent: Curvature | None = None) -> tuple[Row, CompressionPlan]:
    """Planned, compressed and recalibrated as the job does it, and judged."""
    dense, inputs, start = judge.dense, judge.training.inputs, time.process_time()
    made = plan(dense.network, example_of(dense, inputs), config, curvature=bent)
    seconds = time.process_time() - start
    small = compressed_model(dense, made, inputs, WATCH, batch=TRAINING.batch, curvature=bent)
    return {"plan_s": seconds, **judge.row(small, made)}, made


def spectral(like: CompressionPlan) -> SpectralConfig:
    """SVDP weights of the layers that a plan might change, of as many numbers together as it gives them."""
    numbers = sum(layer.after.parameters for layer in like.layers if is_open(layer))
    return SpectralConfig("svdp", parameters=numbers)


def is_open(layer: LayerPlan) -> bool:
    """Whether the search may change it."""
    return layer.form is not None or layer.reason == BUDGET


def of_peers(judge: Judge, like: CompressionPlan) -> Row:
    """TensorLy-Torch's, of the same layers, where it is installed."""
    if missing():
        return {}
    names = [layer.name for layer in like.layers if is_open(layer)]
    found = {}
    for name, peer in tltorch_peers().items():
        start = time.process_time()
        network = at_parameters(judge.dense.network, names, peer, like.parameters_after)
        seconds = time.process_time() - start
        recalibrate_(network, batches_of(judge.dense, judge.training.inputs, TRAINING.batch))
        small = replace(judge.dense, network=network)
        after = judge.tuned(replace(small, network=copy.deepcopy(network)))
        found[name] = {
            "plan_s": seconds,
            "pcr": like.parameters / parameters(network),
            "rmse_recalibrated": judge.rmse(small),
            "rmse_tuned": judge.rmse(after),
        }
    return found


def wins(plans: Sequence[CompressionPlan]) -> dict[str, int]:
    """How many layers became what."""
    forms = [form for made in plans for form in made.forms.values()]
    counts = Counter(kind(form.method, len(form.modes), len(form.late)) for form in forms)
    return dict(sorted(counts.items()))


def kind(method: str, modes: int, late: int) -> str:
    """Of a form of a 3-D kernel."""
    if method == "canonical":
        return "terms"
    if method != "low-rank":
        return f"{method}{modes}"
    return {0: "svd_out", 3: "svd_in"}.get(late, "svd_between")


def keys_of(seeds: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What is asked of all seeds, and what won in all of their plans."""
    first = f"{ANSWERS} {CURVE[0]:g}"
    rows = [(seed, seed["ways"][first]) for seed in seeds]
    keys = {
        "pcr": min(row["pcr"] for _, row in rows),
        "rmse_ratio": max(row["rmse_tuned"] / seed["rmse"] for seed, row in rows),
        "rmse_ratio_recalibrated": max(row["rmse_recalibrated"] / seed["rmse"] for seed, row in rows),
        "rmse_ratio_tuned_dense": max(row["rmse_tuned"] / seed["rmse_tuned"] for seed, row in rows),
        "latency_ratio": max(row["latency_ratio"] for _, row in rows),
    }
    for measure in (ANSWERS, KERNELS):
        total: Counter[str] = Counter()
        for seed in seeds:
            total.update(seed["wins"].get(measure, {}))
        keys |= {f"wins_{measure}_{name}": count for name, count in sorted(total.items())}
    return keys


COLUMNS = ("pcr", "fcr", "rmse_recalibrated", "rmse_tuned", "plan_s")


def show(result: dict[str, Any]) -> None:
    """A table for each seed, the plans, and the targets."""
    for seed in result.get("seeds", ()):
        print(
            f"\nseed {seed['seed']}: {seed['parameters']:,} parameters, RMSE {number(seed['rmse'])}, "
            f"after an epoch more {number(seed['rmse_tuned'])}"
        )
        print(f"{'':<20}" + "".join(f"{column:>19}" for column in COLUMNS))
        for name, row in seed["ways"].items():
            print(f"{name:<20}" + "".join(f"{number(row.get(column)):>19}" for column in COLUMNS))
        for measure, counts in seed["wins"].items():
            print(f"wins, {measure}: " + ", ".join(f"{name} {count}" for name, count in counts.items()))
    for name, row in result.get("plans", {}).items():
        print(
            f"{name:<18}{number(row['seconds']):>8} s{number(row['peak_mib']):>8} MiB, PCR "
            f"{number(row['pcr'])}, FCR {number(row['fcr'])}, {row['layers']} layers"
        )
    show_targets(result["targets"])
