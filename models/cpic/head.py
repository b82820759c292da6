"""The paper's heads: a small perceptron on a volume's features, with tabular covariates beside them or not.

Features -> 100 -> 20 -> 3 with ReLU, and batch normalisation before it where asked for (the paper's brain
cohort has it, its lung cohort has not). Covariates go through 1 -> 500 -> 100 with ReLU, and stand beside the
features. In training Gaussian noise is added to that branch's output. The released code adds it in inference
too, so that a prediction is a matter of chance: a defect, not repeated here.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.errors import InvalidConfig, InvalidShape

HIDDEN = (100, 20)
OUTPUTS = 3
COVARIATE_WIDTHS = (500, 100)
NOISE = 0.2
"""Standard deviation of the noise on the covariates' branch."""


class Head(nn.Module):
    """Features (B, q), and covariates (B, t) where t > 0, to outputs (B, 3). See the module's text.

    Weights are drawn from `seed` alone (He normal, biases zero), and so is the noise of training, whose state
    is part of `state_dict`: a training that goes on from there draws what it would have drawn. Torch's own
    random state is neither read nor changed. Raises InvalidConfig for sizes below 1.
    """

    def __init__(
        self,
        features: int,
        seed: int,
        *,
        outputs: int = OUTPUTS,
        hidden: Sequence[int] = HIDDEN,
        covariates: int = 0,
        batch_norm: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        for setting, value in (
            ("features", features),
            ("outputs", outputs),
            ("hidden", min(hidden, default=1)),
        ):
            if value < 1:
                raise InvalidConfig(setting, value, "at least 1")
        if covariates < 0:
            raise InvalidConfig("covariates", covariates, "at least 0")
        self._features, self._covariates, self._dtype = features, covariates, dtype
        self._random = torch.Generator().manual_seed(seed)
        self.branch = self._perceptron((covariates, *COVARIATE_WIDTHS)) if covariates else None
        beside = COVARIATE_WIDTHS[-1] if covariates else 0
        widths = (features + beside, *hidden)
        self.body = self._perceptron(widths, batch_norm=batch_norm)
        self.outputs = self._linear(widths[-1], outputs)

    def forward(
        self, features: Float[Tensor, "b q"], covariates: Float[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b o"]:
        """Outputs of a batch.

        Raises InvalidShape for other widths, covariates that are missing or not asked for, values that are
        not finite (naming row and column), and a training batch of one row with batch normalisation.
        """
        inputs = self._checked("features", features, self._features)
        if (covariates is None) != (self.branch is None):
            raise InvalidShape(f"this head takes {self._covariates} covariates")
        if covariates is not None and self.branch is not None:
            told = self.branch(self._checked("covariates", covariates, self._covariates))
            if len(told) != len(inputs):
                raise InvalidShape(f"{len(inputs)} rows of features, but {len(told)} of covariates")
            inputs = torch.cat([inputs, self._noisy(told) if self.training else told], dim=1)
        if self.training and len(inputs) == 1 and any(isinstance(m, nn.BatchNorm1d) for m in self.body):
            raise InvalidShape("batch normalisation cannot train on one row: give batches of two or more")
        return self.outputs(self.body(inputs))  # type: ignore[no-any-return]

    def get_extra_state(self) -> Tensor:
        """The state of the noise."""
        return self._random.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Go on with the noise from a state that was saved."""
        self._random.set_state(state.cpu())

    def _noisy(self, values: Tensor) -> Tensor:
        drawn = torch.randn(values.shape, generator=self._random, dtype=self._dtype)
        return values + NOISE * drawn.to(values.device)

    def _checked(self, name: str, values: Tensor, width: int) -> Tensor:
        """The values in the head's precision; of the right shape, and finite in it."""
        if values.ndim != 2 or values.shape[1] != width:
            raise InvalidShape(f"{name} must be (rows, {width}), not {tuple(values.shape)}")
        values = values.to(self._dtype)
        if not bool((finite := values.isfinite()).all()):
            row, column = divmod(int((~finite).flatten().int().argmax()), width)
            raise InvalidShape(f"{name}: column {column} of row {row} is {float(values[row, column])}")
        return values

    def _perceptron(self, widths: Sequence[int], *, batch_norm: bool = False) -> nn.Sequential:
        """Linear layers, each with batch normalisation where asked for, and ReLU."""
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers.append(self._linear(before, after))
            if batch_norm:
                layers.append(nn.BatchNorm1d(after, dtype=self._dtype))
            layers.append(nn.ReLU())
        return nn.Sequential(*layers)

    def _linear(self, before: int, after: int) -> nn.Linear:
        """A layer with weights of our own: torch's way would draw from its global state."""
        linear: nn.Linear = nn.utils.skip_init(nn.Linear, before, after, dtype=self._dtype)  # type: ignore[no-untyped-call]
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu", generator=self._random)
        nn.init.zeros_(linear.bias)
        return linear
