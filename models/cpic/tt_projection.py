"""Features of tensor trains the paper's way: one train of all trains, and its SVD at the first bond.

The trains T_1 ... T_K are concatenated along a new first mode (figure 3 of the paper): after a first core
1 x K x K come the trains' cores as blocks on a diagonal. Right-orthogonal, all weight is in the first core,
whose SVD U S V^T gives features U S, and orthonormal basis trains V^T C_1 ... C_d. With H = 1 - 11^T / K for
the first core the trains are centred.

Cutting that bond alone is principal component analysis, as in `models.cpic.projection` by the Gram matrix but
without the loss of half the digits, at O(d n (K r)^3). The released code cuts every bond to the number of
features (`max_rank`), and with that loses energy that the features could have.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from models.errors import InvalidConfig, InvalidShape
from models.tt.gram import gram
from models.tt.rounding import right_orthogonal, rounded
from models.tt.train import TensorTrain

DIRECTION_TOLERANCE = 1e-12
"""Of the norm of all trains: a direction with a smaller singular value is rounding error."""


@dataclass(frozen=True, eq=False)
class TrainBasis:
    """Orthonormal basis trains (q,). Make them with `TrainBasis.of`.

    `mean_products` (q,) are <M, B_j>: zeros where nothing was centred. `singular_values` (q,) are those of
    the features, `total_energy` is that of the (centred) anchors. A direction without variance is a train of
    zeros.
    """

    trains: TensorTrain
    mean_products: Float64[Tensor, " q"]
    singular_values: Float64[Tensor, " q"]
    total_energy: float

    @classmethod
    def of(
        cls,
        anchors: TensorTrain,
        features: int,
        *,
        centred: bool = True,
        eps: float = 1e-12,
        max_rank: int | None = None,
    ) -> TrainBasis:
        """The basis of a batch of anchors (K,), without their history; other bonds are cut by `eps`.

        `max_rank` cuts all bonds before, as the released code does with `features`.
        Raises InvalidShape for other than one batch axis, InvalidConfig for less than one feature.
        """
        if features < 1:
            raise InvalidConfig("features", features, "at least 1")
        anchors = anchors.detach()
        stack = right_orthogonal(concatenated(anchors, centred=centred))
        energy = float(stack.cores[0].square().sum())
        norm = float(anchors.inner(anchors).sum().sqrt())
        if max_rank is not None:
            stack = right_orthogonal(rounded(stack, max_rank=max_rank))
        _, singular_values, Vh = torch.linalg.svd(stack.cores[0][0], full_matrices=False)
        kept = min(features, int((singular_values > DIRECTION_TOLERANCE * norm).sum()))
        absent = features - kept
        first = torch.nn.functional.pad(Vh[:kept], (0, 0, 0, absent))
        trains = unconcatenated(rounded(TensorTrain((first[None], *stack.cores[1:])), eps=eps))
        mean_products = gram(trains, anchors).mean(dim=1) if centred else first.new_zeros(features)
        return cls(
            trains=trains,
            mean_products=mean_products,
            singular_values=torch.nn.functional.pad(singular_values[:kept], (0, absent)),
            total_energy=energy if kept else 0.0,
        )

    @property
    def captured(self) -> float:
        """The share of the anchors' energy that the features have; 1 where there is none."""
        kept = float(self.singular_values.square().sum())
        return min(1.0, kept / self.total_energy) if self.total_energy else 1.0

    def features(self, trains: TensorTrain) -> Float64[Tensor, "b q"]:
        """<T_x - M, B_j> of trains (B,), differentiable in them."""
        return gram(trains, self.trains) - self.mean_products


def concatenated(trains: TensorTrain, *, centred: bool = False) -> TensorTrain:
    """A batch of trains (K,) as one train of modes (K, n_1 ... n_d) and ranks (K, K r_1, ..., K r_{d-1}).

    Centred, its slices are T_k - M. Raises InvalidShape for other than one batch axis.
    """
    if len(trains.batch) != 1:
        raise InvalidShape(f"a batch (K, ...) can be concatenated, not batch axes {trains.batch}")
    (K,) = trains.batch
    first = torch.eye(K, dtype=torch.float64, device=trains.cores[0].device)
    blocks = [_block_diagonal(core) for core in trains.cores[:-1]]
    last = trains.cores[-1].reshape(-1, trains.modes[-1], 1)
    return TensorTrain(((first - 1 / K if centred else first)[None], *blocks, last))


def unconcatenated(train: TensorTrain) -> TensorTrain:
    """The slices along the first mode, as a batch of trains; other cores are shared. Needs two modes."""
    first, second, *others = train.cores
    mine = torch.einsum("qa,anb->qnb", first[0], second)[:, None]
    return TensorTrain((mine, *(core.expand(len(mine), *core.shape) for core in others)))


def _block_diagonal(cores: Float64[Tensor, "k r n s"]) -> Float64[Tensor, "kr n ks"]:
    K, before, n, after = cores.shape
    blocks = cores.new_zeros(K, before, n, K, after)
    each = torch.arange(K, device=cores.device)
    blocks[each, :, :, each] = cores
    return blocks.reshape(K * before, n, K * after)
