"""The kinds of jobs that a worker can do."""

from __future__ import annotations

from workers.jobs.base import AnyKind
from workers.jobs.complete import Complete
from workers.jobs.compress import Compress
from workers.jobs.compress_model import CompressModel
from workers.jobs.decompress import Decompress
from workers.jobs.denoise import Denoise
from workers.jobs.embed import Embed
from workers.jobs.evaluate import Evaluate
from workers.jobs.export import Export
from workers.jobs.ingest import Ingest
from workers.jobs.predict import Predict
from workers.jobs.train import Train

KINDS: tuple[AnyKind, ...] = (
    Ingest(),
    Embed(),
    Train(),
    Predict(),
    Evaluate(),
    CompressModel(),
    Denoise(),
    Complete(),
    Export(),
    Compress(),
    Decompress(),
)
