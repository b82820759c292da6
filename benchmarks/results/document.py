"""docs/results.md, from what runs told. What was not run stands there as not measured, with its command."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from benchmarks.results import words
from benchmarks.results.asked import CONTROLS, Asked, answers, is_stale
from benchmarks.results.runs import PICTURE, Run, Runs, command
from benchmarks.results.tables import (
    bounds,
    by_size,
    chosen,
    controls,
    coverage,
    differences,
    learnt,
    rates,
    regressors,
    shares,
    shipped,
    targets,
)


def document(runs: Runs, asked: Asked, figures: Collection[str]) -> str:
    """The whole text. `asked` names all that there could be, `figures` what was drawn."""
    cases = tuple(asked.cases)
    parts = [
        words.HEAD,
        *_asked(runs, asked),
        "## Made cohorts",
        words.READING,
        "### Spread",
        words.SPREAD,
        *_cases(runs, asked, [name for name in cases if name.startswith("spread")], figures),
        *_figure("voxels.svg", words.VOXELS, figures),
        *_figure("size.svg", words.SIZES, figures),
        "### Spots",
        words.SPOTS,
        *_cases(runs, asked, [name for name in cases if name.startswith("spots")], figures),
        "### Controls",
        words.CONTROLS,
        *_other(runs, asked, CONTROLS, figures),
        "## Real cohorts",
        words.REAL,
        *_cases(runs, asked, [name for name in cases if not name.startswith(("spread", "spots"))], figures),
        "## Intervals",
        words.INTERVALS,
        *_other(runs, asked, "intervals", figures),
        "## Time and memory of a prediction",
        words.PREDICT,
        *_other(runs, asked, "cpic_predict", figures),
        "## Time and memory of a training step",
        words.TRAIN,
        *_other(runs, asked, "cpic_train", figures),
        "## Rates of compressed scans",
        words.RATES,
        *_other(runs, asked, "putt_rate", figures),
        "## Bounds on every voxel",
        words.BOUNDS,
        *_other(runs, asked, "putt_bound", figures),
        "## Spectral tensor trains",
        words.SPECTRAL,
        *_other(runs, asked, "sttp_learning", figures),
        "## Learning curves",
        *(_figure("curves.svg", words.CURVES, figures) or [words.NO_CURVES]),
        "## Where an answer comes from",
        words.LOOKS,
        *_picture(runs.others.get(PICTURE), figures),
    ]
    return "\n\n".join(parts) + "\n"


def missing(runs: Runs, asked: Asked) -> list[str]:
    """The commands of what was not run."""
    names = [command(name, (name,)) for name in asked.cases if name not in runs.cases]
    return names + [command(name) for name in (*asked.others, PICTURE) if name not in runs.others]


def _asked(runs: Runs, asked: Asked) -> Iterator[str]:
    """All targets at a glance."""
    told = list(answers(runs, asked))
    yield "## What was asked"
    if told:
        held, not_held, open_ = (sum(each.holds is holds for each in told) for holds in (True, False, None))
        old = sum(each.stale for each in told)
        yield (
            f"Of {len(told)} targets {held} hold, {not_held} {'does' if not_held == 1 else 'do'} not, and "
            f"{open_} {'is' if open_ == 1 else 'are'} asked, not yet measured. {old} of the answers "
            f"{'was' if old == 1 else 'were'} measured before the recipe changed."
        )
        yield targets(told)
    if commands := missing(runs, asked):
        yield "Not measured:"
        yield "\n".join(f"- `{each}`" for each in commands)


def _cases(runs: Runs, asked: Asked, names: Sequence[str], figures: Collection[str]) -> Iterator[str]:
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
        yield _code(run, asked.digests.get(name))
        yield regressors(told)
        if names := chosen(told["regressors"]):
            yield f"Split by split {names}."
        if pairs := differences(told.get("differences", {})):
            yield words.DIFFERENCES
            yield pairs
        yield from _figure(f"{name}.svg", "", figures)


def _other(runs: Runs, asked: Asked, name: str, figures: Collection[str]) -> Iterator[str]:
    """A benchmark's part."""
    run = runs.others.get(name)
    if run is None:
        yield _not_measured(command(name))
        return
    yield f"`{run.command}`{_seed(run.told)}"
    yield _code(run, asked.digests.get(name))
    if "r2" in run.told:
        yield controls(run.told["r2"])
    if "cohorts" in run.told:
        yield coverage(run.told["cohorts"])
    if rows := shipped(run.told):
        yield words.SHIPPED
        yield rows
    if "sizes" in run.told:
        yield by_size(run.told["sizes"])
    if name == "putt_rate":
        yield rates(run.told)
        yield shares(run.told["scans"], [each["key"] for each in run.told["targets"]])
    if name == "putt_bound":
        yield bounds(run.told["scans"])
    if name == "sttp_learning" and run.told["learning"]:
        yield learnt(run.told["learning"]["methods"])
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
    yield _code(run)
    yield from _figure(f"{PICTURE}.png", "", figures)


def _figure(name: str, caption: str, figures: Collection[str]) -> list[str]:
    """A figure under its caption, if it was drawn."""
    if name not in figures:
        return []
    return [*([caption] if caption else []), f"![{name.partition('.')[0]}](results/{name})"]


def _code(run: Run, digest: str | None = None) -> str:
    """Of which code a run is, and whether that is of today."""
    if not run.code:
        return words.OF_NO_CODE
    dirty = {True: ", with changes", False: "", None: ", changes not known"}[run.code.get("dirty")]
    versions = ", ".join(f"{name} {version}" for name, version in run.code.get("versions", {}).items())
    commit, date = (run.code.get(name, "unknown") for name in ("commit", "date"))
    told = f"Code `{commit}`{dirty}, {date}; {versions}."
    return f"{words.OLD} {told}" if is_stale(run, digest) else told


def _not_measured(by: str) -> str:
    return f"Not measured: `{by}`"


def _seed(told: Mapping[str, object]) -> str:
    return f", seed {told['seed']}" if "seed" in told else ""
