"""Tables in Markdown, and numbers as they stand in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.results.runs import Told
from benchmarks.targets import number

COLUMNS = {
    "parameters": "parameters",
    "train_s": "training, s",
    "fit_s": "fitting, s",
    "predict_s": "a scan, s",
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
    headings = ["regressor", "R2 [95 %]", "RMSE [95 %]", "sd over seeds", "seeds"]
    rows = []
    for name, facts in told.items():
        spread = facts["r2"]["sd_of_seeds"]
        row = [name, between(facts["r2"], ".3f"), between(facts["rmse"], ".4g")]
        row += ["" if spread is None else f"{spread:.3f}", str(facts["seeds"])]
        rows.append(row + [_fact(facts.get(key)) for key in known])
    return table(headings + [COLUMNS[key] for key in known], rows)


def targets(answers: Iterable[tuple[str, Told]]) -> str:
    """What was asked, of which run, and whether it holds."""
    rows = [
        [
            run,
            answer["key"],
            f"{'at least' if answer['at_least'] else 'at most'} {number(answer['limit'])}",
            number(answer["measured"]),
            "holds" if answer["holds"] else "**DOES NOT HOLD**",
        ]
        for run, answer in answers
    ]
    return table(["run", "figure", "asked", "measured", ""], rows)


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


def between(score: Told, form: str) -> str:
    """A value and its interval."""
    return f"{score['value']:{form}} [{score['low']:{form}}, {score['high']:{form}}]"


def _fact(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _estimated(row: Told, key: str) -> str:
    if key not in row:
        return ""
    return _fact(row[key]) if row.get("ran", True) else f"({_fact(row[key])})"


def _is_figure(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
