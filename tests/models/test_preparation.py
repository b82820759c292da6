"""Preparation: any scan on one grid and one scale, through boxes, to the same bits whichever boxes."""

from __future__ import annotations

import json
from itertools import permutations, product
from typing import Any

import numpy as np
import pytest
from model_fields import Array, ArraySource, body

from models.errors import InvalidConfig, InvalidShape, NonFiniteSample
from models.intensities import IntensityStatistics
from models.learning.preparation import Preparation, PreparationConfig, PreparedScan, RawScan, grid

RAW = {"orientation": "as_stored", "intensity": "fixed", "centre": 0.0, "scale": 1.0, "clip": 1e6}
"""Settings that leave intensities as they are."""


def scan_of(volume: Array, **facts: Any) -> RawScan:
    values = volume.astype(np.float64)
    statistics = IntensityStatistics(values.min(), values.max(), values.mean(), values.std())
    return RawScan(ArraySource(volume), statistics, **facts)


def noise(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(100, 30, shape).astype(np.float32)


def whole(scan: PreparedScan) -> Array:
    return scan.cubes(np.zeros((1, 3), np.int64), scan.shape)[0]


def prepared(volume: Array, *, seed: int = 0, facts: dict[str, Any] | None = None, **settings: Any) -> Any:
    scan = scan_of(volume, **(facts or {}))
    return Preparation.fit(PreparationConfig(**settings), [scan]).apply(scan, seed)


def line(volume: Array, axis: int, at: float, background: float) -> Array:
    """Linear interpolation at one position of an axis, by its formula; edge voxels last to their end."""
    N = volume.shape[axis]
    if not -0.5 <= at < N - 0.5:
        return np.full(np.delete(volume.shape, axis), background)
    low = int(np.floor(at))
    first, second = (np.take(volume, min(max(i, 0), N - 1), axis) for i in (low, low + 1))
    return first + (at - low) * (second - first)


def footprint(volume: Array, axis: int, at: float, step: float, background: float) -> Array:
    """The mean over [at - step / 2, at + step / 2] of voxels that are constant over their extents."""
    N = volume.shape[axis]
    if not -0.5 <= at < N - 0.5:
        return np.full(np.delete(volume.shape, axis), background)
    overlap = [max(0.0, min(i + 0.5, at + step / 2) - max(i - 0.5, at - step / 2)) for i in range(N)]
    return np.tensordot(np.array(overlap) / sum(overlap), np.moveaxis(volume, axis, 0), 1)


def dense(
    volume: Array,
    shape: tuple[int, ...],
    steps: tuple[float, ...],
    background: float,
    *,
    average: bool = False,
) -> Array:
    """The whole volume on another grid about the same centre, in float64."""
    for axis, (M, step) in enumerate(zip(shape, steps, strict=True)):
        N = volume.shape[axis]
        R = round(N / step)
        places = [step * (o + (R - M) // 2) + ((N - 1) - step * (R - 1)) / 2 for o in range(M)]
        rows = [
            footprint(volume, axis, at, step, background)
            if average and step > 1.5
            else line(volume, axis, at, background)
            for at in places
        ]
        volume = np.stack(rows, axis)
    return volume


@pytest.mark.parametrize("axes", list(permutations(range(3))))
@pytest.mark.parametrize("flips", list(product((1, -1), repeat=3)))
def test_a_head_stored_in_any_of_48_ways_is_prepared_alike(axes: Any, flips: Any) -> None:
    shape, spacing = (6, 8, 10), (3.0, 2.0, 1.0)
    upright = np.random.default_rng(1).integers(-50, 900, shape).astype(np.int16)
    stored = upright.transpose(axes)[tuple(slice(None, None, flip) for flip in flips)]
    affine = np.zeros((4, 4))
    for stored_axis, (axis, flip) in enumerate(zip(axes, flips, strict=True)):
        affine[2 - axis, 2 - stored_axis] = flip * spacing[axis]  # rows and columns are (x, y, z)
    affine[:, 3] = (7, -3, 11, 1)
    preparation = Preparation.fit(
        PreparationConfig(grid="as_is", intensity="fixed", centre=0, scale=1, clip=1e4),
        [scan_of(upright, affine=np.diag([1.0, 2.0, 3.0, 1.0]))],
    )
    scan = preparation.apply(scan_of(stored, affine=affine), 0)
    assert scan.warnings == ()
    assert np.array_equal(whole(scan)[0], upright)
    origins = np.array([[0, 0, 0], [2, 3, 5], [-2, 4, 8], [5, -1, 1]])
    expected = ArraySource(upright, padding=int(upright.min())).cubes(origins, (3, 4, 5))
    assert np.array_equal(scan.cubes(origins, (3, 4, 5)), expected)


def test_an_oblique_scan_goes_to_the_nearest_axes() -> None:
    turn = np.deg2rad(30)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    affine[:3, :3] = affine[:3, [1, 2, 0]] * (1, -1, 1)
    volume = noise(4, 5, 6)
    scan = prepared(volume, facts={"affine": affine}, **{**RAW, "orientation": "canonical", "grid": "as_is"})
    # stored x is y, stored y is z downwards, stored z is x
    assert np.array_equal(whole(scan)[0], volume.transpose(1, 2, 0)[::-1])


@pytest.mark.parametrize("shape", [(12, 7, 9), (5, 8, 6), (16, 3, 40), (7, 7, 7)])
def test_padding_moves_voxels_and_changes_none(shape: tuple[int, int, int]) -> None:
    volume = noise(7, 9, 8).view(np.uint32).view(np.float32)
    scan = prepared(volume, **RAW, grid="pad", shape=shape)
    expected = dense(volume, shape, (1, 1, 1), volume.min())
    assert np.array_equal(whole(scan)[0].view(np.uint32), expected.astype(np.float32).view(np.uint32))


def test_padding_asks_for_the_same_boxes_and_no_others() -> None:
    volume = noise(20, 20, 20)
    scan = scan_of(volume)
    source = scan.source
    assert isinstance(source, ArraySource)
    grid = Preparation.fit(PreparationConfig(**RAW, grid="pad", shape=(40, 16, 20)), [scan]).apply(scan, 0)
    assert not source.asked
    grid.cubes(np.array([[0, 0, 0], [20, 4, 4], [36, 0, 0], [10, 8, -2], [20, 30, 0]]), 4)
    assert source.asked == {(4, 4, 4, 10, 6, 4): 1, (4, 4, 4, 0, 10, -2): 1}


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize(
    ("spacing", "shape"),
    [((1.0, 1.0, 1.0), None), ((2.5, 0.8, 1.7), (9, 24, 8)), ((1.3, 1.3, 1.3), (20, 7, 9))],
)
def test_resampling_agrees_with_the_formula_everywhere(spacing: Any, shape: Any, average: bool) -> None:
    volume, stored = noise(11, 13, 12), (1.1, 0.5, 1.0)
    scan = prepared(
        volume,
        facts={"spacing": stored},
        **RAW,
        grid="resample",
        spacing=spacing,
        shape=shape,
        average=average,
    )
    steps = tuple(want / have for want, have in zip(spacing, stored, strict=True))
    expected = dense(volume.astype(np.float64), scan.shape, steps, float(volume.min()), average=average)
    assert np.abs(whole(scan)[0] - expected).max() < 1e-4  # float32 of values about 100


def test_a_shape_without_a_spacing_stretches_every_scan_to_it() -> None:
    volume = noise(11, 6, 12)
    scan = prepared(volume, **RAW, grid="resample", shape=(7, 9, 12))
    expected = dense(volume.astype(np.float64), (7, 9, 12), (11 / 7, 6 / 9, 1.0), float(volume.min()))
    assert np.abs(whole(scan)[0] - expected).max() < 1e-4


def test_averages_wipe_a_checkerboard_out_and_interpolation_does_not() -> None:
    board = np.where(np.indices((24, 24, 24)).sum(axis=0) % 2, 1.0, -1.0).astype(np.float32)
    settings = {**RAW, "grid": "resample", "spacing": (3.0, 3.0, 3.0)}
    texture, wiped = (
        whole(prepared(board, facts={"spacing": (1.0, 1.0, 1.0)}, **settings, average=average))
        for average in (False, True)
    )
    assert np.abs(texture).min() == 1
    assert np.abs(wiped).max() < 0.04


@pytest.mark.parametrize(
    "settings",
    [
        {"grid": "as_is"},
        {"grid": "pad", "shape": (20, 24, 11)},
        {"grid": "resample", "spacing": (1.3, 0.7, 1.0)},
        {"grid": "resample", "spacing": (2.3, 1.9, 4.1), "average": True},
        {"grid": "resample", "spacing": (0.77, 1.0, 2.9), "shape": (30, 12, 9)},
    ],
)
def test_a_voxel_has_the_same_bits_in_whichever_box(settings: dict[str, Any]) -> None:
    flipped = np.diag([-1.0, 1.0, -1.0, 1.0])
    scan = prepared(body((21, 17, 19)), facts={"affine": flipped}, **settings)
    reach = 6
    around = scan.cubes(np.full((1, 3), -reach), tuple(size + 2 * reach for size in scan.shape))[0, 0]
    rng = np.random.default_rng(5)
    for size in (1, 2, 5, (3, 1, 6), (1, 9, 2)):
        sides = np.broadcast_to(size, 3)
        origins = rng.integers(-reach, np.array(scan.shape) + reach - sides + 1, (60, 3))
        together = scan.cubes(origins, size)
        for origin, box in zip(origins, together, strict=True):
            z, y, x = (slice(o + reach, o + reach + s) for o, s in zip(origin, sides, strict=True))
            assert np.array_equal(box[0].view(np.uint32), around[z, y, x].view(np.uint32))
            assert np.array_equal(scan.cubes(origin[None], size)[0], box)


def test_resampling_asks_once_for_as_many_boxes_hardly_larger_than_needed() -> None:
    scan = scan_of(noise(60, 60, 60), spacing=(1.0, 1.0, 1.0))
    source = scan.source
    assert isinstance(source, ArraySource)
    config = PreparationConfig(**RAW, grid="resample", spacing=(1.6, 1.0, 0.7))
    grid = Preparation.fit(config, [scan]).apply(scan, 0)
    origins = np.random.default_rng(2).integers(5, 20, (50, 3))
    calls: list[tuple[int, Any]] = []
    asked = source.cubes
    source.cubes = lambda origins, size: calls.append((len(origins), size)) or asked(origins, size)  # type: ignore[method-assign,func-returns-value]
    grid.cubes(origins, 9)
    ((count, sides),) = calls
    assert count == 50
    assert all(side <= np.ceil(8 * step) + 3 for side, step in zip(sides, (1.6, 1.0, 0.7), strict=True))
    assert sides[1] == 9  # an axis that is copied reads no neighbours


@pytest.mark.parametrize("average", [False, True])
def test_boxes_over_very_much_are_made_in_parts_of_the_same_bits(
    average: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = {"spacing": (0.2, 0.25, 0.9)}
    settings = {**RAW, "grid": "resample", "spacing": (2.9, 1.0, 0.8), "shape": (12, 14, 16)}
    scan = prepared(noise(50, 40, 12), facts=facts, **settings, average=average)
    at_once = scan.cubes(np.array([[-2, 1, 0], [5, 5, 5], [30, 0, 0], [0, 0, -7]]), (9, 10, 12))
    parts = scan_of(noise(50, 40, 12), **facts)
    source = parts.source
    assert isinstance(source, ArraySource)
    config = PreparationConfig(**settings, average=average)
    monkeypatch.setattr(grid, "MOST_READ", 5_000)
    made = Preparation.fit(config, [parts]).apply(parts, 0)
    in_parts = made.cubes(np.array([[-2, 1, 0], [5, 5, 5], [30, 0, 0], [0, 0, -7]]), (9, 10, 12))
    assert np.array_equal(in_parts.view(np.uint32), at_once.view(np.uint32))
    reads = [np.prod(key[:3]) for key in source.asked]
    assert len(reads) > 4
    assert max(reads) <= 5_000


def test_what_lies_far_outside_of_a_fine_scan_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "MOST_READ", 1 << 15)
    fine = scan_of(noise(20, 24, 16), spacing=(0.2, 0.2, 0.2))
    coarse = scan_of(noise(128, 128, 128), spacing=(3.0, 3.0, 3.0))
    config = PreparationConfig(**RAW, grid="resample", spacing=(3.0, 3.0, 3.0))
    scan = Preparation.fit(config, [coarse]).apply(fine, 0)
    source = fine.source
    assert isinstance(source, ArraySource)
    assert np.ptp(whole(scan)) > 0
    assert sum(np.prod(key[:3]) * count for key, count in source.asked.items()) < 2 * grid.MOST_READ


def test_voxels_of_another_unit_are_refused_with_both_spacings_and_the_scan() -> None:
    plain = scan_of(noise(8, 8, 8), spacing=(3.0, 2.0, 2.0))
    preparations = [
        Preparation.fit(PreparationConfig(grid="resample", **more), [plain, plain])
        for more in ({}, {"spacing": (3.0, 2.0, 2.0)}, {"spacing": (3.0, 2.0, 2.0), "shape": (8, 8, 8)})
    ]
    for unit in (1e-3, 1e3, 1e-300, 1e300):
        odd = scan_of(noise(8, 8, 8), spacing=(3.0, 2.0 * unit, 2.0), name="odd.nii")
        told = rf"odd\.nii has voxels of 3 x {2 * unit:.4g} x 2 mm .* 3 x 2 x 2 mm.*is the unit right"
        for preparation in preparations:
            with pytest.raises(InvalidShape, match=told.replace("+", r"\+")):
                preparation.apply(odd, 0)
            with pytest.raises(InvalidShape, match=told.replace("+", r"\+")):
                Preparation.fit(preparation.config, [plain, odd, plain])
    unnamed = scan_of(noise(8, 8, 8), spacing=(3.0, 33.0, 2.0))
    with pytest.raises(InvalidShape, match="scan 1 has voxels of 3 x 33 x 2 mm"):
        Preparation.fit(PreparationConfig(grid="resample"), [plain, unnamed, plain])
    with pytest.raises(InvalidShape, match="the scan has voxels of 3 x 33 x 2 mm"):
        preparations[0].apply(unnamed, 0)
    just = scan_of(noise(8, 8, 8), spacing=(3.0, 32.0, 2.0 / 16))
    assert "spacing-far" in [caveat.code for caveat in preparations[0].apply(just, 0).warnings]


def test_a_grid_that_would_be_too_large_is_refused_with_the_limit_and_the_cure() -> None:
    def huge(*shape: int) -> RawScan:
        values = np.broadcast_to(np.float32(1), shape)
        return RawScan(ArraySource(values), IntensityStatistics(0, 2, 1, 1), (1.0, 1.0, 1.0))

    with pytest.raises(InvalidShape, match=r"4096 x 4096 x 4096 voxels .* 8,589,934,592 .*give a shape"):
        Preparation.fit(PreparationConfig(), [huge(8, 8, 4096), huge(8, 4096, 8), huge(4096, 8, 8)])
    spaced = PreparationConfig(grid="resample", spacing=(0.125, 1.0, 1.0))
    with pytest.raises(InvalidShape, match=r"80000 x 8 x 8 .* 65,536 .*larger spacing"):
        Preparation.fit(spaced, [huge(10_000, 8, 8)])


def test_voxels_that_were_not_measured_are_told() -> None:
    scan = scan_of(noise(10, 10, 10), replaced=25)
    made = Preparation.fit(PreparationConfig(), [scan]).apply(scan, 0)
    told = {caveat.code: caveat.text for caveat in made.warnings}
    assert told["voxels-replaced"].startswith("25 voxels (2.5 %) were NaN or infinite")


def test_an_axis_that_would_move_by_less_than_half_a_voxel_is_copied() -> None:
    volume = noise(40, 9, 9)
    facts = {"spacing": (1.0, 1.0, 1.0)}
    nearly = prepared(volume, facts=facts, **RAW, grid="resample", spacing=(1.01, 1.0, 1.0))
    assert np.isin(whole(nearly)[0, :40, :9, :9], [*volume.ravel(), volume.min()]).all()
    further = prepared(volume, facts=facts, **RAW, grid="resample", spacing=(1.02, 1.0, 1.0))
    assert not np.isin(whole(further)[0], volume).all()


def test_standard_intensities_have_mean_0_and_deviation_1_up_to_the_clip() -> None:
    volume = body((16, 18, 20))
    scan = prepared(volume, grid="as_is", intensity="standard", clip=1.5)
    expected = np.clip((volume - volume.mean()) / volume.std(), -1.5, 1.5)
    assert np.allclose(whole(scan)[0], expected, atol=1e-6)
    assert scan.value_range == (-1.5, 1.5)
    assert whole(scan).dtype == np.float32
    outside = scan.cubes(np.array([[-9, 0, 0]]), 4)
    assert np.unique(outside) == whole(scan).min() == np.float32(scan.background)


def test_robust_intensities_do_not_change_with_scale_outliers_or_more_air() -> None:
    volume = body((32, 32, 32)).astype(np.float64)
    plain = whole(prepared(volume, grid="as_is"))[0]
    assert np.abs(whole(prepared(3.7 * volume + 100, grid="as_is"))[0] - plain).max() < 1e-5
    hot = volume.copy()
    hot[3, 3, 3] = 1.7e6
    assert np.abs(np.delete((whole(prepared(hot, grid="as_is"))[0] - plain).ravel(), 3171)).max() < 0.05
    framed = np.pad(volume, 12, constant_values=volume.min())
    inner = whole(prepared(framed, grid="as_is"))[0, 12:44, 12:44, 12:44]
    assert np.abs(inner - plain).max() < 0.25
    standard = whole(prepared(framed, grid="as_is", intensity="standard"))[0, 12:44, 12:44, 12:44]
    assert np.abs(standard - whole(prepared(volume, grid="as_is", intensity="standard"))[0]).max() > 0.5


def test_robust_intensities_read_a_bounded_sample_within_the_scan() -> None:
    scan = scan_of(noise(50, 9, 3))
    source = scan.source
    assert isinstance(source, ArraySource)
    preparation = Preparation.fit(PreparationConfig(), [scan])
    assert not source.asked
    first = preparation.apply(scan, 3)
    corners = np.array([key[3:] for key in source.asked])
    assert source.asked.total() == 8 * 4 * 1
    assert (corners >= 0).all()
    assert (corners + 2 <= source.shape).all()
    again, other = preparation.apply(scan, 3), preparation.apply(scan, 4)
    assert np.array_equal(whole(first), whole(again))
    assert first.scale != other.scale


def test_fixed_intensities_are_those_of_the_whole_cohort() -> None:
    volumes = [noise(8, 8, 8, seed=1), 2 * noise(8, 8, 8, seed=2)]
    scans = [scan_of(volume) for volume in volumes]
    preparation = Preparation.fit(PreparationConfig(grid="as_is", intensity="fixed"), scans)
    together = np.stack(volumes).astype(np.float64)
    assert preparation.scale == pytest.approx((together.mean(), together.std()))
    centre, scale = together.mean(), together.std()
    expected = np.clip((volumes[1] - centre) / scale, -5, 5)
    assert np.allclose(whole(preparation.apply(scans[1], 0))[0], expected, atol=1e-5)


@pytest.mark.parametrize("intensity", ["standard", "robust", "fixed"])
def test_a_constant_scan_is_marked_and_finite(intensity: str) -> None:
    scan = prepared(np.full((9, 9, 9), 7, np.uint8), intensity=intensity, grid="as_is")
    assert not whole(scan).any()
    assert [caveat.code for caveat in scan.warnings] == ["constant"]


def test_a_mask_without_percentiles_is_standardised_and_marked() -> None:
    mask = np.zeros((20, 20, 20), np.uint8)
    mask[3:6, 3:6, 3:6] = 1
    scan = prepared(mask, grid="as_is")
    assert [caveat.code for caveat in scan.warnings] == ["percentiles-unknown"]
    assert scan.scale.how == "standard"
    assert len(np.unique(whole(scan))) == 2


def test_infinities_are_refused_at_their_own_voxel_before_they_are_clipped() -> None:
    volume = noise(6, 7, 8)
    volume[1, 2, 3] = np.inf
    scan = RawScan(ArraySource(volume), IntensityStatistics(0, 200, 100, 30), affine=np.diag([-1.0, 1, 1, 1]))
    prepared = Preparation.fit(PreparationConfig(grid="as_is", intensity="standard"), [scan]).apply(scan, 0)
    with pytest.raises(NonFiniteSample) as error:
        whole(prepared)
    assert error.value.voxel == (1, 2, 3)


def test_shapes_are_found_of_the_training_scans_after_orientation() -> None:
    sideways = np.eye(4)[[2, 1, 0, 3]]
    scans = [
        scan_of(noise(17, 9, 4), affine=np.eye(4)),
        scan_of(noise(4, 16, 20), affine=sideways),
    ]
    assert Preparation.fit(PreparationConfig(), scans).shape == (24, 16, 8)
    spaced = Preparation.fit(PreparationConfig(grid="resample", spacing=(0.5, 1.0, 2.0)), scans)
    assert spaced.shape == (40, 16, 8)
    assert Preparation.fit(PreparationConfig(grid="resample"), scans).spacing == (1.0, 1.0, 1.0)


def test_what_cannot_be_prepared_is_refused_with_both_numbers_and_the_cure() -> None:
    plain, long, thick = scan_of(noise(8, 8, 8)), scan_of(noise(9, 8, 8)), scan_of(noise(2, 8, 8, 8))
    as_is = PreparationConfig(grid="as_is")
    with pytest.raises(InvalidShape, match=r"scan 1 is \(9, 8, 8\), scan 0 is \(8, 8, 8\).*pad"):
        Preparation.fit(as_is, [plain, long])
    with pytest.raises(InvalidShape, match=r"\(9, 8, 8\).*\(8, 8, 8\).*pad"):
        Preparation.fit(as_is, [plain]).apply(long, 0)
    with pytest.raises(InvalidShape, match="scan 1 has 2 channels, scan 0 has 1"):
        Preparation.fit(PreparationConfig(), [plain, thick])
    with pytest.raises(InvalidShape, match="has 2 channels, those of the training have 1"):
        Preparation.fit(PreparationConfig(), [plain]).apply(thick, 0)
    with pytest.raises(InvalidShape, match=r"no scan has a spacing.*pad"):
        Preparation.fit(PreparationConfig(grid="resample"), [plain])
    with pytest.raises(InvalidShape, match="no spacing"):
        Preparation.fit(PreparationConfig(grid="resample", spacing=(1.0, 1.0, 1.0)), [plain])
    with pytest.raises(InvalidShape, match="no scans"):
        Preparation.fit(PreparationConfig(), [])
    with pytest.raises(InvalidShape, match="affine"):
        scan_of(noise(8, 8, 8), affine=np.zeros((4, 4)))
    with pytest.raises(InvalidShape, match="spacing"):
        scan_of(noise(8, 8, 8), spacing=(1.0, 0.0, 1.0))


def test_what_is_unusual_about_a_scan_is_said() -> None:
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    training = [
        scan_of(noise(16, 16, 16), affine=affine, modality="MR"),
        scan_of(noise(16, 16, 16), affine=np.diag([1.2, 1.2, 2.0, 1.0]), modality="MR"),
    ]
    preparation = Preparation.fit(PreparationConfig(), training)
    assert [preparation.apply(scan, 0).warnings for scan in training] == [(), ()]

    def codes(volume: Array, **facts: Any) -> list[str]:
        return [caveat.code for caveat in preparation.apply(scan_of(volume, **facts), 0).warnings]

    assert codes(noise(16, 16, 16), affine=affine, modality="CT") == ["modality-other"]
    assert codes(noise(16, 16, 16), spacing=(2.9, 1.75, 0.7)) == ["orientation-unknown"]
    assert codes(noise(16, 16, 16), affine=np.diag([1.0, 1.0, 3.1, 1.0])) == ["spacing-far"]
    assert codes(noise(16, 16, 16), affine=np.diag([1.0, 0.6, 2.0, 1.0])) == ["spacing-far"]
    assert codes(noise(16, 16, 16)) == ["orientation-unknown", "spacing-unknown"]
    assert codes(noise(17, 16, 16), affine=affine) == []
    assert codes(noise(18, 16, 16), affine=affine) == ["cropped"]
    (caveat,) = preparation.apply(scan_of(noise(32, 16, 16), affine=affine), 0).warnings
    assert caveat.text.startswith("50 % of the scan")


def test_a_preparation_survives_json() -> None:
    scans = [scan_of(body((9, 10, 11)), affine=np.diag([1.0, 2.0, 3.0, 1.0]), modality="MR")]
    for settings in ({}, {"grid": "resample", "spacing": (2.0, 2.0, 2.0)}, {"intensity": "fixed"}):
        preparation = Preparation.fit(PreparationConfig(**settings), scans)
        again = Preparation.from_manifest(json.loads(json.dumps(preparation.manifest())))
        assert again == preparation
        assert np.array_equal(whole(again.apply(scans[0], 1)), whole(preparation.apply(scans[0], 1)))
    with pytest.raises(InvalidShape, match="lacks shape"):
        Preparation.from_manifest({k: v for k, v in preparation.manifest().items() if k != "shape"})


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"grid": "warp"}, "grid"),
        ({"orientation": "LAS"}, "orientation"),
        ({"intensity": "histogram"}, "intensity"),
        ({"shape": (8, 8)}, "shape"),
        ({"shape": (8, 8, 0)}, "shape"),
        ({"shape": (8, 8, 2.5)}, "shape"),
        ({"grid": "as_is", "shape": (8, 8, 8)}, "shape"),
        ({"spacing": (1.0, 1.0, 1.0)}, "spacing"),
        ({"grid": "resample", "spacing": (1.0, float("nan"), 1.0)}, "spacing"),
        ({"average": "yes"}, "average"),
        ({"clip": float("inf")}, "clip"),
        ({"intensity": "fixed", "centre": 3.0}, "scale"),
        ({"intensity": "fixed", "centre": 3.0, "scale": 0}, "scale"),
        ({"centre": 3.0, "scale": 2.0}, "centre"),
        ({"intensity": "fixed", "centre": "lung", "scale": 2.0}, "centre"),
        ({"depth": 3}, "depth"),
        ({"clip": 10**400}, "clip"),
        ({"clip": 1e39}, "clip"),
        ({"intensity": "fixed", "centre": 10**400, "scale": 1}, "centre"),
        ({"intensity": "fixed", "centre": 0, "scale": 10**400}, "scale"),
        ({"intensity": "fixed", "centre": 0, "scale": 1e-300}, "scale"),
        ({"shape": (True, 8, 8)}, "shape"),
        ({"shape": (10**400, 1, 1)}, "shape"),
        ({"shape": (65_537, 1, 1)}, "shape"),
        ({"shape": (4096, 4096, 4096)}, "shape"),
        ({"shape": ("8", 8, 8)}, "shape"),
        ({"grid": "resample", "spacing": (1e300, 1e300, 1e300)}, "spacing"),
        ({"grid": "resample", "spacing": (1e-300, 1e-300, 1e-300)}, "spacing"),
        ({"grid": "resample", "spacing": (10**400, 1, 1)}, "spacing"),
        ({"grid": "resample", "spacing": (True, 1, 1)}, "spacing"),
    ],
)
def test_settings_are_refused_by_name(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidConfig) as error:
        PreparationConfig.from_json(settings)
    assert error.value.setting == named


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, -1)])
@pytest.mark.parametrize(
    "settings", [{"shape": (4, 9, 12)}, {"grid": "resample", "spacing": (1.5, 4.0, 2.0)}]
)
def test_voxels_are_found_again_in_the_stored_scan(axes: Any, flips: Any, settings: dict[str, Any]) -> None:
    """A volume that holds a linear function of its stored coordinates says itself where a voxel is."""
    affine = np.zeros((4, 4))
    for stored, (axis, flip) in enumerate(zip(axes, flips, strict=True)):
        affine[2 - axis, 2 - stored] = flip * (1.0, 2.0, 3.0)[axis]
    affine[3, 3] = 1
    shape = (9, 7, 8)
    coordinates = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")).astype(np.float64)
    scan = prepared(coordinates, facts={"affine": affine}, **{**RAW, **settings, "orientation": "canonical"})
    voxels = np.argwhere(np.ones(scan.shape, bool))
    found = scan.places.stored(voxels)
    inside = ((found >= 0) & (found <= np.array(shape) - 1)).all(axis=1)
    assert inside.sum() > 20
    told = whole(scan).reshape(3, -1).T
    assert np.abs(told - found)[inside].max() < 1e-5
    span = (found.max(axis=0) - found.min(axis=0)) / (np.array(scan.shape)[list(axes)] - 1)
    assert np.allclose(scan.places.sides((1, 1, 1)), span)
    assert np.allclose(scan.places.sides((1, 2, 4)), span * np.array((1, 2, 4))[list(axes)])
