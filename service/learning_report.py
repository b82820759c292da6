"""What jobs on models came to, as tables for people. Each ends with its notice."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from service.schemas import JobView
from service.terminal import pairs, words

METRICS = {
    "rmse": "RMSE",
    "mae": "MAE",
    "r2": "R2",
    "pinball": "pinball loss",
    "mlll": "mLLL",
    "log_loss": "log loss",
    "accuracy": "accuracy",
    "auc": "AUC",
}
"""What to call the metrics, in the order of columns."""


def training_tables(job: JobView) -> list[Table]:
    """What was trained, and how it did against what else was tried."""
    result = job.result or {}
    return [pairs(f"Model {job.id}", training_rows(result)), _compared(result)]


def training_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Pairs of a name and a value in words."""
    unit = result["target_unit"]
    return [
        ("target", f"{result['target_name']}{f' ({unit})' if unit else ''}: {_asked(result)}"),
        ("learnt from", _counts(result)),
        ("covariates", ", ".join(result["covariates"]) or "none"),
        ("regressor", f"{result['regressor']}, {result['model_parameters']:,} numbers"),
        *(("chosen because", reason) for reason in result["reasons"]),
        *(("interval", _width(each, unit)) for each in result["intervals"]),
        ("time", f"{result['seconds']:.1f} s"),
        *(("careful", warning["text"]) for warning in result["warnings"]),
        ("notice", result["notice"]),
    ]


def prediction_table(job: JobView) -> Table:
    """An answer, and how far to trust it."""
    return pairs(f"Prediction {job.id}", prediction_rows(job.result or {}))


def prediction_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Pairs of a name and a value in words."""
    unit = f" {result['target_unit']}" if result["target_unit"] else ""
    return [
        (result["target_name"], _answer(result, unit)),
        *((f"{each['level']:.0%} interval", _between(each, unit)) for each in result["intervals"]),
        *((f"quantile {each['level']:g}", f"{each['value']:.4g}{unit}") for each in result["quantiles"]),
        *((f"probability of {each['name']}", f"{each['value']:.1%}") for each in result["probabilities"]),
        ("like the training's", result["verdict"]),
        *(("careful", warning["text"]) for warning in result["warnings"]),
        ("looked at", _looked_at(result)),
        ("time", f"{result['seconds']:.2f} s"),
        ("model", f"{result['model']} ({result['regressor']})"),
        ("notice", result["notice"]),
    ]


def evaluation_tables(job: JobView) -> list[Table]:
    """What a model is worth."""
    result = job.result or {}
    rows = [
        ("model", f"{result['model']} ({result['regressor']})"),
        ("asked about", _counts(result)),
        *((METRICS.get(name, name), _metric(metric)) for name, metric in result["metrics"].items()),
        *(("interval", _coverage(each)) for each in result["coverage"]),
        *(("careful", warning["text"]) for warning in result["warnings"]),
        ("notice", result["notice"]),
    ]
    return [pairs(f"Evaluation {job.id}", rows)]


def compressed_model_tables(job: JobView) -> list[Table]:
    """What a model was made smaller to, and what that changes of its answers."""
    result = job.result or {}
    return [pairs(f"Model {job.id}", compressed_model_rows(result)), _changed(result)]


def compressed_model_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Pairs of a name and a value in words."""
    unit = f" {result['target_unit']}" if result["target_unit"] else ""
    agreement, latency = result["agreement"], result["latency"]
    return [
        ("made of", f"{result['model']} ({result['regressor']})"),
        ("wanted", ", ".join([result["method"], *(f"{n} {v:g}" for n, v in result["goal"].items())])),
        ("parameters", f"{_became(result['parameters'])} (PCR {result['pcr']:.4g})"),
        ("multiplications", f"{_became(result['macs'])} (FCR {result['fcr']:.4g}, {_executed(result)})"),
        ("file", f"{_became(result['bytes'])} bytes"),
        *(
            (f"time, {name}", _milliseconds(latency, key))
            for key, name in (("p50_s", "median"), ("p95_s", "95%"))
        ),
        ("layers", _layers(result)),
        ("largest change", f"{agreement['largest_change']:.4g}{unit}, of any answer"),
        ("agreement", _limits(agreement, unit)),
        *(("interval", _width(each, result["target_unit"])) for each in result["intervals"]),
        ("promise", result["guarantee"]),
        ("made on", _counts(result["made_on"])),
        ("judged by", _counts(result["judged_on"])),
        *(("careful", warning["text"]) for warning in result["warnings"]),
        ("notice", result["notice"]),
    ]


def _changed(result: dict[str, Any]) -> Table:
    """The metrics of both models."""
    shown = Table(title="On the rows that judge (95% intervals)", title_justify="left", expand=False)
    shown.add_column("metric", style="bold", no_wrap=True)
    for name in ("before", "after", "difference"):
        shown.add_column(name, justify="right")
    for name, each in result["metrics"].items():
        values = (each[which] for which in ("before", "after", "difference"))
        shown.add_row(words(METRICS.get(name, name)), *map(_metric, values))
    return shown


def _became(sizes: dict[str, int]) -> str:
    return f"{sizes['before']:,} -> {sizes['after']:,}"


def _executed(result: dict[str, Any]) -> str:
    return f"{result['fcr_executed']:.4g} as executed"


def _milliseconds(latency: dict[str, dict[str, float]], key: str) -> str:
    before, after = (1000 * latency[when][key] for when in ("before", "after"))
    return f"{before:.4g} -> {after:.4g} ms for a scan that is read"


def _layers(result: dict[str, Any]) -> str:
    return (
        f"{result['layers_changed']} changed, {result['layers_left']} left; largest error of a kernel "
        f"{result['largest_layer_error']:.3g}"
    )


def _limits(agreement: dict[str, Any], unit: str) -> str:
    limits = f"{agreement['lower']:.4g} to {agreement['upper']:.4g}{unit}"
    others = "" if agreement["other_classes"] is None else f"; {agreement['other_classes']:,} other classes"
    return f"{limits}, mean {agreement['mean']:.4g} (limits of the {agreement['of']}){others}"


def _compared(result: dict[str, Any]) -> Table:
    """All that was tried on the same folds, the chosen one first."""
    tried = result["compared"]
    names = [name for name in METRICS if any(name in each["metrics"] for each in tried)]
    title = f"On scans not learnt from ({result['folds']} folds by patient; 95% intervals)"
    shown = Table(title=title, title_justify="left", expand=False)
    shown.add_column("regressor", style="bold", no_wrap=True)
    for name in names:
        shown.add_column(METRICS[name], justify="right")
    for each in tried:
        shown.add_row(words(each["regressor"]), *(_metric(each["metrics"].get(name)) for name in names))
    return shown


def _asked(result: dict[str, Any]) -> str:
    if result["task"] == "classes":
        return f"one of {', '.join(result['classes'])}"
    return {"mean": "its mean", "quantiles": "its quantiles"}[result["task"]]


def _counts(result: dict[str, Any]) -> str:
    return f"{result['rows']:,} rows, {result['scans']:,} scans, {result['patients']:,} patients"


def _width(interval: dict[str, Any], unit: str) -> str:
    """What an answer is widened by, or why it is not."""
    if interval["threshold"] is None:
        return f"none at {interval['level']:.0%}: that takes {interval['needed']:,} patients"
    width = f"{interval['threshold']:.4g}{f' {unit}' if unit else ''}"
    return f"{interval['level']:.0%}: the answer, and {width} to both sides"


def _answer(result: dict[str, Any], unit: str) -> str:
    return f"{result['class_name']}" if result["value"] is None else f"{result['value']:.4g}{unit}"


def _between(interval: dict[str, Any], unit: str) -> str:
    if interval["low"] is None:
        return "unknown: the model learnt from too few patients for it"
    return f"{interval['low']:.4g} to {interval['high']:.4g}{unit}"


def _looked_at(result: dict[str, Any]) -> str:
    return (
        f"{result['voxels']:,} voxels; {result['share_read']:.2%} of the scan read"
        f" in {result['cubes_read']:,} boxes"
    )


def _coverage(each: dict[str, Any]) -> str:
    return f"{each['observed']:.1%} of the truths lie in the {each['level']:.0%} interval"


def _metric(metric: dict[str, Any] | None) -> str:
    """A value with its interval."""
    if metric is None or metric["value"] is None:
        return "-"
    if metric["low"] is None:
        return f"{metric['value']:.3g}"
    return f"{metric['value']:.3g} ({metric['low']:.3g} to {metric['high']:.3g})"
