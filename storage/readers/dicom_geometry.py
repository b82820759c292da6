"""Planes to a grid: sorted along the slice normal, split into frames, every irregularity named.

The slice normal is row x column direction (PS3.3 C.7.6.2.1.1). The affine maps (column, row, slice) to RAS+
mm; its third column is the mean step from plane to plane, so that a tilted gantry gives a sheared affine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from storage.errors import InvalidScan
from storage.grid import VoxelGrid
from storage.readers.base import Frames
from storage.readers.dicom_instance import Plane

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SAME_PLACE_MM = 1e-3
PARALLEL = 1e-3
"""Largest difference of direction cosines between parallel slices."""
REGULAR = 0.01
"""Largest departure of a plane from a regular grid, as a share of the slice distance."""
SHEAR_DEGREES = 0.5


@dataclass(frozen=True)
class Stack:
    """Planes in the order of delivery: `planes[frame][z]`."""

    grid: VoxelGrid
    planes: list[list[Plane]]
    frames: Frames | None
    warnings: list[str]
    metadata: dict[str, Any] = field(default_factory=dict)


def arrange(planes: Sequence[Plane]) -> Stack:
    """The stack that the planes of one series make. Raises InvalidScan where they make none, or several."""
    _check_sizes(planes)
    placed = [plane for plane in planes if plane.position and plane.orientation and plane.spacing]
    if not placed:
        return _by_number(planes)
    if len(placed) < len(planes):
        raise InvalidScan(
            f"{len(planes) - len(placed)} of {len(planes)} slices have no position, orientation or spacing; "
            "send slices with complete headers"
        )
    normal = _normal(placed)
    groups = _by_position(placed, normal)
    columns, frames, warnings = _split_frames(groups)
    stack = [list(column) for column in zip(*columns, strict=True)]
    affine, notes, metadata = _affine(stack[0], normal)
    rows, across = stack[0][0].size
    shape = (len(groups), rows, across)
    grid = VoxelGrid(shape) if affine is None else VoxelGrid.from_affine(shape, affine)
    return Stack(grid, stack, frames, warnings + notes, metadata)


def _check_sizes(planes: Sequence[Plane]) -> None:
    sizes = Counter(plane.size for plane in planes)
    if len(sizes) == 1:
        return
    usual = sizes.most_common(1)[0][0]
    odd = next(plane for plane in planes if plane.size != usual)
    raise InvalidScan(
        f"slice {odd.name} has {odd.size[0]} x {odd.size[1]} pixels among slices of {usual[0]} x {usual[1]}"
    )


def _by_number(planes: Sequence[Plane]) -> Stack:
    """Without geometry: one volume in the order of InstanceNumber, without millimetres."""
    ordered = sorted(planes, key=lambda plane: (plane.instance.number, plane.frame, plane.tile or 0))
    rows, columns = ordered[0].size
    warning = "voxel size unknown: slices without position, in the order of InstanceNumber; nothing is in mm"
    return Stack(VoxelGrid((len(ordered), rows, columns)), [ordered], None, [warning])


def _normal(planes: Sequence[Plane]) -> NDArray[np.float64]:
    """Row x column direction. Raises InvalidScan unless all planes are parallel and equally spaced."""
    first = planes[0]
    orientations = np.array([plane.orientation for plane in planes])
    turned = np.abs(orientations - orientations[0]).max(axis=1) > PARALLEL
    if turned.any():
        odd = planes[int(np.argmax(turned))]
        raise InvalidScan(
            f"slices are not parallel: {odd.name} and {first.name} differ; send one stack at a time"
        )
    spacings = np.array([plane.spacing for plane in planes])
    if (spacings <= 0).any() or not np.allclose(spacings, spacings[0], rtol=1e-3, atol=0):
        raise InvalidScan(
            f"pixel spacings differ or are not positive: {sorted(set(map(tuple, spacings.tolist())))}"
        )
    normal = np.cross(orientations[0][:3], orientations[0][3:])
    length = float(np.linalg.norm(normal))
    if abs(length - 1) > 0.01:
        raise InvalidScan(f"row and column directions {first.orientation} are not perpendicular unit vectors")
    return normal / length


def _by_position(planes: Sequence[Plane], normal: NDArray[np.float64]) -> list[list[Plane]]:
    """Planes grouped by their place along the normal, in ascending order."""
    places = np.array([plane.position for plane in planes]) @ normal
    groups: list[list[Plane]] = []
    last = -np.inf
    for index in np.argsort(places, kind="stable"):
        if places[index] - last > SAME_PLACE_MM:
            groups.append([])
        groups[-1].append(planes[index])
        last = places[index]
    return groups


def _split_frames(groups: list[list[Plane]]) -> tuple[list[list[Plane]], Frames | None, list[str]]:
    """Each position's planes in the order of frames, and what the frames are.

    Raises InvalidScan when positions have different numbers of slices, or slices that nothing tells apart.
    """
    counts = Counter(len(group) for group in groups)
    if len(counts) > 1:
        usual = counts.most_common(1)[0][0]
        odd = [group for group in groups if len(group) != usual]
        raise InvalidScan(
            f"{len(odd)} of {len(groups)} positions have {len(odd[0])} different slices, the others {usual} "
            f"(ambiguous, or an incomplete 4-D series), such as {odd[0][0].name}"
        )
    count = len(groups[0])
    ordered = [sorted(group, key=_frame_key) for group in groups]
    if count == 1:
        return ordered, None, []
    for group in ordered:
        if len({_frame_key(plane) for plane in group}) < count:
            raise InvalidScan(
                f"each position has {count} slices that nothing tells apart, such as {group[0].name}"
            )
    axis, warnings = _frame_axis(ordered)
    step = ordered[0][0].instance.step_s if axis == "t" else None
    return ordered, Frames(axis, count, step), warnings


def _frame_key(plane: Plane) -> tuple[Any, ...]:
    return (*plane.times.values(), *plane.kinds.values(), plane.instance.number, plane.frame)


def _frame_axis(groups: list[list[Plane]]) -> tuple[Literal["t", "c"], list[str]]:
    """Time when only marks of time tell the frames apart, else channels; with a word where unclear."""
    group = groups[0]
    kinds = [name for name in group[0].kinds if len({plane.kinds[name] for plane in group}) > 1]
    times = [name for name in group[0].times if len({plane.times[name] for plane in group}) > 1]
    if kinds:
        return "c", [f"{len(group)} frames differ in {' and '.join([*kinds, *times])}: they became channels"]
    if times or group[0].instance.temporal_positions == len(group):
        return "t", []
    return "c", [
        f"only InstanceNumber tells {len(group)} slices at each position apart: they became channels"
    ]


def _affine(
    planes: list[Plane], normal: NDArray[np.float64]
) -> tuple[NDArray[np.float64] | None, list[str], dict[str, Any]]:
    """(affine or None, warnings, metadata) of one frame's planes in order."""
    positions = np.array([plane.position for plane in planes])
    step, warnings, metadata = _step(planes, positions, normal)
    if step is None:
        return None, warnings, metadata
    first = planes[0]
    assert first.orientation is not None
    assert first.spacing is not None
    affine = np.eye(4)
    affine[:3, 0] = np.array(first.orientation[:3]) * first.spacing[1]
    affine[:3, 1] = np.array(first.orientation[3:]) * first.spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = positions[0]
    return LPS_TO_RAS @ affine, warnings, metadata


def _step(
    planes: list[Plane], positions: NDArray[np.float64], normal: NDArray[np.float64]
) -> tuple[NDArray[np.float64] | None, list[str], dict[str, Any]]:
    """The mean vector from plane to plane; of a single slice, its thickness along the normal."""
    if len(planes) == 1:
        if planes[0].thickness is None:
            return None, ["voxel size unknown: a single slice without a thickness; nothing is in mm"], {}
        return normal * planes[0].thickness, [], {}
    _check_gaps(planes, np.diff(positions @ normal))
    step = (positions[-1] - positions[0]) / (len(planes) - 1)
    expected = positions[0] + np.arange(len(planes))[:, None] * step
    distance = float(np.linalg.norm(step))
    warnings, metadata = [], {}
    if float(np.linalg.norm(positions - expected, axis=1).max()) > REGULAR * distance:
        gaps = np.linalg.norm(np.diff(positions, axis=0), axis=1)
        warnings.append(
            f"slices are not evenly spaced: gaps of {gaps.min():.4g} to {gaps.max():.4g} mm; the affine uses "
            f"their mean of {distance:.4g} mm, so lengths along z are approximate (positions in the metadata)"
        )
        metadata["slice_positions_lps_mm"] = positions.tolist()
    tilt = float(np.degrees(np.arccos(min(1.0, float(step @ normal) / distance))))
    if tilt > SHEAR_DEGREES:
        warnings.append(
            f"the stack leans {tilt:.1f} degrees off the slice normal (gantry tilt): the affine is sheared"
        )
    return step, warnings, metadata


def _check_gaps(planes: list[Plane], gaps: NDArray[np.float64]) -> None:
    """Refuse a stack in which a slice is missing: a gap close to a multiple of the median gap."""
    median = float(np.median(gaps))
    multiples = gaps / median
    missing = (np.round(multiples) >= 2) & (np.abs(multiples - np.round(multiples)) < 0.1)
    if missing.any():
        where = int(np.argmax(missing))
        raise InvalidScan(
            f"a slice is missing: a gap of {gaps[where]:g} mm among gaps of {median:g} mm, between "
            f"{planes[where].name} and {planes[where + 1].name}; send the whole series"
        )
