"""`embed`: a volume becomes a tensor train, by C-PIC's cross-approximation of its encoded cubes."""

from __future__ import annotations

import time
from typing import Any, ClassVar

from pydantic import Field

from models.cpic.embed import EmbedConfig, Embedding, cube_size, embed, estimate
from models.cpic.encoder import ENCODERS
from models.cpic.fibres import SAMPLINGS
from models.tt.qtt import LAYOUTS, ORDERS
from storage.jobs import Artifact, Progress
from storage.volume import Volume
from workers.context import JobContext
from workers.jobs.base import Kind, Outcome, Parameters, Result
from workers.jobs.reading import ReadResult, cache_bytes, reading_of, recorded
from workers.memory import peak_bytes
from workers.packages import versions
from workers.scans import RecordedCubes, channels_of, intensities
from workers.schemas import choices, of_types

CORES = "cores.safetensors"
UNITS = {"sampling": "bonds", "adapting": "rounds", "certificate": "voxels"}
"""What the method counts in each of its phases."""


class EmbedParameters(Parameters):
    """How to embed; see `models.cpic.embed.EmbedConfig`."""

    encoder: str = Field(
        "identity",
        json_schema_extra=choices(ENCODERS),
        description="what is computed from the cube around a voxel",
    )
    n_dim: int = Field(16, ge=1, le=1024, description="features per voxel (identity: one per channel)")
    layout: str = Field(
        "tt",
        json_schema_extra=choices(LAYOUTS),
        description="modes of the train: tt, one per axis; qtt, one per digit (fewer cubes, larger error)",
    )
    order: str = Field("sequential", json_schema_extra=choices(ORDERS), description="order of qtt's modes")
    sampling: str = Field(
        "block",
        json_schema_extra=choices(SAMPLINGS),
        description="block: all features of a cube are used together; "
        "scalar: each number on its own, as in the paper (more cubes for the same)",
    )
    rank: int = Field(
        10, ge=1, le=512, description="highest rank of a bond between voxels: how much the result can hold"
    )
    oversampling: float = Field(
        2.0,
        ge=1,
        le=8,
        description="fibres looked at per bond, over the rank: 1 interpolates (for smooth features), "
        "more fits by least squares (for noise and edges); cubes grow with its square",
    )
    sweeps: int = Field(
        1, ge=1, le=20, description="passes over the bonds; oversampling does more for an error than a second"
    )
    tolerance: float | None = Field(
        None,
        gt=0,
        lt=1,
        json_schema_extra=of_types,
        description="error of an entry to aim at, over the largest entry seen: the ranks that this needs, up "
        "to rank, are found. For smooth features: noise needs more ranks than there are, and after reading "
        "many cubes the rank is used as given. null: as given at once",
    )
    held_out: int = Field(1000, ge=4, le=1_000_000, description="voxels that the certificate is measured on")
    confidence: float = Field(0.95, gt=0, lt=1, description="of the certificate's bounds")
    seed: int = Field(0, ge=0, lt=1 << 63, description="of every random choice: same seed, same cores")


class EmbedResult(ReadResult):
    """What was found, and what that took; the certificate's held-out cubes are among those read."""

    shape: list[int] = Field(description="voxels, (z, y, x)")
    channels: int
    spacing_mm: list[float] | None = Field(description="(z, y, x); null where the scan does not say")
    samples: int = Field(description="tensor entries looked at in all sweeps, with repetition")
    unique_samples: int
    unique_cubes: int = Field(description="distinct cubes encoded in all sweeps, without the held-out ones")
    cube_size: int = Field(description="edge of a cube, in voxels")
    ranks: list[int] = Field(description="of the inner bonds")
    sampling: str = Field(description="what was looked at together: block or scalar")
    oversampling: float | None = Field(description="fibres over rank; null where ranks were found")
    sweeps: int | None = Field(description="null where ranks were found for a tolerance")
    tolerance: float | None = Field(description="that ranks were looked for; null where they were given")
    converged: bool | None = Field(
        description="whether ranks were found for the tolerance; null where there is none"
    )
    set_sizes: list[int] = Field(
        description="fibres chosen at each bond of the modes that were searched (block: those of the voxels)"
    )
    certificate: dict[str, Any] = Field(description="errors on held-out cubes, with bounds")
    seconds: float
    peak_memory_bytes: int = Field(description="most resident memory of the job's process")
    volume_digest: str
    cores_digest: str = Field(description=f"sha-256 of the artifact {CORES}")
    packages: dict[str, str]
    seed: int
    device: str


class Embed(Kind[EmbedParameters]):
    """C-PIC's forward pass: sample, fit, certify."""

    name = "embed"
    version = "2"
    title = "Embed"
    description = (
        "Approximates the features of all voxels by a tensor train that looks at few cubes of the volume, "
        "and measures its error on cubes that were not used."
    )
    parameters = EmbedParameters
    result: ClassVar[type[Result]] = EmbedResult

    def memory_bytes(self, context: JobContext, parameters: EmbedParameters) -> int:
        """What the method needs, the cache of decoded chunks, and the chunks in flight."""
        stored = context.stored
        needed = estimate(stored.grid.shape, channels_of(stored), config_of(parameters)).memory_bytes
        return needed + cache_bytes(context)

    def run(self, context: JobContext, parameters: EmbedParameters) -> Outcome:
        """Embed the volume and write the cores. Raises CorruptVolume and all that `embed` raises."""
        began = time.perf_counter()
        volume = context.volume()
        with recorded(context, volume) as source:
            embedding = embed(
                source,
                config_of(parameters),
                intensities(volume.stored.statistics),
                device=context.device,
                report=lambda phase, done, total: context.report(progress(phase, done, total)),
            )
        manifest = {**embedding.manifest(), "volume_digest": volume.stored.digest}
        cores = context.artifacts.write_tensors(CORES, embedding.tensors(), manifest)
        seconds = time.perf_counter() - began
        return Outcome(_result(context, volume, source, embedding, cores, seconds), (cores,))


def config_of(parameters: EmbedParameters) -> EmbedConfig:
    """The method's settings. Raises InvalidConfig, naming the one that it refuses."""
    return EmbedConfig(**parameters.model_dump())


def progress(phase: str, done: int, total: int | None) -> Progress:
    """How far the method has come, with the unit of its phase."""
    return Progress(phase, done, total, UNITS.get(phase, ""))


def _result(
    context: JobContext,
    volume: Volume,
    source: RecordedCubes,
    embedding: Embedding,
    cores: Artifact,
    seconds: float,
) -> EmbedResult:
    stored, config = volume.stored, embedding.config
    given = not embedding.converged
    return EmbedResult(
        shape=list(stored.grid.shape),
        channels=source.channels,
        spacing_mm=None if stored.grid.spacing is None else list(stored.grid.spacing),
        samples=embedding.all_sweeps.samples,
        unique_samples=embedding.all_sweeps.unique_samples,
        unique_cubes=embedding.all_sweeps.unique_cubes,
        cube_size=cube_size(source.channels, config),
        **reading_of(context, volume, source),
        ranks=list(embedding.ranks),
        sampling=config.sampling,
        oversampling=config.oversampling if given else None,
        sweeps=config.sweeps if given else None,
        tolerance=config.tolerance,
        converged=embedding.converged,
        set_sizes=[
            max(len(J), len(K)) for J, K in zip(embedding.sets.left, embedding.sets.right, strict=True)
        ],
        certificate=embedding.certificate.to_json(),
        seconds=seconds,
        peak_memory_bytes=peak_bytes(),
        volume_digest=stored.digest,
        cores_digest=cores.sha256,
        packages=versions(),
        seed=config.seed,
        device=context.device,
    )
