"""Regressors: recipes that make a model of a cohort. A new one is a file here and a line in `REGRESSORS`."""

from models.regressors.base import Regressor
from models.regressors.constant import Constant
from models.regressors.cpic import Cpic, RandomVoxelsRegressor
from models.regressors.tabular import Tabular

REGRESSORS: dict[str, type[Regressor]] = {
    "constant": Constant,
    "tabular": Tabular,
    "random_voxels": RandomVoxelsRegressor,
    "cpic": Cpic,
}
"""By name, from simple to complex: of two that cannot be told apart `auto` takes the former."""
