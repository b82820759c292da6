"""Regressors: recipes that make a model of a cohort. A new one is a file here and a line in `REGRESSORS`.

- What all are: `base`; their settings: `settings`; the memory they take: `memory`, `encoder_memory`.
- Recipes: `constant`, `tabular`, `voxel_ridge`, `tt_ridge`, `tt_mlp`, `random_voxels`, `cpic`,
  `cpic_ensemble`, `resnet3d`, `resnet3d_spectral` (two recipes).
- Models that recipes share: `linear_model`, `network_model`, `cpic_model`; compressed ones: `compressed`.
- What reads scans: `blocks`, `dense` (every voxel); `readouts`, `trains`, `guides`, `distances` (a few).
- What is trained by descent: `neural`, `resnet`; encoders in `encoders`, by the recipe of `encoder_training`;
  of a bounded gain: `encoder_bound`.
"""

from models.regressors.base import Regressor
from models.regressors.constant import Constant
from models.regressors.cpic import Cpic
from models.regressors.cpic_ensemble import CpicEnsemble
from models.regressors.random_voxels import RandomVoxelsRegressor
from models.regressors.resnet3d import ResNet3d
from models.regressors.resnet3d_spectral import SttpResNet3d, SvdpResNet3d
from models.regressors.tabular import Tabular
from models.regressors.tt_mlp import TtMlp
from models.regressors.tt_ridge import TtRidge
from models.regressors.voxel_ridge import VoxelRidge

REGRESSORS: dict[str, type[Regressor]] = {
    "constant": Constant,
    "tabular": Tabular,
    "voxel_ridge": VoxelRidge,
    "tt_ridge": TtRidge,
    "tt_mlp": TtMlp,
    "random_voxels": RandomVoxelsRegressor,
    "cpic": Cpic,
    "cpic_ensemble": CpicEnsemble,
    "resnet3d": ResNet3d,
    "resnet3d-svdp": SvdpResNet3d,
    "resnet3d-sttp": SttpResNet3d,
}
"""By name, from simple to complex: of two that cannot be told apart `auto` takes the former."""
