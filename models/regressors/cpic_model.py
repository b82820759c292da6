"""The model of recipes with a trained encoder: the encoder, a way to read scans, and a linear head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float64

from models.cpic.encoder import LearnedCpic
from models.errors import InvalidShape
from models.learning.cohort import Cohort, Inputs
from models.learning.linear import LinearHead
from models.learning.saved import digest, part, under
from models.learning.task import Task
from models.regressors.base import Look
from models.regressors.encoder_bound import certified_bound
from models.regressors.encoders import EncoderConfig
from models.regressors.linear_model import head_of_task, refuse_other, with_distance
from models.regressors.neural import load_weights, refuse_covariates, weights_of
from models.regressors.readouts import Readout, Seen
from models.regressors.settings import recipe_of
from models.training import History
from models.types import Array, CubeSource

SCHEMA = 2
"""2: encoders have a negative slope."""
BOUND = "encoder_bound"
"""What the certified bound is called, in manifests and beside certificates."""


@dataclass(frozen=True, eq=False)
class CpicModel:
    """An encoder, a readout and a head. `block` is what the head takes, `inner_errors` why."""

    config: EncoderConfig
    encoder: LearnedCpic
    readout: Readout
    head: LinearHead
    block: str
    inner_errors: Mapping[str, float]
    histories: Mapping[str, Mapping[str, Any]]
    _latest: dict[str, tuple[CubeSource, Seen]] = field(default_factory=dict)

    @classmethod
    def fitted(
        cls,
        config: EncoderConfig,
        encoder: LearnedCpic,
        readout: Readout,
        features: Float64[Array, "s p"],
        cohort: Cohort,
        task: Task,
        histories: Mapping[str, History],
        seed: int,
    ) -> Self:
        """With the head of the block that is offered; of several, of the one whose inner error is least."""
        inputs = cohort.inputs
        heads = {
            name: LinearHead.fit(
                features[inputs.scan_of, readout.blocks[name]],
                cohort.targets,
                cohort.row_patients,
                task,
                free=inputs.covariates,
                proportional=name in readout.proportional,
                seed=seed,
            )
            for name in readout.offered
        }
        errors = {name: head.choice.error for name, head in heads.items()}
        block = min(errors, key=lambda name: errors[name])
        told = {name: history.to_json() for name, history in histories.items()}
        return cls(config, encoder, readout, heads[block], block, errors, told)

    def predict(self, inputs: Inputs) -> Float64[Array, "n outputs"]:
        """See `Model`."""
        refuse_covariates(inputs, len(self.head.free_centre))
        answers = np.empty((len(inputs), self.head.task.outputs))
        for scan in np.unique(inputs.scan_of).tolist():
            rows = np.flatnonzero(inputs.scan_of == scan)
            features = self._features(inputs.scans[scan])
            answers[rows] = self.head.predict(
                np.repeat(features[None], len(rows), 0), inputs.covariates[rows]
            )
        return answers

    def look(self, scan: CubeSource, covariates: Float64[Array, " t"]) -> Look:
        """See `Model`."""
        seen = self._seen(scan)
        features, where = seen.features(), self.readout.blocks[self.block]
        gradient = np.zeros_like(features)
        gradient[where] = self.head.gradient(features[where], covariates)
        look = with_distance(self.readout.look_of(seen, gradient), self.head, features[where])
        if look.certificate is None:
            return look
        return replace(look, certificate={**look.certificate, **self._certified()})

    def tensors(self) -> dict[str, Array]:
        """See `Model`."""
        assert self.encoder.shift is not None
        assert self.encoder.scale is not None
        return {
            **under("encoder", weights_of(self.encoder.network)),
            "shift": self.encoder.shift.cpu().numpy(),
            "scale": self.encoder.scale.cpu().numpy(),
            **under("readout", self.readout.tensors()),
            **under("head", self.head.tensors()),
        }

    def manifest(self) -> dict[str, Any]:
        """See `Model`."""
        weights = sum(p.numel() for p in self.encoder.network.parameters())
        return {
            "schema": SCHEMA,
            "parameters": weights + self.head.parameters,
            "encoder": self.config.to_json(),
            **self._certified(),
            "channels": self.encoder.network.widths[0],
            "limit": self.encoder.limit,
            "readout": self.readout.manifest(),
            "head": self.head.manifest(),
            "block": self.block,
            "inner_errors": dict(self.inner_errors),
            "histories": {name: dict(history) for name, history in self.histories.items()},
            "digest": digest(self.tensors()),
        }

    @classmethod
    def from_saved(
        cls,
        encoder: LearnedCpic,
        readout: Readout,
        tensors: Mapping[str, Array],
        manifest: Mapping[str, Any],
        task: Task,
    ) -> Self:
        """What `tensors` and `manifest` gave, with its encoder and readout.

        Raises InvalidShape for a head of another task.
        """
        return cls(
            recipe_of(EncoderConfig, manifest["encoder"]),
            encoder,
            readout,
            head_of_task(part("head", tensors), manifest["head"], task),
            manifest["block"],
            manifest["inner_errors"],
            manifest["histories"],
        )

    def _certified(self) -> dict[str, float]:
        """How far features move with a scan, of an encoder that has a bound."""
        return {} if self.config.spectral_bound is None else {BOUND: certified_bound(self.encoder)}

    def _features(self, scan: CubeSource) -> Float64[Array, " p"]:
        return self._seen(scan).features()[self.readout.blocks[self.block]]

    def _seen(self, scan: CubeSource) -> Seen:
        """A look at a scan; the last one is kept, for `predict` and `look` are asked about one scan in turn.

        Raises InvalidShape for another number of channels than the training's.
        """
        kept = self._latest.get("scan")
        if kept is not None and kept[0] is scan:
            return kept[1]
        if scan.channels != (trained := self.encoder.network.widths[0]):
            raise InvalidShape(f"the scan has {scan.channels} channels, the training's had {trained}")
        seen = self.readout.see(scan)
        self._latest["scan"] = scan, seen
        return seen


def loaded_encoder(
    tensors: Mapping[str, Array], manifest: Mapping[str, Any], device: torch.device
) -> LearnedCpic:
    """The encoder that a model was saved with. Raises InvalidShape for a model that is not whole."""
    refuse_other(tensors, manifest, SCHEMA)
    plain = replace(recipe_of(EncoderConfig, manifest["encoder"]), spectral_bound=None)
    network = plain.network(int(manifest["channels"]), 0, device)
    load_weights(network, part("encoder", tensors))
    network.eval().requires_grad_(False)
    shift, scale = (torch.from_numpy(np.array(tensors[name])).to(device) for name in ("shift", "scale"))
    return LearnedCpic(network, shift, scale, float(manifest["limit"]))
