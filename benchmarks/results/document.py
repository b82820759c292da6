"""docs/results.md, from what runs told. What was not run stands there as not measured, with its command."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from benchmarks.results import words
from benchmarks.results.runs import PICTURE, Run, Runs, command
from benchmarks.results.tables import by_size, coverage, regressors, targets

BENCHMARKS = ("intervals", "cpic_predict", "cpic_train")


def document(runs: Runs, cases: Sequence[str], figures: Collection[str]) -> str:
    """The whole text. `cases` are all that there could be, `figures` the names of what was drawn."""
    parts = [
        words.HEAD,
        *_asked(runs, cases),
        "## Made cohorts",
        words.READING,
        "### Spread",
        words.SPREAD,
        *_cases(runs, [name for name in cases if name.startswith("spread")], figures),
        *_figure("voxels.svg", words.VOXELS, figures),
        *_figure("size.svg", words.SIZES, figures),
        "### Spots",
        words.SPOTS,
        *_cases(runs, [name for name in cases if name.startswith("spots")], figures),
        "## Real cohorts",
        words.REAL,
        *_cases(runs, [name for name in cases if not name.startswith(("spread", "spots"))], figures),
        "## Intervals",
        words.INTERVALS,
        *_other(runs, "intervals", figures),
        "## Time and memory of a prediction",
        words.PREDICT,
        *_other(runs, "cpic_predict", figures),
        "## Time and memory of a training step",
        words.TRAIN,
        *_other(runs, "cpic_train", figures),
        "## Learning curves",
        *(_figure("curves.svg", words.CURVES, figures) or [words.NO_CURVES]),
        "## Where an answer comes from",
        words.LOOKS,
        *_picture(runs.others.get(PICTURE), figures),
    ]
    return "\n\n".join(parts) + "\n"


def missing(runs: Runs, cases: Sequence[str]) -> list[str]:
    """The commands of what was not run."""
    names = [command(name, (name,)) for name in cases if name not in runs.cases]
    return names + [command(name) for name in (*BENCHMARKS, PICTURE) if name not in runs.others]


def _asked(runs: Runs, cases: Sequence[str]) -> Iterator[str]:
    """All targets at a glance."""
    told = {**{name: runs.cases[name] for name in cases if name in runs.cases}, **runs.others}
    answers = [(name, answer) for name, run in told.items() for answer in run.told.get("targets", ())]
    yield "## What was asked"
    if answers:
        held = sum(bool(answer["holds"]) for _, answer in answers)
        yield f"{held} of {len(answers)} targets hold in the runs that are here."
        yield targets(answers)
    if commands := missing(runs, cases):
        yield "Not measured:"
        yield "\n".join(f"- `{each}`" for each in commands)


def _cases(runs: Runs, names: Sequence[str], figures: Collection[str]) -> Iterator[str]:
    """One part for each case."""
    for name in names:
        yield f"#### {name}"
        yield words.ABOUT.get(name, "")
        run = runs.cases.get(name)
        if run is None:
            yield _not_measured(command(name, (name,)))
            continue
        told = run.told
        yield (
            f"`{run.command}`: {told['rows']} rows tested, {told['patients']} people, {told['splits']} "
            f"{'split' if told['splits'] == 1 else 'splits'}, standard deviation of the target "
            f"{told['target_sd']:.4g}."
        )
        yield regressors(told)
        yield from _figure(f"{name}.svg", "", figures)


def _other(runs: Runs, name: str, figures: Collection[str]) -> Iterator[str]:
    """A benchmark's part."""
    run = runs.others.get(name)
    if run is None:
        yield _not_measured(command(name))
        return
    yield f"`{run.command}`{_seed(run.told)}"
    if "cohorts" in run.told:
        yield coverage(run.told["cohorts"])
    if "sizes" in run.told:
        yield by_size(run.told["sizes"])
    yield from _figure(f"{name}.svg", "", figures)


def _picture(run: Run | None, figures: Collection[str]) -> Iterator[str]:
    """The picture, and what was asked and answered."""
    if run is None:
        yield _not_measured(command(PICTURE))
        return
    told = run.told
    yield (
        f"`{run.command}`, seed {told['seed']}, {told['size']}^3: {told['steps']} steps on {told['volumes']} "
        f"volumes of {told['people']} people. The target is {told['target']:.3f}, the answer "
        f"{told['answer']:.3f}; R2 {told['r2']:.3f} over {told['tested']} volumes of others. Of "
        f"{told['voxels']} voxels that were read {told['left_voxels']:.0%} lie in the left half, with "
        f"{told['left_weight']:.0%} of the absolute weight. Those within {told['near']} voxels of a slice "
        "are shown with it."
    )
    yield from _figure(f"{PICTURE}.png", "", figures)


def _figure(name: str, caption: str, figures: Collection[str]) -> list[str]:
    """A figure under its caption, if it was drawn."""
    if name not in figures:
        return []
    return [*([caption] if caption else []), f"![{name.partition('.')[0]}](results/{name})"]


def _not_measured(by: str) -> str:
    return f"Not measured: `{by}`"


def _seed(told: Mapping[str, object]) -> str:
    return f", seed {told['seed']}" if "seed" in told else ""
