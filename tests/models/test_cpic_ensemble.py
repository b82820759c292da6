"""Several trainings of one recipe: means of their answers, and of what stands behind them."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from model_fields import ArraySource
from small_cohorts import smooth_scans

from models.cpic.fibres import FibreConfig
from models.errors import InvalidConfig
from models.learning.cohort import Cohort, Inputs
from models.learning.task import Task
from models.regressors.cpic import Cpic
from models.regressors.cpic_ensemble import SEEDS, CpicEnsemble, Ensemble
from models.regressors.cpic_model import CpicModel
from models.regressors.encoders import EncoderConfig
from models.regressors.readouts import FibreReadoutConfig
from models.training import Watch

CPU = torch.device("cpu")
SHAPE = (8, 8, 10)
CPIC = Cpic(
    encoder=EncoderConfig(hidden=(2,), features=2),
    starts=1,
    steps=2,
    batch=4,
    voxels=30,
    readout=FibreReadoutConfig(FibreConfig(layout="tt", rank=2), counts=(3,), poolings=(1,)),
)
NO_COVARIATES = np.zeros(0)


@cache
def cohort() -> Cohort:
    scans, sizes = smooth_scans(9, 0, SHAPE)
    inputs = Inputs.of([ArraySource(scan) for scan in scans], np.zeros((9, 0)))
    return Cohort(inputs, tuple(f"p{k}" for k in range(9)), 40 + 30 * sizes)


@cache
def member(seed: int) -> CpicModel:
    return CPIC.fit(cohort(), Task(), seed=seed, device=CPU, watch=Watch())


@cache
def ensemble() -> Ensemble:
    return CpicEnsemble(3, CPIC).fit(cohort(), Task(), seed=4, device=CPU, watch=Watch())


def test_members_are_those_of_the_seeds_that_follow_and_answers_their_means() -> None:
    inputs = cohort().inputs
    told = np.stack([member(seed).predict(inputs) for seed in (4, 5, 6)])
    assert np.ptp(told, axis=0).min() > 0
    assert np.array_equal(ensemble().predict(inputs), told.mean(axis=0))


def test_saliency_is_of_the_mean_answer_voxel_by_voxel() -> None:
    scan = cohort().inputs.scans[2]
    look = ensemble().look(scan, NO_COVARIATES)
    own = [member(seed).look(scan, NO_COVARIATES) for seed in (4, 5, 6)]
    dense = np.zeros((3, *SHAPE))
    for k, each in enumerate(own):
        assert each.saliency is not None
        dense[(k, *each.saliency.voxels.T)] = each.saliency.weights
    assert look.saliency is not None
    wanted = dense.mean(axis=0)[tuple(look.saliency.voxels.T)]
    assert look.saliency.weights == pytest.approx(wanted, abs=1e-12)
    assert look.voxels == len(look.saliency.voxels) == np.count_nonzero(dense.any(axis=0))
    assert look.distance == pytest.approx(np.mean([each.distance for each in own]))


def test_the_certificate_is_that_of_the_worst_member() -> None:
    scan = cohort().inputs.scans[2]
    bounds = [member(seed).look(scan, NO_COVARIATES).certificate for seed in (4, 5, 6)]
    worst = ensemble().look(scan, NO_COVARIATES).certificate
    assert None not in bounds
    assert worst in bounds
    told = [each["overall"]["upper_bound"] for each in bounds if each is not None]
    assert worst is not None
    assert worst["overall"]["upper_bound"] == (None if None in told else max(told))


def test_progress_names_the_member() -> None:
    told: set[str] = set()
    watch = Watch(lambda phase, done, total: told.add(phase))
    CpicEnsemble(2, CPIC).fit(cohort(), Task(), seed=0, device=CPU, watch=watch)
    assert {"training, member 1 of 2", "trains, member 2 of 2"} <= told


def test_the_last_seed_is_followed_by_the_first() -> None:
    made = CpicEnsemble(2, CPIC).fit(cohort(), Task(), seed=SEEDS - 1, device=CPU, watch=Watch())
    assert np.array_equal(made.members[1].predict(cohort().inputs), member(0).predict(cohort().inputs))


@pytest.mark.parametrize("members", [1, 33])
def test_a_number_of_members_that_is_no_ensemble_is_refused(members: int) -> None:
    with pytest.raises(InvalidConfig) as error:
        CpicEnsemble(members)
    assert error.value.setting == "members"
