"""Tables in Markdown, and numbers as they stand in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from benchmarks.results.asked import Answered
from benchmarks.results.runs import Told
from benchmarks.targets import number

COLUMNS = {
    "parameters": "parameters",
    "train_s": "training, s",
    "epoch_s": "an epoch, s",
    "fit_s": "fitting, s",
    "predict_s": "a scan, s",
    "memory_mib": "MiB",
    "voxels": "voxels of a scan",
}
"""Facts about regressors, and what they are called; a table has those that are known of one at least."""


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows under headings."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def regressors(case: Told) -> str:
    """What each regressor made of a case."""
    told = case["regressors"]
    known = [key for key in COLUMNS if any(key in facts for facts in told.values())]
    headings = ["regressor", "R2 [95 %]", "R2 of each seed", "RMSE [95 %]", "sd over seeds", "seeds"]
    rows = []
    for name, facts in told.items():
        spread = facts["r2"]["sd_of_seeds"]
        row = [name, between(facts["r2"], ".3f"), seeds(facts["r2"]), between(facts["rmse"], ".4g")]
        row += ["" if spread is None else f"{spread:.3f}", str(facts["seeds"])]
        rows.append(row + [_fact(facts.get(key)) for key in known])
    return table(headings + [COLUMNS[key] for key in known], rows)


def differences(told: Mapping[str, Told]) -> str:
    """By how much the R2 of one is above that of another, with its interval; empty for no pairs."""
    rows = [[gain["of"], gain["against"], between(gain, ".3f")] for gain in told.values()]
    return table(["R2 of", "less that of", "difference [95 %]"], rows) if rows else ""


def chosen(told: Mapping[str, Told]) -> str:
    """What was chosen by those who choose, cell by cell; empty where nobody does."""
    of = {name: facts["chosen"] for name, facts in told.items() if "chosen" in facts}
    return "; ".join(f"`{name}` took {', '.join(names)}" for name, names in of.items())


def targets(answers: Iterable[Answered]) -> str:
    """What was asked, of which run, and whether it holds."""
    words = {True: "holds", False: "**DOES NOT HOLD**", None: "asked, not yet measured"}
    rows = [
        [
            each.run,
            each.target.key,
            f"{'at least' if each.target.at_least else 'at most'} {number(each.target.limit)}",
            "" if each.measured is None else number(each.measured),
            words[each.holds] + ("; measured before the recipe changed" if each.stale else ""),
        ]
        for each in answers
    ]
    return table(["run", "figure", "asked", "measured", ""], rows)


def controls(r2: Mapping[str, Mapping[str, float]]) -> str:
    """R2 of each control, by cohort; those that a cohort has not are left out there."""
    names = list(dict.fromkeys(name for scores in r2.values() for name in scores))
    rows = [
        [name, *(f"{scores[name]:.3f}" if name in scores else "" for scores in r2.values())] for name in names
    ]
    return table(["R2 on other people", *r2], rows)


def by_size(sizes: Told) -> str:
    """Rows of figures by size and by who; sums that were only estimated stand in brackets."""
    rows = [(size, who, row) for size, of in sizes.items() for who, row in of.items()]
    keys = list(dict.fromkeys(key for _, _, row in rows for key in row if _is_figure(row[key])))
    return table(
        ["size", "", *keys],
        [[size, who, *(_estimated(row, key) for key in keys)] for size, who, row in rows],
    )


def coverage(cohorts: Sequence[Told]) -> str:
    """One row for each cohort, reader and level."""
    shares = ["nominal", "covered", "noise", "of 200"]
    headings = ["cohort", "read", *shares, "width", "constant", "CV+ covered", "CV+ width"]
    columns = ("split", "noise", "split_many", "constant", "cv_plus")
    rows = []
    for each in cohorts:
        for split, noise, many, constant, plus in zip(*(each[name] for name in columns), strict=True):
            told = [f"{of:.3f}" for of in (split["level"], split["coverage"], noise, many["coverage"])]
            widths = [f"{row['width']:.3g} {each['unit']}" for row in (split, constant, plus)]
            rows.append(
                [each["cohort"], each["reader"], *told, *widths[:2], f"{plus['coverage']:.3f}", widths[2]]
            )
    return table(headings, rows)


def rates(told: Told) -> str:
    """PSNR at each ratio, by scan and compressor; of those that lose nothing, their ratio."""
    ratios = [str(ratio) for ratio in told["ratios"]]
    rows = []
    for name, scan in told["scans"].items():
        for who, row in scan["compressors"].items():
            psnrs = [row["psnr_at"][ratio] for ratio in ratios]
            cells = ["" if psnr is None else f"{psnr:.2f}" for psnr in psnrs]
            exact = scan["lossless"].get(who)
            times = [f"{row[key]:.2f}" for key in ("encode_s", "decode_s")]
            rows.append([name, who, *cells, "" if exact is None else f"{exact:.2f}", *times])
    headings = [*(f"{ratio}:1" for ratio in ratios), "without loss", "encoding, s", "decoding, s"]
    return table(["scan", "compressor", *headings], rows)


def shares(scans: Told, keys: Sequence[str]) -> str:
    """The size and figures of each scan, and who wrote the best file."""
    rows = []
    for name, scan in scans.items():
        auto = scan.get("auto")
        chose = "" if auto is None else f"{auto['chose']} ({number(auto['psnr'])} dB)"
        size = f"{' x '.join(map(str, scan['shape']))}, {scan['dtype']}"
        rows.append([name, size, *(_fact(scan.get(key)) for key in keys), chose])
    return table(["scan", "voxels", *keys, "auto chose"], rows)


def bounds(scans: Told) -> str:
    """Ratios with each bound, and sizes over the best plain compressor's."""
    deltas = list(dict.fromkeys(delta for scan in scans.values() for delta in scan["bounds"]))
    rows = []
    for name, scan in scans.items():
        of = scan["bounds"]
        ratios = [f"{of[delta]['ratio']:.3g}" if delta in of else "" for delta in deltas]
        over = max(row["bytes"] / row["plain_bytes"] for row in of.values())
        beyond = sum(row["beyond"] for row in of.values())
        best = ", ".join(dict.fromkeys(row["plain"] for row in of.values()))
        rows.append([name, *ratios, f"{over:.4f}", f"{beyond:,}", best])
    headings = [f"ratio, {delta}" for delta in deltas]
    return table(["scan", *headings, "size over best, worst", "voxels beyond", "best plain"], rows)


def learnt(methods: Told) -> str:
    """Test accuracies of classifiers, and their numbers."""
    rows = [
        [
            name,
            str(row["rank"] or ""),
            f"{row['degrees_of_freedom']:,}",
            f"{row['share_percent']:.3f}",
            ", ".join(f"{value:.2f}" for value in row["accuracy"]),
        ]
        for name, row in methods.items()
    ]
    return table(["weights", "rank", "degrees of freedom", "numbers, % of dense", "accuracy, %"], rows)


def shipped(told: Told) -> str:
    """Coverage and width by level of the intervals that `train` makes; empty where there are none."""
    rows = []
    for each in told.get("cohorts", ()):
        where = [each["cohort"], each["reader"]]
        for recipe, levels in each.get("as_shipped", {}).items():
            rows += [[*where, recipe, *_covered(level, each["unit"])] for level in levels]
        if "quantiles" in each:
            own, widened = each["quantiles"]["own"], each["quantiles"]["as_shipped"]
            rows.append([*where, "ridge, its own q.2 to q.8", *_covered(own, each["unit"])])
            rows += [
                [*where, "ridge, quantiles widened", *_covered(level, each["unit"])] for level in widened
            ]
    if (cpic := told.get("cpic_as_shipped")) is not None:
        where = [f"spread at {cpic['size']}^3", "scans"]
        recipe = f"cpic, {cpic['steps']} steps, {cpic['splits']} splits, R2 {cpic['r2']:.3f}"
        rows += [[*where, recipe, *_covered(level, "shares")] for level in cpic["as_shipped"]]
    headings = ["cohort", "read", "recipe", "nominal", "covered", "width"]
    return table(headings, rows) if rows else ""


def _covered(row: Told, unit: str) -> list[str]:
    return [f"{row['level']:.3f}", f"{row['coverage']:.3f}", f"{number(float(row['width']))} {unit}"]


def between(score: Told, form: str) -> str:
    """A value and its interval."""
    return f"{score['value']:{form}} [{score['low']:{form}}, {score['high']:{form}}]"


def seeds(score: Told) -> str:
    """Every seed's value, ascending, where there are several and the run told them."""
    values = sorted(score.get("seeds", ()))
    return " ".join(f"{value:.3f}" for value in values) if len(values) > 1 else ""


def _fact(value: float | None) -> str:
    return "" if value is None else number(value)


def _estimated(row: Told, key: str) -> str:
    if key not in row:
        return ""
    return _fact(row[key]) if row.get("ran", True) else f"({_fact(row[key])})"


def _is_figure(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
