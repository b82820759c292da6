"""A linear head on numbers that a scan is turned into, whatever turns it: the model of many recipes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
from jaxtyping import Float64

from models.errors import InvalidShape
from models.learning.cohort import Cohort, Inputs
from models.learning.linear import LinearHead
from models.learning.saved import digest, part, refuse_mixed, under
from models.learning.task import Task
from models.regressors.base import Look
from models.training import Watch
from models.types import Array, CubeSource, Int64, Report

SCHEMA = 1
PHASE = "features"
"""What a `Report` is told while scans are looked at."""


class ScanFeatures(Protocol):
    """What turns a scan into numbers; fitted, if it has anything to fit."""

    def __call__(self, scan: CubeSource) -> Float64[Array, " p"]:
        """The features of a scan; the same for the same scan."""

    def look(
        self, scan: CubeSource, gradient: Callable[[Float64[Array, " p"]], Float64[Array, " p"]]
    ) -> Look:
        """What is known of a look at a scan, if the answer changes with its features as `gradient` says.

        Without a `distance` of its own it is given the head's.
        """

    def tensors(self) -> dict[str, Array]:
        """Everything that is an array, by name."""

    def manifest(self) -> dict[str, Any]:
        """Everything else, as JSON."""


Features = TypeVar("Features", bound=ScanFeatures)


@dataclass(frozen=True, eq=False)
class LinearModel(Generic[Features]):
    """A head on the features of scans, beside covariates without penalty. A `Model`."""

    features: Features
    head: LinearHead

    @classmethod
    def fit(
        cls,
        features: Features,
        cohort: Cohort,
        task: Task,
        *,
        seed: int,
        watch: Watch,
        known: Float64[Array, "s p"] | None = None,
    ) -> Self:
        """The head of all rows; `known` are the features of all scans, where they are known already.

        Each scan that has rows is looked at once. Raises as `LinearHead.fit`.
        """
        inputs = cohort.inputs
        scans, number = np.unique(inputs.scan_of, return_inverse=True)
        told = _looked_at(features, inputs, scans, watch.report) if known is None else known[scans]
        head = LinearHead.fit(
            told[number], cohort.targets, cohort.row_patients, task, free=inputs.covariates, seed=seed
        )
        return cls(features, head)

    def predict(self, inputs: Inputs) -> Float64[Array, "n outputs"]:
        """See `Model`."""
        if not len(inputs):
            return np.zeros((0, self.head.task.outputs))
        scans, number = np.unique(inputs.scan_of, return_inverse=True)
        told = _looked_at(self.features, inputs, scans)
        return self.head.predict(told[number], inputs.covariates)

    def look(self, scan: CubeSource, covariates: Float64[Array, " t"]) -> Look:
        """See `Model`; the distance is the head's, where the features have none of their own."""
        seen: list[Float64[Array, " p"]] = []

        def gradient(features: Float64[Array, " p"]) -> Float64[Array, " p"]:
            seen.append(features)
            return self.head.gradient(features, covariates)

        return with_distance(self.features.look(scan, gradient), self.head, seen[0])

    def tensors(self) -> dict[str, Array]:
        """See `Model`."""
        return {**under("features", self.features.tensors()), **under("head", self.head.tensors())}

    def manifest(self) -> dict[str, Any]:
        """See `Model`."""
        return {
            "schema": SCHEMA,
            "features": self.features.manifest(),
            "head": self.head.manifest(),
            "parameters": self.head.parameters,
            "digest": digest(self.tensors()),
        }

    @classmethod
    def from_saved(
        cls,
        make_features: Callable[[Mapping[str, Array], Mapping[str, Any]], Features],
        tensors: Mapping[str, Array],
        manifest: Mapping[str, Any],
        task: Task,
    ) -> Self:
        """What `tensors` and `manifest` gave; `make_features` takes those of the features.

        Raises InvalidShape where they do not belong together, and for another task.
        """
        refuse_other(tensors, manifest, SCHEMA)
        head = head_of_task(part("head", tensors), manifest["head"], task)
        return cls(make_features(part("features", tensors), manifest["features"]), head)


def with_distance(look: Look, head: LinearHead, features: Float64[Array, " p"]) -> Look:
    """The look, with the distance of a head's features (p,) where it has none of its own."""
    if look.distance is not None:
        return look
    distances = head.distances(features[None])
    return replace(
        look, distance=float(distances[0]), distance_percentile=float(head.percentiles(distances)[0])
    )


def refuse_other(tensors: Mapping[str, Array], manifest: Mapping[str, Any], schema: int) -> None:
    """Raise InvalidShape for a model of another schema, and for tensors of another model."""
    if manifest.get("schema") != schema:
        raise InvalidShape(f"a model of schema {manifest.get('schema')}, not {schema}")
    refuse_mixed(tensors, manifest, "the model")


def refuse_task(manifest: Mapping[str, Any], task: Task) -> None:
    """Raise InvalidShape for a model of another task than `task`, by the manifest's."""
    if (made := manifest.get("task")) != (wanted := task.to_json()):
        raise InvalidShape(f"the model answers {made}, not {wanted}")


def head_of_task(tensors: Mapping[str, Array], manifest: Mapping[str, Any], task: Task) -> LinearHead:
    """A saved head. Raises InvalidShape for that of another task."""
    head = LinearHead.from_saved(tensors, manifest)
    if head.task != task:
        raise InvalidShape(f"the head answers {head.task}, not {task}")
    return head


def _looked_at(
    features: ScanFeatures, inputs: Inputs, scans: Int64, report: Report | None = None
) -> Float64[Array, "s p"]:
    """The features of some scans, each looked at once."""
    told = []
    for done, scan in enumerate(scans.tolist()):
        if report is not None:
            report(PHASE, done, len(scans))
        told.append(features(inputs.scans[scan]))
    return np.stack(told)
