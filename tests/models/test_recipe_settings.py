"""Settings that name the form of a paper: which recipes have one, and what is said of others."""

from __future__ import annotations

import pytest

from models.errors import InvalidConfig
from models.regressors.cpic import Cpic
from models.regressors.settings import recipe_of
from models.regressors.voxel_ridge import VoxelRidge


def test_the_papers_form_is_a_mode_whose_settings_others_change() -> None:
    made = recipe_of(Cpic, {"mode": "paper", "encoder": {"features": 3}})
    assert (made.perceptron, made.encoder.sigmoid, made.encoder.features) == (True, True, 3)
    assert recipe_of(Cpic, {"mode": "paper"}) == Cpic.paper()


@pytest.mark.parametrize("value", ["Paper", "", None, 1])
def test_another_mode_is_told_which_there_is(value: object) -> None:
    with pytest.raises(InvalidConfig, match="must be paper, or left out") as refusal:
        Cpic.from_settings({"mode": value, "steps": 1})
    assert refusal.value.setting == "mode"


def test_modes_are_named_where_there_are_some() -> None:
    with pytest.raises(InvalidConfig, match=r"encoder, .*, mode$"):
        Cpic.from_settings({"colour": "red"})
    with pytest.raises(InvalidConfig, match=r"one of the settings grid$"):
        VoxelRidge.from_settings({"mode": "paper"})
