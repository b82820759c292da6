"""Features of tensor trains: principal components by the Gram matrix of anchor trains, kept centred.

With anchors T_1 ... T_K, M their mean, G_kl = <T_k, T_l> and H = 1 - 11^T / K, the eigenpairs HGH = U L U^T
give the orthonormal basis B_j = sum_k (H A)_kj T_k with A = U L^{-1/2} (Schölkopf et al., Nonlinear component
analysis, 1998; for trains no tensor is ever formed, and no rank is cut). The features of any train are

    f(x) = (<T_x - M, B_j>)_j = A^T H (g(x) - mean g),    g_k(x) = <T_k, T_x>,    mean g = G 1 / K,

which for the anchors themselves are U L^{1/2}. Training and inference use the same map, linear in T_x. Only
inner products enter, and so the gauge of a train's cores does not matter; anchors are kept right-orthogonal,
so that a bad gauge of T_x costs its condition number in accuracy, and not the square.

A Gram matrix loses half of the digits: a direction whose singular value is below 1e-8 of the norm of all
anchors (the mean included) is rounding error. `ENERGY_TOLERANCE` is well above that.

`ridge_features` are the alternative with a gradient through the basis.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.errors import InvalidConfig, InvalidShape
from models.tt.gram import gram
from models.tt.rounding import right_orthogonal
from models.tt.train import TensorTrain, stacked
from models.types import Array

ENERGY_TOLERANCE = 1e-12
"""Of an energy: less of it cannot be told from rounding errors of the inner products that it is made of."""
BELONGING_TOLERANCE = 1e-6
"""Relative: inner products of saved anchors, computed again, differ by no more."""
ARRAYS = ("coefficients", "mean_products", "energy", "origin")


@dataclass(frozen=True, eq=False)
class Basis:
    """Principal directions of anchor trains. Make one with `Basis.of`.

    `coefficients` (K, q) are H A: direction j is B_j = sum_k coefficients[k, j] T_k. `mean_products` (K,) are
    <T_k, M>. `energy` (q, q) is F^T F of the anchors' centred features F: the eigenvalues on its diagonal,
    largest first, until the basis is aligned. `total_energy` is the centred energy of all anchors, `origin`
    (q,) the features of M: zero until the basis is aligned. Directions without variance have zero
    coefficients, so that their features are exactly zero and the width stays q.
    """

    anchors: TensorTrain
    coefficients: Float64[Tensor, "k q"]
    mean_products: Float64[Tensor, " k"]
    energy: Float64[Tensor, "q q"]
    origin: Float64[Tensor, " q"]
    total_energy: float

    def __post_init__(self) -> None:
        (K,), q = self.anchors.batch, self.coefficients.shape[-1]
        expected = {"coefficients": (K, q), "mean_products": (K,), "energy": (q, q), "origin": (q,)}
        for name, shape in expected.items():
            tensor: Tensor = getattr(self, name)
            if tensor.shape != shape or tensor.dtype != torch.float64 or not bool(tensor.isfinite().all()):
                raise InvalidShape(
                    f"{name} of {K} anchors and {q} features must be finite float64 numbers {shape}, not "
                    f"{tensor.dtype} of shape {tuple(tensor.shape)}"
                )
        if not math.isfinite(self.total_energy):
            raise InvalidShape(f"total_energy = {self.total_energy}: must be finite")

    @classmethod
    def of(cls, anchors: TensorTrain, features: int) -> Basis:
        """The basis of a batch of anchors (K,), without their history.

        Raises InvalidShape for another number of batch axes or anchors that are not finite, InvalidConfig for
        less than one feature.
        """
        if features < 1:
            raise InvalidConfig("features", features, "at least 1")
        if len(anchors.batch) != 1:
            raise InvalidShape(f"anchors are a batch (K, ...), not of batch axes {anchors.batch}")
        anchors = right_orthogonal(anchors.detach())
        G = _symmetric(_finite_gram(anchors, anchors, "anchors"))
        centred = _symmetric(_doubly_centred(G))
        eigenvalues, U = torch.linalg.eigh(centred)
        kept = min(features, int((eigenvalues > ENERGY_TOLERANCE * G.trace()).sum()))
        eigenvalues, U = eigenvalues.flip(0)[:kept], _signed(U.flip(1)[:, :kept])
        A = U / eigenvalues.sqrt()
        absent = (0, features - kept)
        return cls(
            anchors=anchors,
            coefficients=torch.nn.functional.pad(A - A.mean(dim=0), absent).contiguous(),
            mean_products=G.mean(dim=1),
            energy=torch.diag(torch.nn.functional.pad(eigenvalues, absent)),
            origin=G.new_zeros(features),
            total_energy=float(centred.trace()) if kept else 0.0,
        )

    @property
    def width(self) -> int:
        """The number of features, q."""
        return self.coefficients.shape[1]

    @property
    def energies(self) -> Float64[Tensor, " q"]:
        """The anchors' centred energy along each direction; the eigenvalues, until aligned."""
        return self.energy.diagonal()

    @property
    def captured(self) -> float:
        """The share of the anchors' centred energy that the features have; 1 where there is none."""
        return min(1.0, float(self.energies.sum()) / self.total_energy) if self.total_energy else 1.0

    def leading(self, features: int) -> Basis:
        """The first directions alone, of a basis that was not aligned."""
        return replace(
            self,
            coefficients=self.coefficients[:, :features].contiguous(),
            energy=self.energy[:features, :features],
            origin=self.origin[:features],
        )

    def features(self, trains: TensorTrain, *, standardised: bool = False) -> Float64[Tensor, "b q"]:
        """f(x) of trains (B,), differentiable in them (linear; the anchors are constants).

        Standardised features have a mean square of 1 over the anchors, about `origin`. Raises InvalidShape
        for modes that are not the anchors', and for trains that are not finite.
        """
        f = self._coordinates(self._products(trains)) + self.origin
        return f * self._inverse_scales() if standardised else f

    def outside(self, trains: TensorTrain) -> Float64[Tensor, " b"]:
        """The energy outside of the basis, ||T_x - M||^2 - ||f||^2: what of a train no feature tells of.

        It says how far x is from all that the kept directions span. It is a difference of squares: below
        1e-12 ||T_x||^2 it is rounding, and it is never less than 0. Compare it with values of scans that
        were no anchors: those of the anchors, (1 - captured) total_energy / K on average, are smaller.
        """
        return self._outside_and_centred(trains)[0]

    def outside_share(self, trains: TensorTrain) -> Float64[Tensor, " b"]:
        """`outside` relative to ||T_x - M||^2, from 0 (within the basis) to 1 (orthogonal to it).

        0 for a train that is the mean, up to rounding.
        """
        outside, centred = self._outside_and_centred(trains)
        return (outside / torch.where(centred > 0, centred, 1.0)).clamp(max=1.0)

    def aligned_to(self, previous: Basis, *, keep_origin: bool = True) -> Basis:
        """This basis rotated onto an earlier one, so that a head trained on its features goes on.

        Orthogonal Procrustes: Q = argmin ||B Q - B_previous|| = U V^T, from the SVD of the cross-Gram matrix
        B^T B_previous = A^T H G_{new, old} H A_old. What is spanned, `captured` and `outside` stay as they
        are. With `keep_origin` features are counted from where they were counted before, and not from the
        new mean: then the features of an unchanged train move by what the spaces differ, and no more.
        Directions without variance stay zero. Raises InvalidShape for other modes or another width.
        """
        if self.width != previous.width:
            raise InvalidShape(f"a basis of {self.width} features cannot follow one of {previous.width}")
        cross = _finite_gram(self.anchors, previous.anchors, "anchors of both")
        rotation = self._rotation_onto(previous, self.coefficients.T @ cross @ previous.coefficients)
        energy = rotation.T @ self.energy @ rotation
        carries = self._carries(energy.diagonal())
        coefficients = self.coefficients @ rotation * carries
        origin = torch.zeros_like(self.origin)
        if keep_origin:
            moved = coefficients.T @ (self.mean_products - cross.mean(dim=1))
            origin = (moved + previous.origin) * carries
        return replace(
            self,
            coefficients=coefficients,
            energy=_symmetric(energy * carries * carries[:, None]),
            origin=origin,
        )

    def to(self, device: torch.device) -> Basis:
        """The same basis on a device."""
        anchors = TensorTrain(tuple(core.to(device) for core in self.anchors.cores))
        return replace(self, anchors=anchors, **{name: getattr(self, name).to(device) for name in ARRAYS})

    def tensors(self) -> dict[str, Array]:
        """Everything that is an array, by name, in float64: for a checkpoint."""
        arrays = {f"anchor.{k}": core for k, core in enumerate(self.anchors.cores)}
        arrays |= {name: getattr(self, name) for name in ARRAYS}
        return {name: array.cpu().numpy() for name, array in arrays.items()}

    def manifest(self) -> dict[str, Any]:
        """Everything else, as JSON."""
        return {
            "anchors": self.anchors.batch[0],
            "features": self.width,
            "modes": list(self.anchors.modes),
            "ranks": list(self.anchors.ranks),
            "total_energy": self.total_energy,
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Array], manifest: Mapping[str, Any]) -> Basis:
        """What `tensors` and `manifest` gave. Raises InvalidShape when they do not belong together.

        Beside the shapes, the first anchor's inner products are computed again.
        """
        cores = [f"anchor.{k}" for k in range(len(manifest["modes"]))]
        if missing := [name for name in (*cores, *ARRAYS) if name not in tensors]:
            raise InvalidShape(f"the basis lacks {', '.join(missing)}")
        anchors = TensorTrain(tuple(torch.from_numpy(np.array(tensors[name])) for name in cores))
        arrays = {name: torch.from_numpy(np.array(tensors[name])) for name in ARRAYS}
        basis = cls(anchors=anchors, total_energy=float(manifest["total_energy"]), **arrays)
        for name, value in basis.manifest().items():
            if value != manifest[name]:
                raise InvalidShape(f"{name}: the tensors have {value}, the manifest {manifest[name]}")
        products = _finite_gram(anchors[:1], anchors, "anchors")[0]
        error = float((products.mean() - basis.mean_products[0]).abs())
        if error > BELONGING_TOLERANCE * float(products.abs().max()):
            raise InvalidShape("mean_products are not those of these anchors: two bases are mixed")
        return basis

    def _products(self, trains: TensorTrain) -> Float64[Tensor, "b k"]:
        """g(x); of right-orthogonal trains, if no gradient is asked for: QR has none at a lower rank."""
        if not any(core.requires_grad for core in trains.cores):
            trains = right_orthogonal(trains)
        return _finite_gram(trains, self.anchors, "trains and anchors")

    def _coordinates(self, g: Float64[Tensor, "b k"]) -> Float64[Tensor, "b q"]:
        """<T_x - M, B_j>: the coefficients' columns sum to zero, which is the H of the formula."""
        return (g - self.mean_products) @ self.coefficients

    def _inverse_scales(self) -> Float64[Tensor, " q"]:
        """1 / standard deviation over the anchors; 0 where there is none."""
        carries = self._carries(self.energies)
        deviations = (self.energies / self.anchors.batch[0]).sqrt()
        return torch.where(carries > 0, 1 / torch.where(carries > 0, deviations, 1.0), 0.0)

    def _carries(self, energies: Float64[Tensor, " q"]) -> Float64[Tensor, " q"]:
        """1 for directions with variance, 0 for others."""
        return (energies > ENERGY_TOLERANCE * self.total_energy).to(energies.dtype)

    def _outside_and_centred(
        self, trains: TensorTrain
    ) -> tuple[Float64[Tensor, " b"], Float64[Tensor, " b"]]:
        """(||T_x - M||^2 - ||f||^2, ||T_x - M||^2); what is rounding error of ||T_x||^2 is zero in both."""
        g = self._products(trains)
        energy = trains.inner(trains)
        centred = energy - 2 * g.mean(dim=1) + self.mean_products.mean()
        outside = centred - self._coordinates(g).square().sum(dim=1)
        rounding = ENERGY_TOLERANCE * energy
        return torch.where(outside > rounding, outside, 0.0), torch.where(centred > rounding, centred, 0.0)

    def _rotation_onto(self, previous: Basis, cross: Float64[Tensor, "q q"]) -> Float64[Tensor, "q q"]:
        """U V^T on the leading directions that either basis has, the identity on the others."""
        used = max(_last_used(self.energies), _last_used(previous.energies))
        U, _, Vh = torch.linalg.svd(cross[:used, :used])
        rotation = torch.eye(self.width, dtype=cross.dtype, device=cross.device)
        rotation[:used, :used] = U @ Vh
        return rotation


@dataclass(frozen=True)
class AnchorBank:
    """At most `capacity` trains by name, the latest computed last. A change makes a new bank."""

    capacity: int
    trains: Mapping[str, TensorTrain] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.capacity < 1:
            raise InvalidConfig("capacity", self.capacity, "at least 1")

    def updated(self, trains: Mapping[str, TensorTrain]) -> AnchorBank:
        """The bank with these single trains, detached; one of a name that is there already replaces it.

        When there are more than the capacity, those computed longest ago leave.
        """
        kept = {name: train for name, train in self.trains.items() if name not in trains}
        latest = list((kept | {name: train.detach() for name, train in trains.items()}).items())
        return replace(self, trains=dict(latest[-self.capacity :]))

    def anchors(self) -> TensorTrain:
        """All trains as one batch. Raises InvalidShape when there is none, or where modes differ."""
        return stacked(list(self.trains.values()))


def ridge_features(
    trains: TensorTrain, anchors: TensorTrain, mu: float, *, centred: bool = True
) -> Float64[Tensor, "b k"]:
    """F = G_xa (G_aa + mu)^{-1/2}, differentiable in the trains and in the anchors: (B, K), one per anchor.

    Nothing is truncated, so that no eigenvalue's derivative divides by a gap: the derivative of the inverse
    root is by divided differences (Daleckii & Krein 1965; Higham, Functions of Matrices, 2008, Theorem 3.11)
    and finite for eigenvalues that are equal or zero. `mu` > 0 has the unit of an energy. With `centred` both
    Gram matrices are those of the trains minus the anchors' mean.
    Raises InvalidConfig for mu, InvalidShape for trains that do not fit or are not finite.
    """
    if not (mu > 0 and math.isfinite(mu)):
        raise InvalidConfig("mu", mu, "finite and above 0")
    G_xa = _finite_gram(trains, anchors, "trains and anchors")
    G_aa = _symmetric(_finite_gram(anchors, anchors, "anchors"))
    if centred:
        G_xa = G_xa - G_aa.mean(dim=1)
        G_xa = G_xa - G_xa.mean(dim=1, keepdim=True)
        G_aa = _symmetric(_doubly_centred(G_aa))
    return G_xa @ inverse_root(G_aa, mu)


def inverse_root(G: Float64[Tensor, "k k"], mu: float) -> Float64[Tensor, "k k"]:
    """(G + mu)^{-1/2} of a symmetric matrix whose eigenvalues below zero are rounding errors, for mu > 0."""
    root: Tensor = _InverseRoot.apply(G, mu)  # type: ignore[no-untyped-call]
    return root


class _InverseRoot(torch.autograd.Function):
    """With s = (lambda + mu)^{1/2}, the divided differences of s^{-1} are -1 / (s_i s_j (s_i + s_j))."""

    @staticmethod
    def forward(ctx: Any, G: Tensor, mu: float) -> Tensor:
        eigenvalues, U = torch.linalg.eigh(G)
        s = (eigenvalues.clamp(min=0) + mu).sqrt()
        ctx.save_for_backward(s, U)
        root: Tensor = U / s @ U.T
        return root

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        s, U = ctx.saved_tensors
        differences = -1 / (s[:, None] * s * (s[:, None] + s))
        return _symmetric(U @ (differences * (U.T @ gradient @ U)) @ U.T), None


def _finite_gram(a: TensorTrain, b: TensorTrain, what: str) -> Float64[Tensor, "k l"]:
    """The Gram matrix. Raises InvalidShape, naming the pair, where it is not finite."""
    G = gram(a, b)
    if not bool((finite := G.isfinite()).all()):
        k, m = divmod(int((~finite).flatten().int().argmax()), G.shape[1])
        raise InvalidShape(
            f"the inner product of numbers {k} and {m} of the {what} is {float(G[k, m])}: cores must be "
            "finite, and norms far below 1e154"
        )
    return G


def _doubly_centred(G: Float64[Tensor, "k k"]) -> Float64[Tensor, "k k"]:
    """HGH."""
    return G - G.mean(dim=0) - G.mean(dim=1, keepdim=True) + G.mean()


def _symmetric(G: Float64[Tensor, "k k"]) -> Float64[Tensor, "k k"]:
    return (G + G.T) / 2


def _signed(U: Float64[Tensor, "k q"]) -> Float64[Tensor, "k q"]:
    """Eigenvectors with a positive largest entry: not the sign that rounding errors gave."""
    largest = U.gather(0, U.abs().argmax(dim=0, keepdim=True))
    return U * largest.sign()


def _last_used(energies: Float64[Tensor, " q"]) -> int:
    """The number of leading directions after which all are zero."""
    used = energies.nonzero()
    return int(used[-1]) + 1 if len(used) else 0
