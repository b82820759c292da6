"""docs/results.md from made-up runs: what they tell stands there, what they do not is not measured."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.results import run, show
from benchmarks.results.asked import CONTROLS, Asked, answers, asked
from benchmarks.results.document import document, missing
from benchmarks.results.runs import Run, Runs, read
from benchmarks.targets import Target, judged

needs_matplotlib = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="matplotlib is in the extra bench"
)
WANTED = (Target("cpic r2", 0.9, at_least=True), Target("voxel_ridge r2", 0.05))
ASKED = Asked(
    {"spread-32": WANTED, "spread-64": WANTED, "ixi_age": (Target("cpic minus best r2", 0, at_least=True),)},
    {
        "intervals": (Target("soop_coverage_gap", 0.03), Target("soop_coverage_gap_as_shipped", 0.03)),
        "cpic_predict": (Target("cold_s_256", 3),),
        "cpic_train": (),
        CONTROLS: (Target("spread_voxel_ridge", 0.05),),
    },
    {"spread-32": "ab", "spread-64": "cd"},
)
CODE = {"commit": "0123456789ab", "dirty": True, "versions": {"numpy": "2.0"}, "date": "2026-11-21"}


def score(value, sd=None, **more):
    return {"value": value, "sd_of_seeds": sd, "low": value - 0.1, "high": value + 0.05, **more}


def regressor(r2, **facts):
    return {"r2": score(r2, 0.012), "rmse": score(0.4), "seeds": 3, "answers": [[0.5]], **facts}


def case(**regressors):
    keys = {f"{name} r2": facts["r2"]["value"] for name, facts in regressors.items()}
    return {
        "rows": 102,
        "patients": 33,
        "splits": 1,
        "target_sd": 0.28123,
        "regressors": regressors,
        "targets": judged(keys, WANTED[:1]),
    }


def spread(cpic):
    history = {"losses": [1.0, 0.4], "validations": [None, 0.5], "best_epoch": 1, "steps": 8}
    return case(
        constant=regressor(-7.0),
        voxel_ridge=regressor(0.01, fit_s=0.2),
        random_voxels=regressor(0.94, train_s=40.2, predict_s=0.05, voxels=4000.0, parameters=5321.0),
        cpic=regressor(
            cpic,
            train_s=40.2,
            predict_s=0.11,
            voxels=912.5,
            parameters=5321.0,
            histories={"pooled": history},
        ),
    )


def covered(cohort, gap):
    rows = [{"level": level, "coverage": level - gap, "width": 0.5} for level in (0.8, 0.9, 0.95)]
    tables = dict.fromkeys(("split", "split_many", "constant", "cv_plus"), rows)
    return {"cohort": cohort, "reader": "block means", "unit": "shares", "noise": [0.01] * 3, **tables}


PREDICT = {
    "targets": judged({"cold_s_256": 2.5}, [Target("cold_s_256", 3)]),
    "sizes": {
        "256": {
            "cpic": {"cold_s": 2.5, "warm_s": 0.8, "peak_mib": 150.0, "runs": 3, "ran": True},
            "resnet3d": {"cold_s": 40.0, "peak_mib": 3000.0, "runs": 1, "ran": True},
        },
        "64x1024x1024": {
            "cpic": {"cold_s": 2.75, "warm_s": 0.9, "peak_mib": 151.0, "runs": 3, "ran": True},
            "resnet3d": {"cold_s": 160.0, "peak_mib": 12000.0, "runs": 0, "ran": False},
        },
    },
}
INTERVALS = {
    "seed": 7,
    "targets": judged({"soop_coverage_gap": 0.04}, [Target("soop_coverage_gap", 0.03)]),
    "cohorts": [covered("spread", 0.01), covered("soop", 0.04)],
}


SHIPPED_ROWS = [{"level": level, "coverage": level - 0.07, "width": 0.5} for level in (0.8, 0.9, 0.95)]
SHIPPED = {
    **INTERVALS,
    "cohorts": [
        {
            **covered("soop", 0.04),
            "as_shipped": {"auto": SHIPPED_ROWS},
            "quantiles": {"own": {"level": 0.6, "coverage": 0.52, "width": 0.3}, "as_shipped": SHIPPED_ROWS},
        }
    ],
    "cpic_as_shipped": {
        "size": 32,
        "steps": 60,
        "splits": 4,
        "r2": 0.91,
        "as_shipped": [{"level": 0.8, "coverage": 0.75, "width": 0.5}],
    },
}
CONTROLLED = {
    "spread at 32^3": {"roughness per half": 0.5021, "ridge": -0.001},
    "spots at 64^3": {"ridge": 0.003, "oracle": 0.719},
}


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    files = {
        "spread-32": {
            "cases": {"spread-32": {**spread(0.951), "provenance": {"digest": "ab"}}},
            "provenance": CODE,
        },
        "larger": {"cases": {"spread-64": spread(0.875), "spread-128": spread(0.6)}},
        "intervals": INTERVALS,
        "cpic_predict": {**PREDICT, "provenance": CODE},
        CONTROLS: {"seed": 0, "spread_voxel_ridge": 0.0, "r2": CONTROLLED, "provenance": CODE},
    }
    (tmp_path / "results").mkdir()
    for name, told in files.items():
        (tmp_path / "results" / f"{name}.json").write_text(json.dumps(told))
    return tmp_path


def written(docs: Path) -> str:
    return document(read(docs / "results"), ASKED, {"spread-32.svg"})


def test_without_runs_every_part_says_how_to_measure_it() -> None:
    text = document(Runs({}, {}), ASKED, ())
    commands = missing(Runs({}, {}), ASKED)
    assert len(commands) == len(ASKED.cases) + 5
    for command in commands:
        assert f"- `{command}`" in text
        assert f"Not measured: `{command}`" in text
    assert "python -m benchmarks cpic_cohort --only ixi_age --json docs/results/ixi_age.json" in commands
    assert "For research, not a medical device" in text
    assert "raw\nintensity scale" in text  # the trap stands there whatever was measured
    assert "![" not in text


def test_numbers_stand_with_their_intervals_and_commands(docs: Path) -> None:
    text = written(docs)
    row = next(line for line in text.splitlines() if line.startswith("| cpic |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == [
        "cpic",
        "0.951 [0.851, 1.001]",
        "",
        "0.4 [0.3, 0.45]",
        "0.012",
        "3",
        "5,321",
        "40.2",
        "",
        "0.11",
        "913",
    ]
    assert "cpic_cohort --only spread-32 --json docs/results/spread-32.json`: 102 rows tested, 33" in text
    assert "cpic_cohort --only spread-64,spread-128 --json docs/results/larger.json`" in text
    assert "Not measured: `python -m benchmarks cpic_cohort --only ixi_age" in text
    assert "--only spread-32 --json docs/results/spread-32.json`\n- " not in text
    assert "`python -m benchmarks intervals --json docs/results/intervals.json`, seed 7" in text
    assert "| soop | block means | 0.900 | 0.860 | 0.010 | 0.860 | 0.5 shares |" in text
    assert "(160)" in text  # an estimate
    assert "(2.75)" not in text
    assert text.count("![") == 1


def test_all_targets_stand_there_whether_they_were_measured_or_not(docs: Path) -> None:
    rows = [line for line in written(docs).splitlines() if "| at least" in line or "| at most" in line]
    old = "; measured before the recipe changed"
    assert rows == [
        "| spread-32 | cpic r2 | at least 0.9 | 0.951 | holds |",
        "| spread-32 | voxel_ridge r2 | at most 0.05 | 0.01 | holds |",  # asked only after the run
        f"| spread-64 | cpic r2 | at least 0.9 | 0.875 | **DOES NOT HOLD**{old} |",
        f"| spread-64 | voxel_ridge r2 | at most 0.05 | 0.01 | holds{old} |",
        "| ixi_age | cpic minus best r2 | at least 0 |  | asked, not yet measured |",
        f"| intervals | soop_coverage_gap | at most 0.03 | 0.04 | **DOES NOT HOLD**{old} |",
        "| intervals | soop_coverage_gap_as_shipped | at most 0.03 |  | asked, not yet measured |",
        "| cpic_predict | cold_s_256 | at most 3 | 2.5 | holds |",
        "| cohorts.controls | spread_voxel_ridge | at most 0.05 | 0 | holds |",
    ]
    assert "Of 9 targets 5 hold, 2 do not, and 2 are asked, not yet measured. 3 of the answers" in written(
        docs
    )


def test_the_list_of_targets_is_the_benchmarks_own() -> None:
    from benchmarks import cpic_cohort, cpic_predict, intervals

    of = asked()
    told = list(answers(Runs({}, {}), of))
    assert all(each.holds is None for each in told)
    assert {"ixi_age", "hippocampus", "soop"} <= set(of.ahead)
    assert all("cpic minus best simple r2" in keys for keys in of.ahead.values())
    keys = {(each.run, each.target) for each in told}
    for name, case in cpic_cohort.CASES.items():
        assert of.digests[name] == case.provenance["digest"]
        assert {(name, target) for target in case.targets} <= keys
    for name, module in (("cpic_predict", cpic_predict), ("intervals", intervals)):
        assert {(name, target) for target in module.TARGETS} <= keys


@pytest.mark.parametrize(
    ("values", "r2", "measured", "holds"),
    [
        ([-0.1, 0.2], 0.3, 1, True),
        ([-0.1, 0.2], -0.3, 0, False),
        ([-0.1, -0.2], 0.3, 0, False),
        ([-0.1, None], 0.3, None, None),
        ([0.1, None], 0.3, 1, True),
    ],
)
def test_ahead_on_one_real_cohort_is_asked_of_all_of_them_together(values, r2, measured, holds) -> None:
    """Ahead of what tells nothing by what tells nothing is not ahead."""
    keys = ["cpic minus best simple r2"]
    of = Asked({}, ahead={"ixi_age": keys, "soop": keys})
    cases = {
        name: Run(
            {
                "differences": {keys[0]: {**score(value), "of": "cpic"}},
                "regressors": {"cpic": {"r2": score(r2)}},
            },
            "",
        )
        for name, value in zip(of.ahead, values, strict=True)
        if value is not None
    }
    (told,) = answers(Runs(cases, {}), of)
    assert (told.measured, told.holds) == (measured, holds)


def test_a_benchmark_of_other_recipes_is_marked(docs: Path) -> None:
    path = docs / "results" / "cpic_predict.json"
    of = Asked({}, {"cpic_predict": (Target("cold_s_256", 3),)}, {"cpic_predict": "ab"})
    for told, stale in (("ab", False), ("other", True)):
        path.write_text(json.dumps({**PREDICT, "digest": told, "provenance": CODE}))
        runs = read(docs / "results")
        assert [each.stale for each in answers(runs, of)] == [stale]
        assert ("Measured before the recipe" in document(runs, of, ()).partition("a prediction")[2]) == stale


def test_a_run_of_other_settings_and_one_of_no_code_are_marked(docs: Path) -> None:
    def part() -> str:
        return written(docs).partition("#### spread-32\n")[2].partition("####")[0]

    told = "Code `0123456789ab`, with changes, 2026-11-21; numpy 2.0."
    assert told in part()
    assert "Measured before the recipe changed" not in part()
    path = docs / "results" / "spread-32.json"
    case = {**spread(0.951), "provenance": {"digest": "other"}}
    path.write_text(json.dumps({"cases": {"spread-32": case}, "provenance": CODE}))
    assert f"**Measured before the recipe changed.** {told}" in part()
    path.write_text(json.dumps({"cases": {"spread-32": spread(0.951)}}))
    assert "**Measured before the recipe changed.** At least, the file does not say" in part()


def test_seeds_choices_and_differences_stand_beside_the_means(docs: Path) -> None:
    told = spread(0.951)
    told["regressors"]["cpic"]["r2"] = score(0.6, 0.5, seeds=[0.96, -0.14, 0.98])
    told["regressors"]["auto"] = regressor(0.3, chosen=["constant", "cpic"])
    told["differences"] = {"cpic minus best r2": score(-0.2, of="cpic", against="voxel_ridge", other="best")}
    (docs / "results" / "spread-32.json").write_text(json.dumps({"cases": {"spread-32": told}}))
    text = written(docs)
    assert "| cpic | 0.600 [0.500, 0.650] | -0.140 0.960 0.980 | 0.4" in text
    assert "`auto` took constant, cpic" in text
    assert "| cpic | voxel_ridge | -0.200 [-0.300, -0.150] |" in text


def test_controls_stand_with_what_they_find(docs: Path) -> None:
    text = written(docs)
    assert "| R2 on other people | spread at 32^3 | spots at 64^3 |" in text
    assert "| roughness per half | 0.502 |  |" in text
    assert "| oracle |  | 0.719 |" in text


def test_intervals_as_shipped_stand_beside_the_others(docs: Path) -> None:
    (docs / "results" / "intervals.json").write_text(json.dumps(SHIPPED))
    text = written(docs)
    assert "| soop | block means | auto | 0.900 | 0.830 | 0.5 shares |" in text
    assert "| soop | block means | ridge, its own q.2 to q.8 | 0.600 | 0.520 | 0.3 shares |" in text
    assert (
        "| spread at 32^3 | scans | cpic, 60 steps, 4 splits, R2 0.910 | 0.800 | 0.750 | 0.5 shares |" in text
    )


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_broken_files_are_named(docs: Path, content: str) -> None:
    (docs / "results" / "odd.json").write_text(content)
    with pytest.raises(SystemExit, match=r"odd\.json"):
        read(docs / "results")


def test_a_case_in_two_files_is_refused(docs: Path) -> None:
    (docs / "results" / "twice.json").write_text(json.dumps({"cases": {"spread-32": spread(0.1)}}))
    with pytest.raises(SystemExit, match=r"twice\.json has the case spread-32"):
        read(docs / "results")


@needs_matplotlib
def test_all_is_written_with_light_figures(docs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(docs=docs)
    drawn = {"cpic_predict", "curves", "intervals", "size", "spread-128", "spread-32", "spread-64", "voxels"}
    assert result["figures"] == sorted(f"{name}.svg" for name in drawn)
    assert max((docs / "results" / name).stat().st_size for name in result["figures"]) < 150_000
    text = (docs / "results.md").read_text()
    assert all(f"(results/{name})" in text for name in result["figures"])
    assert "#### spread-128" in text
    show(result)
    assert "not measured: python -m benchmarks cpic_train" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no part tables"):
        run(["tables"], docs)


@needs_matplotlib
def test_figures_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    from benchmarks.results import plots

    runs = Runs({}, {"intervals": Run(INTERVALS, "")})
    drawn = []
    for _ in range(2):
        assert plots.draw(runs, tmp_path) == {"intervals.svg"}
        drawn.append((tmp_path / "intervals.svg").read_bytes())
    assert drawn[0] == drawn[1]


@needs_matplotlib
def test_points_are_where_they_were_measured() -> None:
    from benchmarks.results import plots

    sized = {32: Run(spread(0.951), ""), 64: Run(spread(0.875), "")}
    (axes,) = plots.by_voxels(sized).axes
    points = {(float(x), float(y)) for line in axes.lines for x, y in line.get_xydata()}
    assert points == {(912.5, 0.951), (912.5, 0.875), (4000, 0.94), (32**3, 0.01), (64**3, 0.01)}
    (axes,) = plots.by_size(sized).axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert lines["cpic"] == [[32, 0.951], [64, 0.875]]
    (axes,) = plots.coverage(SHIPPED).axes
    drawn = {(float(x), float(y)) for line in axes.lines for x, y in line.get_xydata()}
    assert {(0.6, 0.52), (0.8, 0.73), (0.8, 0.75)} <= {(round(x, 9), round(y, 9)) for x, y in drawn}
    (axes,) = plots.coverage(INTERVALS).axes
    told = [container.lines[0].get_ydata().tolist() for container in axes.containers]
    assert np.array(told) == pytest.approx(np.array([[0.79, 0.89, 0.94], [0.76, 0.86, 0.91]]))
    assert [plots.voxels(size) for size in ("256", "64x1024x1024")] == [256**3, 64 * 1024**2]


@needs_matplotlib
def test_a_worse_value_than_the_axis_stands_at_its_border() -> None:
    from benchmarks.results import plots

    (axes,) = plots.errors(spread(0.951)).axes
    markers = [line for line in axes.lines if line.get_marker() == "<"]
    assert [line.get_xydata().tolist() for line in markers] == [[[plots.WORST, 3]]]
    assert "-7.000" in [text.get_text() for text in axes.texts]


@needs_matplotlib
def test_a_picture_has_the_true_region_and_the_weights(tmp_path: Path) -> None:
    from PIL import Image

    from benchmarks.cohorts import Protocol, phantom_heads, spread
    from benchmarks.results import pictures
    from models.regressors.base import Saliency

    made = spread(16, heads=phantom_heads(2), protocol=Protocol(1, 1, 1), seed=0)
    volume = made.sources[0]
    true = pictures.textured(volume)
    brain = volume.region(tuple(np.arange(8)[None] for _ in range(3)))[0]
    left = true[:, :, :8].sum() / 8 / brain[..., :4].sum()
    assert left == pytest.approx(made.targets[0])
    voxels = np.array([[8, 1, 2], [7, 12, 13], [8, 8, 15]])
    saliency = Saliency(voxels, np.array([2.0, -1.0, 1.0]))
    figure = pictures.picture(volume, saliency, "target 0.5, answer 0.4")
    dots = figure.axes[3].collections[-1]
    assert dots.get_offsets().tolist() == [[2, 1], [13, 12], [15, 8]]
    assert dots.get_sizes().tolist() == [pictures.AREA, pictures.AREA / 2, pictures.AREA / 2]
    assert len(figure.axes[0].collections) == 2  # the outlines of both halves
    assert pictures.NOTICE in figure.get_supxlabel()
    pictures.save(figure, tmp_path)
    first = (tmp_path / "saliency.png").read_bytes()
    pictures.save(pictures.picture(volume, saliency, "target 0.5, answer 0.4"), tmp_path)
    assert (tmp_path / "saliency.png").read_bytes() == first
    with Image.open(tmp_path / "saliency.png") as image:
        assert image.size == (792, 572)
