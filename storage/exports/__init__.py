"""Volumes as files that other programs read, made piece by piece in bounded memory.

slabs      the finest level, frame after frame, a few planes at a time
nifti      NIfTI-1 and NIfTI-2, gzipped
dicom      single-frame instances, one for each plane (dicom_identity, _header, _values: what stands in them)
ome_zarr   the OME-Zarr store: with codecs that every reader has, or as it is
zips       the store as one zip (OME-NGFF, RFC-9), or other files
objects    objects of a store as they are, compared with the manifest
"""

from __future__ import annotations
