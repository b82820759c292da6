"""Compressors of volumes behind one protocol, by name.

    frame     bytes that are complete in themselves, with a digest
    base      the protocol, and how a quality is set
    fit       the setting for a ratio, a PSNR or a bound
    report    ratio, PSNR, SSIM and largest error of what was decoded
    putt      blocks of integer trains
    factors   blocks as trains or Tucker tensors of float32
    zfp       with a bound
    slices    JPEG 2000 and JPEG XL, with and without loss
    plain     blosc and zstd: without loss

Peers' libraries are imported when they are used: `pip install 'tomotrain[peers]'`.
"""

from __future__ import annotations

from storage.compressors.base import Compressor, MissingPeer, Setting, UnsuitableValues
from storage.compressors.factors import TtSvd, Tucker
from storage.compressors.fit import Fitted, UnreachableTarget, fitted
from storage.compressors.frame import Array, DamagedBytes, NewerFormat, opened
from storage.compressors.plain import BloscZstd, Zstandard
from storage.compressors.putt import Putt
from storage.compressors.report import Report, reported
from storage.compressors.slices import Jpeg2000, Jpeg2000Lossless, JpegXl, JpegXlLossless
from storage.compressors.zfp import Zfp

__all__ = [
    "COMPRESSORS",
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


def decompress(data: bytes) -> Array:
    """The values, whichever compressor wrote the bytes. Raises DamagedBytes and NewerFormat, and ValueError
    for a compressor that is not here.
    """
    name = opened(data).compressor
    if name not in COMPRESSORS:
        raise ValueError(f"{name!r} wrote these bytes; known are {', '.join(COMPRESSORS)}")
    return COMPRESSORS[name].decompress(data)
