"""C-PIC several times over, from several seeds; answers are means.

Encoders that start elsewhere err elsewhere, most where patients are few: the mean of their answers has less
of what was luck (Hansen and Salamon, "Neural network ensembles", IEEE Trans. PAMI 12, 1990;
Lakshminarayanan, Pritzel and Blundell, arXiv 1612.01474). Member k is what `cpic` makes of the seed + k.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import torch
from jaxtyping import Float64

from models.cpic.embed import RUNTIME_BYTES
from models.errors import InvalidShape
from models.learning.cohort import Cohort, Inputs
from models.learning.saved import digest, part, under
from models.learning.task import Task
from models.limits import refuse_outside
from models.regressors.base import Extent, Look, Saliency
from models.regressors.cpic import Cpic
from models.regressors.cpic_model import CpicModel
from models.regressors.linear_model import refuse_other
from models.regressors.settings import recipe_of
from models.training import Watch
from models.types import Array, CubeSource, Report

SCHEMA = 1
SEEDS = 1 << 63
"""Seeds begin again after so many."""


@dataclass(frozen=True)
class CpicEnsemble:
    """So many `members`, each as `cpic` says. Raises InvalidConfig, naming the setting."""

    name: ClassVar[str] = "cpic_ensemble"

    members: int = 3
    cpic: Cpic = field(default_factory=Cpic)

    def __post_init__(self) -> None:
        refuse_outside(self, members=(2, 32))

    def fit(self, cohort: Cohort, task: Task, *, seed: int, device: torch.device, watch: Watch) -> Ensemble:
        """See `Regressor`."""
        made = [
            self.cpic.fit(cohort, task, seed=(seed + k) % SEEDS, device=device, watch=self._watch(watch, k))
            for k in range(self.members)
        ]
        return Ensemble(tuple(made))

    def load(
        self, tensors: Mapping[str, Array], manifest: Mapping[str, Any], task: Task, device: torch.device
    ) -> Ensemble:
        """See `Regressor`."""
        refuse_other(tensors, manifest, SCHEMA)
        saved = enumerate(manifest["members"])
        return Ensemble(tuple(self.cpic.load(part(str(k), tensors), own, task, device) for k, own in saved))

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """See `Regressor`."""
        return recipe_of(cls, settings)

    def training_bytes(self, extent: Extent) -> int:
        """See `Regressor`: members are made one after the other."""
        return self.cpic.training_bytes(extent) + (self.members - 1) * self.cpic.kept_bytes(extent)

    def answering_bytes(self, extent: Extent) -> int:
        """See `Regressor`: each member keeps its look at the last scan."""
        return RUNTIME_BYTES + self.members * (self.cpic.answering_bytes(extent) - RUNTIME_BYTES)

    def _watch(self, watch: Watch, k: int) -> Watch:
        """Of a member, whose checkpoints lie by themselves."""
        own = watch.part(f"member-{k}")
        return Watch(_numbered(own.report, k + 1, self.members), own.checkpoints)


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Members of one cohort and one task."""

    members: tuple[CpicModel, ...]

    def predict(self, inputs: Inputs) -> Float64[Array, "n outputs"]:
        """See `Model`: means of the members' answers, level by level and class by class."""
        return np.asarray(np.mean([member.predict(inputs) for member in self.members], axis=0))

    def look(self, scan: CubeSource, covariates: Float64[Array, " t"]) -> Look:
        """See `Model`: means of distances, the worst certificate, the saliency of the mean answer."""
        looks = [member.look(scan, covariates) for member in self.members]
        saliency = _mean_saliency([look.saliency for look in looks if look.saliency is not None], scan.shape)
        return Look(
            distance=_mean([look.distance for look in looks]),
            distance_percentile=_mean([look.distance_percentile for look in looks]),
            certificate=_worst([look.certificate for look in looks if look.certificate is not None]),
            voxels=len(saliency.voxels),
            saliency=saliency,
        )

    def tensors(self) -> dict[str, Array]:
        """See `Model`."""
        parts = [under(str(k), member.tensors()) for k, member in enumerate(self.members)]
        return {name: tensor for each in parts for name, tensor in each.items()}

    def manifest(self) -> dict[str, Any]:
        """See `Model`."""
        members = [member.manifest() for member in self.members]
        histories = {
            f"{k + 1}: {stage}": told
            for k, own in enumerate(members)
            for stage, told in own["histories"].items()
        }
        return {
            "schema": SCHEMA,
            "members": members,
            "parameters": sum(own["parameters"] for own in members),
            "histories": histories,
            "digest": digest(self.tensors()),
        }


def _numbered(report: Report, number: int, count: int) -> Report:
    return lambda phase, done, total: report(f"{phase}, member {number} of {count}", done, total)


def _mean(values: Sequence[float | None]) -> float | None:
    """None where one is not known."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _worst(certificates: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """That of the largest bound; none at all is larger than any."""

    def bound(certificate: Mapping[str, Any]) -> float:
        upper = certificate["overall"]["upper_bound"]
        return float("inf") if upper is None else float(upper)

    return max(certificates, key=bound, default=None)


def _mean_saliency(saliencies: Sequence[Saliency], shape: tuple[int, int, int]) -> Saliency:
    """What each voxel moves the mean answer by. Raises InvalidShape for none."""
    if not saliencies:
        raise InvalidShape("no member says what its answer came from")
    where = np.concatenate([np.ravel_multi_index(tuple(each.voxels.T), shape) for each in saliencies])
    places, at = np.unique(where, return_inverse=True)
    weights = np.bincount(at, np.concatenate([each.weights for each in saliencies])) / len(saliencies)
    voxels = np.stack(np.unravel_index(places, shape), axis=1)
    return Saliency(voxels, weights, saliencies[0].sides)
