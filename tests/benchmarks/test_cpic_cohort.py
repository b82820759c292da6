"""The benchmark of cohorts: what cases ask, intervals on two levels, honest counts, the product's auto."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from dataclasses import dataclass, replace

import nibabel
import numpy as np
import pytest
import torch

from benchmarks import cpic_cohort
from benchmarks.cohorts import Protocol, phantom_heads, spread, subjects
from benchmarks.cohorts.real import Entry, RealCohort, Scan
from benchmarks.cohorts.scores import TASK, ahead, best, scores
from benchmarks.cohorts.subjects import (
    CPU,
    GIVEN,
    INTENSITIES,
    Auto,
    Clock,
    Family,
    Last,
    Measured,
    PaperForm,
    Simple,
)
from benchmarks.cpic_cohort import (
    BEST,
    CASES,
    Case,
    Real,
    ahead_of,
    compare,
    keys_of,
    surely_behind,
    together,
    tried,
)
from benchmarks.targets import Target, judged
from models.cpic.fibres import FibreConfig
from models.cpic.projection import Basis
from models.learning.folds import patient_folds
from models.learning.metrics import R2, RMSE, interval, metrics_of, paired_difference, row_losses
from models.learning.saved import under
from models.learning.selection import auto
from models.regressors import REGRESSORS
from models.regressors.cpic import Cpic
from models.regressors.encoders import EncoderConfig, ProjectionConfig
from models.regressors.readouts import FibreReadoutConfig, VoxelReadoutConfig
from models.training import Watch
from models.tt.train import TensorTrain, stacked
from workers.jobs.train import TrainParameters, recipes_of
from workers.trials import Terms
from workers.trials import tried as trials_of

PEOPLE = [f"p{row // 2}" for row in range(60)]
QTT = FibreConfig(rank=2)
TINY = Cpic(
    encoder=EncoderConfig(hidden=(2,), features=2),
    starts=1,
    steps=2,
    batch=4,
    voxels=20,
    readout=FibreReadoutConfig(QTT, counts=(10,), poolings=(2,)),
)
FEW_VOXELS = VoxelReadoutConfig(count=60, strata=2, poolings=(2,))


@pytest.fixture(scope="module")
def made():
    protocol = Protocol(train_people=6, train_volumes=2, test_volumes=4)
    return spread(16, heads=phantom_heads(8), protocol=protocol, seed=1).dense()


@pytest.fixture(scope="module")
def parts(made):
    cohort = made.cohort()
    return cohort.only(made.split.train), cohort.only(made.split.test)


def random_train(seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(1, 3, 2), (2, 4, 2), (2, 3, 1)]
    return TensorTrain(
        tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    )


@dataclass(frozen=True)
class Ready:
    """A cohort that is at hand."""

    made: object

    @property
    def settings(self):
        return {"name": "ready"}

    def __call__(self):
        return self.made.cohort(), [(self.made.split.train, self.made.split.test)]


def answered(noises, seed=0):
    """Targets and answers (seeds, n) with errors of these sizes."""
    generator = np.random.default_rng(seed)
    targets = generator.normal(size=len(PEOPLE))
    return targets, np.stack([targets + noise * generator.normal(size=len(targets)) for noise in noises])


def test_with_one_seed_intervals_are_those_of_people():
    targets, outputs = answered([0.5])
    told = scores(outputs, targets, PEOPLE)
    for metric in (R2, RMSE):
        expected = interval(metric, outputs.T, targets, PEOPLE, seed=0)
        found = told[metric.name]
        assert (found["value"], found["low"], found["high"]) == pytest.approx(
            (expected.value, expected.low, expected.high)
        )
        assert found["sd_of_seeds"] is None


def test_intervals_over_seeds_hold_what_another_seed_would_change():
    targets, outputs = answered([0.2, 0.2, 0.9])
    told = scores(outputs, targets, PEOPLE)["r2"]
    each = [scores(outputs[[seed]], targets, PEOPLE)["r2"] for seed in range(3)]
    assert told["seeds"] == pytest.approx([one["value"] for one in each])
    assert told["least"] == pytest.approx(each[2]["value"])
    assert told["value"] == pytest.approx(np.mean(told["seeds"]))
    assert told["sd_of_seeds"] == pytest.approx(np.std(told["seeds"], ddof=1))
    averaged = np.mean([one["low"] for one in each])
    assert told["low"] < averaged - 0.1


def test_a_difference_is_that_of_paired_losses_and_of_r2():
    targets, outputs = answered([0.3, 0.8])
    own, other = outputs[:1], outputs[1:]
    losses = [row_losses(each.T, targets, TASK) / targets.var() for each in (own, other)]
    expected = paired_difference(losses[1], losses[0], PEOPLE, seed=0)
    found = ahead(own, other, targets, PEOPLE)
    assert (found["value"], found["low"], found["high"]) == pytest.approx(
        (expected.value, expected.low, expected.high)
    )
    apart = [scores(each, targets, PEOPLE)["r2"]["value"] for each in (own, other)]
    assert found["value"] == pytest.approx(apart[0] - apart[1])
    swapped = ahead(other, own, targets, PEOPLE)
    assert swapped["high"] == pytest.approx(-found["low"])
    seeds = np.vstack([own, targets + 3 * (other[0] - targets)])
    assert np.ptp(list(ahead(seeds, other, targets, PEOPLE).values())) > 2 * np.ptp(list(found.values()))


def test_the_best_simple_regressor_is_known_by_what_it_answered():
    targets, outputs = answered([0.9, 0.2, 0.1])
    answers = dict(zip(("constant", "tt_ridge", "cpic"), outputs[:, None], strict=True))
    assert best(cpic_cohort.BASELINES, answers, targets) == "tt_ridge"


def test_every_case_declares_what_the_issue_asks_of_it():
    asked = {name: {target.key: target for target in case.targets} for name, case in CASES.items()}
    least = {"cpic TT moments 2": 0.85, "random_voxels": 0.85, "cpic": 0.9, "cpic principal 10": 0.9}
    for name, allowance in (("spread-32", 0), ("spread-64", 0.05), ("spread-128", 0.05)):
        for shown, r2 in least.items():
            target = asked[name][f"{shown} r2"]
            assert (target.limit, target.at_least) == (pytest.approx(r2 - allowance), True)
        assert asked[name]["own_head_behind"].limit == pytest.approx(0.03 + allowance)
        assert asked[name]["voxel_ridge r2"] == Target("voxel_ridge r2", 0.05)
        assert asked[name]["intensities r2"] == Target("intensities r2", 0.05)
    assert asked["spread-32-baselines"]["cpic behind resnet3d r2, low end"].limit == 0
    for name in ("ixi_age", "hippocampus", "soop"):
        assert asked[name]["auto behind best simple r2, low end"].limit == 0
        for shown in ("cpic", "random_voxels", *(["cpic TT"] if name != "soop" else [])):
            assert (shown, BEST) in CASES[name].ahead
            assert (shown, "given measures") in CASES[name].ahead


@pytest.mark.parametrize("name", CASES)
def test_every_target_is_about_something_that_is_measured(name):
    case = CASES[name]
    shown = {f"{each} r2" for each, _ in case.ahead} | {target.key for target in case.targets}
    simple = {
        subject.shown or subject.name if isinstance(subject, Simple) else subject.shown
        for subject, _ in case.subjects
        if isinstance(subject, Simple | Measured)
    }
    told = {tell for subject, _ in case.subjects if isinstance(subject, Family) for tell in subject.tells}
    blocks = {f"{tell} {block}" for tell in told for block in ("moments 2", "principal 10")}
    told |= {together(each) for each in case.together}
    others = {"auto"} if any(isinstance(subject, Auto) for subject, _ in case.subjects) else set()
    known = {f"{each} r2" for each in simple | told | blocks | others} | {"own_head_behind"}
    known |= {key for pair in case.ahead for key in (ahead_of(*pair), surely_behind(*pair))}
    assert {target.key for target in case.targets} <= known
    assert shown - known <= {"auto r2"}


def test_differences_and_their_lower_ends_are_judged():
    targets, outputs = answered([0.1, 0.9, 1.2])
    answers = dict(zip(("cpic", "tt_ridge", "auto"), outputs[:, None], strict=True))
    case = replace(CASES["ixi_age"], ahead=(("cpic", BEST), ("auto", BEST), ("absent", BEST)))
    differences = dict(compare(case, answers, targets, PEOPLE))
    assert list(differences) == ["cpic minus best simple r2", "auto minus best simple r2"]
    assert differences["cpic minus best simple r2"]["against"] == "tt_ridge"
    keys = keys_of({}, differences)
    behind = keys["auto behind best simple r2, low end"]
    assert behind == -differences["auto minus best simple r2"]["high"] > 0
    held = {told["key"]: told["holds"] for told in judged(keys, case.targets)}
    assert held == {"auto behind best simple r2, low end": False}


def test_made_cohorts_are_not_those_that_recipes_were_developed_on():
    assert {case.cohort.seed for case in CASES.values() if isinstance(case.cohort, cpic_cohort.Made)} == {1}


def test_provenance_has_all_settings_and_changes_with_each():
    for case in CASES.values():
        assert json.loads(json.dumps(case.provenance))["cohort"]["name"]
    case = CASES["spread-64"]
    others = [
        replace(case, cohort=replace(case.cohort, seed=7)),
        replace(case, subjects=case.subjects[:-1]),
        replace(case, subjects=((Family(Cpic(rate=4e-3)), (0, 1, 2)), *case.subjects[:-1])),
    ]
    digests = {each.provenance["digest"] for each in (case, *others)}
    assert len(digests) == 4
    assert case.provenance == replace(case).provenance
    names = {entry["settings"].get("regressor") for entry in case.provenance["subjects"]}
    assert "voxel_ridge" in names


def test_a_case_is_tried_from_end_to_end(made):
    tried_on = (
        (Simple("constant"), (0,)),
        (Simple("voxel_ridge"), (0,)),
        (INTENSITIES, (0,)),
        (Family(TINY, FEW_VOXELS, trains=("cpic",)), (0, 1)),
    )
    wanted = (Target("cpic r2", 0.9, at_least=True), Target("own_head_behind", 0.03))
    case = Case(Ready(made), tried_on, wanted, (("cpic", BEST), ("cpic, together", BEST)), ("cpic",))
    told = tried(case)
    json.dumps(told, allow_nan=False)
    assert (told["rows"], told["splits"]) == (4, 1)
    names = ["constant", "voxel_ridge", "intensities", "random_voxels", "cpic", "cpic principal 10"]
    assert list(told["regressors"]) == [*names, "cpic moments 2", "cpic own head", "cpic, together"]
    row = told["regressors"]["cpic"]
    assert (row["seeds"], len(row["answers"]), len(row["r2"]["seeds"])) == (2, 2, 2)
    assert row["epoch_s"] > 0
    assert row["memory_mib"] > 0
    assert row["histories"]["pooled"]["losses"]
    whole = told["regressors"]["cpic, together"]
    assert whole["answers"][0] == pytest.approx(np.mean(row["answers"], axis=0), abs=1e-6)
    assert (whole["seeds"], whole["train_s"]) == (1, pytest.approx(2 * row["train_s"]))
    assert "cpic, together minus best simple r2" in told["differences"]
    assert "epoch_s" not in told["regressors"]["constant"]
    assert [target["key"] for target in told["targets"]] == ["cpic r2", "own_head_behind"]
    text = io.StringIO()
    with redirect_stdout(text):
        cpic_cohort.show({"cases": {"tiny": told}})
    assert "cpic minus best simple r2" in text.getvalue()
    assert text.getvalue().count("HOLD") + text.getvalue().count("holds") == 2


def test_a_guide_is_counted_as_a_whole_scan(parts):
    guided = Family(replace(TINY, uniform=0.5), replace(FEW_VOXELS, uniform=0.5), "guided ", trains=())
    plain = Family(TINY, FEW_VOXELS, trains=())
    ((_, by_guide),) = guided(*parts, 0).values()
    ((_, facts),) = plain(*parts, 0).values()
    assert 0 < facts["voxels"] <= 60
    assert 16**3 < by_guide["voxels"] <= 16**3 + 60


def test_the_paper_s_head_answers_by_the_last_epoch_s_anchors(parts):
    paper = replace(
        Cpic.paper(),
        encoder=EncoderConfig(hidden=(2,), features=2, sigmoid=True, intensity=False),
        projected_steps=3,
        batch=4,
        projection=ProjectionConfig(count=3, anchors=4, fibres=QTT),
        readout=FibreReadoutConfig(QTT, counts=(3,), poolings=()),
    )
    told = PaperForm(paper)(*parts, 0)
    assert list(told) == ["the paper's encoder and QTT, our closed-form head", "cpic, paper's form, own head"]
    (refitted, _), (own, facts) = told.values()
    assert own.shape == refitted.shape == (4, 1)
    assert np.isfinite(own).all()
    assert np.ptp(own) > 0
    assert not np.allclose(own, refitted)
    assert facts["histories"]["projected"]["steps"] == 3


def test_the_last_epoch_s_anchors_are_those_that_the_training_had():
    trains = stacked([random_train(seed) for seed in range(4)])
    basis, last = Basis.of(trains, 2), Last()
    learner = {
        **under("basis", basis.tensors()),
        "total_energy": np.array(basis.total_energy),
        "epoch": np.array(5),
    }
    last.part("projected").save(under("learner", learner), {})
    assert last.load() is None
    found = last.basis()
    assert found.manifest() == basis.manifest()
    for name, tensor in basis.tensors().items():
        assert np.array_equal(found.tensors()[name], tensor)


def test_the_clock_counts_the_last_stage():
    clock = Clock()
    assert clock.facts(10, 5) == {}
    for done in (0, 1, 2, 0, 4):
        clock("training", done, 4)
    clock.began, clock.ended = 1.0, 3.0
    clock("trains", 9, 9)
    assert clock.facts(23, 5) == {"epoch_s": 2.0}


@pytest.mark.parametrize("patients", [2, 49, 50])
def test_auto_is_the_product_s(patients):
    rows = [
        {"volume_id": f"v{row}", "patient": f"p{row}", "target": 0.0, "covariates": {"age": 1.0}}
        for row in range(patients)
    ]
    product = TrainParameters.model_validate({"rows": rows, "regressor": "auto"})
    mine = Auto()
    assert mine.recipes(patients, covariates=True) == recipes_of(product)
    plain = [name for name in recipes_of(product) if name != "tabular"]
    assert list(mine.recipes(patients, covariates=False)) == plain
    assert ("cpic" in plain) == (patients == 50)
    assert mine.folds == product.folds


def test_auto_chooses_among_answers_out_of_the_training_s_folds(parts, monkeypatch):
    training, test = parts
    names = ["constant", "tabular", "voxel_ridge", "random_voxels"]
    monkeypatch.setattr(subjects, "automatic", lambda patients: names)
    settings = {
        "voxel_ridge": {"grid": 2},
        "random_voxels": {"steps": 0, "starts": 1, "readout": {"count": 60, "strata": 2}},
    }
    subject = Auto(settings, folds=2)
    ((answers, facts),) = subject(training, test, 3).values()
    folds = patient_folds(training.row_patients, 2, seed=3, targets=training.targets)
    terms = Terms(TASK, folds, metrics_of(TASK), 3, CPU)
    made = trials_of(subject.recipes(50, covariates=False), training, terms, Watch()).made
    assert list(made) == ["constant", "voxel_ridge", "random_voxels"]
    losses = {name: trial.validation.losses for name, trial in made.items()}
    chosen = auto(losses, training.row_patients, seed=3).chosen
    assert facts["chosen"] == chosen
    recipe = REGRESSORS[chosen].from_settings(settings.get(chosen, {}))
    expected = recipe.fit(training, TASK, seed=3, device=CPU, watch=Watch()).predict(test.inputs)
    assert np.array_equal(answers, expected)


@pytest.fixture
def people(tmp_path, monkeypatch):
    """A real cohort of twelve, whose target is what others measured, and nothing that its scans show."""
    generator, entries = np.random.default_rng(0), []
    for number in range(12):
        path = tmp_path / f"{number}.nii"
        nibabel.save(nibabel.Nifti1Image(generator.normal(size=(9, 8, 8 + number % 2)), np.eye(4)), path)
        measure = float(generator.normal())
        scale = "late" if number < 10 else "early"
        entries.append(
            Entry(
                f"p{number}",
                f"p{number}",
                Scan(path),
                3 * measure,
                baselines={"size": measure},
                labels={"intensity_scale_group": scale},
            )
        )
    cohort = RealCohort("people", "target", "units", tuple(entries), {})
    monkeypatch.setitem(cpic_cohort.REAL, "people", lambda: cohort)
    return cohort


def test_given_measures_are_those_of_the_scans_in_the_same_folds(people):
    cohort, splits = Real("people", cpic_cohort.HEADS)()
    assert np.concatenate([test for _, test in splits]).tolist() != list(range(12))
    assert sorted(np.concatenate([test for _, test in splits]).tolist()) == list(range(12))
    training, test = splits[0]
    told = GIVEN(cohort.only(training), cohort.only(test), 0)
    assert told["given measures"][0][:, 0] == pytest.approx(people.targets[test], abs=0.05)
    assert [scan.given.tolist() for scan in cohort.inputs.scans] == people.baselines.tolist()


def test_a_part_of_a_real_cohort_is_by_its_scale(people):
    cohort, _ = Real("people", cpic_cohort.HEADS, scale="late")()
    assert cohort.patients == tuple(f"p{number}" for number in range(10))
