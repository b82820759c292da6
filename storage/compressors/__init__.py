"""Compressors of volumes behind one protocol, by name.

    frame     bytes that are complete in themselves, with a digest
    base      the protocol, and how a quality is set
    goals     what is wanted: a ratio, a PSNR or a bound
    search    the setting that meets a goal
    fit       a volume by that setting
    mosaic    a part of a large volume that it is searched on first
    sampled   the setting for a volume that is too large to be tried, by a sample of its tiles
    ranking   who compresses best for a goal, and who may
    report    ratio, PSNR, SSIM and largest error of what was decoded
    putt      blocks of integer trains
    wavelet   blocks of wavelet coefficients
    factors   blocks as trains or Tucker tensors of float32
    zfp       with a bound
    slices    JPEG 2000 and JPEG XL, with and without loss
    plain     blosc and zstd: without loss
    temporal  scans over time: `TEMPORAL`, a tensor core of the time axis before wavelets
    bounded   integers with a bound on every voxel: `BOUNDED`, which chooses among trains and lossless peers
    auto      whoever writes the smallest file for a target: `AUTO`

Peers' libraries are imported when they are used: `pip install 'tomotrain[peers]'`.
"""

from __future__ import annotations

from storage.compressors.auto import Auto
from storage.compressors.base import Compressor, MissingPeer, Setting, UnsuitableValues
from storage.compressors.bounded import Bounded
from storage.compressors.factors import TtSvd, Tucker
from storage.compressors.fit import Fitted, UnreachableTarget, fitted
from storage.compressors.frame import Array, DamagedBytes, NewerFormat, opened
from storage.compressors.plain import BloscZstd, Zstandard
from storage.compressors.putt import Putt
from storage.compressors.report import Report, reported
from storage.compressors.slices import Jpeg2000, Jpeg2000Lossless, JpegXl, JpegXlLossless
from storage.compressors.temporal import SPATIAL, Temporal
from storage.compressors.wavelet import Wavelet
from storage.compressors.zfp import Zfp

__all__ = [
    "AUTO",
    "BOUNDED",
    "COMPRESSORS",
    "TEMPORAL",
    "Compressor",
    "DamagedBytes",
    "Fitted",
    "MissingPeer",
    "NewerFormat",
    "Report",
    "Setting",
    "UnreachableTarget",
    "UnsuitableValues",
    "decompress",
    "fitted",
    "reported",
]

_ALL: tuple[Compressor, ...] = (
    Putt(),
    Wavelet(),
    TtSvd(),
    Tucker(),
    Zfp(),
    Jpeg2000(),
    JpegXl(),
    BloscZstd(),
    Zstandard(),
    Jpeg2000Lossless(),
    JpegXlLossless(),
)
COMPRESSORS: dict[str, Compressor] = {one.name: one for one in _ALL}
BOUNDED, TEMPORAL = Bounded(), Temporal()
AUTO = Auto(_ALL, tuple(Temporal(one) for one in SPATIAL), BOUNDED)
_READERS: dict[str, Compressor] = {**COMPRESSORS, BOUNDED.name: BOUNDED, TEMPORAL.name: TEMPORAL}


def decompress(data: bytes) -> Array:
    """The values, whichever compressor wrote the bytes. Raises DamagedBytes and NewerFormat, and ValueError
    for a compressor that is not here.
    """
    name = opened(data).compressor
    if name not in _READERS:
        raise ValueError(f"{name!r} wrote these bytes; known are {', '.join(_READERS)}")
    return _READERS[name].decompress(data)
