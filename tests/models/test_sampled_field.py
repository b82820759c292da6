"""The field of encoded voxels: every voxel once, every failure named."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from model_fields import ArraySource, body

from models.cpic.encoder import ENCODERS, random_cpic
from models.cpic.encoding import Batch
from models.cpic.field import BlockField, EncodedVoxels, FieldBatch, SampledField
from models.cpic.raw_boxes import RawBoxes
from models.errors import InvalidShape, NonFiniteSample, SampleOutOfRange, SourceFailed
from models.intensities import IntensityStatistics
from models.tt.qtt import qtt_layout
from models.types import Size

CPU = torch.device("cpu")
STATISTICS = IntensityStatistics(0.0, 2000.0, 300.0, 400.0)


def voxels_of(source: Any, encoder: str = "random_cpic", statistics: Any = STATISTICS) -> EncodedVoxels:
    return EncodedVoxels(source, ENCODERS[encoder](source.channels, 4, 0, statistics, CPU), CPU)


def watch_encoder(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many voxels each batch was encoded for, from now on."""
    encoded, features = [], Batch.features

    def watched(batch: Batch) -> torch.Tensor:
        encoded.append(len(batch.rows))
        return features(batch)

    monkeypatch.setattr(Batch, "features", watched)
    return encoded


@pytest.mark.parametrize("encoder", ENCODERS)
def test_each_voxel_is_encoded_once_whatever_is_asked_in_whichever_order(
    encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = watch_encoder(monkeypatch)
    source = ArraySource(body((20, 15, 12)))
    voxels = voxels_of(source, encoder)
    layout = qtt_layout(source.shape, voxels.scan.encoder.features)
    field = SampledField(voxels, layout)
    keys = np.random.default_rng(0).integers(0, 20 * 15 * 12 * layout.features, (7, 30, 3))
    together = field(keys)
    again = torch.stack([field(part) for part in keys])
    voxels.features(np.arange(20 * 15 * 12))
    assert together.shape == keys.shape
    assert torch.equal(together, again)
    assert len(voxels) == sum(encoded) == 20 * 15 * 12
    assert encoder != "identity" or set(source.asked.values()) == {1}  # boxes may meet those of later calls
    assert field.counts.samples == 2 * keys.size
    assert field.counts.unique_samples == len(np.unique(keys))


def test_entries_are_the_features_of_the_cube_around_the_voxel() -> None:
    volume = body((12, 11, 10))
    source = ArraySource(volume, padding=5)
    layout = qtt_layout(source.shape, 4)
    field = SampledField(voxels_of(source), layout)
    corner = np.pad(volume, 4, constant_values=5)[11 : 11 + 9, 0:9, 9 : 9 + 9]
    expected = ENCODERS["random_cpic"](1, 4, 0, STATISTICS, CPU)(
        torch.from_numpy(corner.astype(float))[None, None]
    )
    entries = np.array([[11, 0, 9, feature] for feature in range(4)])
    assert torch.allclose(field(layout.keys_of(entries)), expected.flatten().detach().double(), atol=1e-6)


def test_padding_of_the_layout_reads_the_border_and_no_cube_beyond_it() -> None:
    source = ArraySource(body((7, 11, 13)))
    layout = qtt_layout(source.shape, 4)
    assert layout.padded == (8, 12, 15, 4)
    field = SampledField(voxels_of(source, "identity"), qtt_layout(source.shape, 1))
    values = field(np.arange(8 * 12 * 15)).reshape(8, 12, 15)
    assert len(source.asked) == 7 * 11 * 13
    assert torch.equal(values[7], values[6])
    assert torch.equal(values[:, 11], values[:, 10])
    assert torch.equal(values[:, :, 14], values[:, :, 12])


def test_features_do_not_depend_on_the_batch_that_they_were_made_in() -> None:
    volume = body((16, 16, 16))
    rng = np.random.default_rng(0)
    some = rng.permutation(16**3)[:300]
    whole = voxels_of(ArraySource(volume)).features(some)  # partly in boxes that the parts do not fill
    single = voxels_of(ArraySource(volume))
    parts = [single.features(part) for part in np.split(some, [1, 4, 20, 27, 150, 283])]
    assert torch.allclose(whole, torch.cat(parts), rtol=0, atol=1e-6)
    again = voxels_of(ArraySource(volume)).features(some)
    assert torch.equal(whole, again)


def test_features_of_isolated_voxels_have_the_same_bits_in_whichever_batch() -> None:
    volume = body((64, 64, 64))
    apart = (np.argwhere(np.ones((4, 4, 4))) * 16 + 8) @ np.array([64 * 64, 64, 1])
    whole = voxels_of(ArraySource(volume)).features(apart)
    single = voxels_of(ArraySource(volume))
    parts = [single.features(part) for part in np.split(apart, [1, 4, 20, 27])]
    assert torch.equal(whole, torch.cat(parts))


def test_many_cubes_are_read_in_bounded_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.cpic.encoding.FETCH_BYTES", 8 * 729 * 600)
    portions = []

    class Watched(ArraySource):
        def cubes(self, origins: Any, size: Size) -> Any:
            portions.append(len(origins))
            return super().cubes(origins, size)

    apart = (np.argwhere(np.ones((8, 12, 12))) * 8) @ np.array([96 * 96, 96, 1])
    voxels_of(Watched(body((64, 96, 96)))).features(apart[:1000])
    assert sum(portions) == 1000
    assert max(portions) <= 600
    assert len(portions) == 2


class Broken(ArraySource):
    def __init__(self, answer: Any) -> None:
        super().__init__(body((8, 8, 8)))
        self.answer = answer

    def cubes(self, origins: Any, size: Size) -> Any:
        return self.answer(super().cubes(origins, size))


def raising(cubes: Any) -> Any:
    raise OSError("the disk is gone")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            raising,
            r"2 boxes of \(9, 9, 9\) voxels at \(-4, -4, -4\) ... \(3, 3, 3\): OSError: the disk is gone",
        ),
        (lambda cubes: cubes[:1], r"shape \(1, 1, 9, 9, 9\) came back, not \(2, 1, 9, 9, 9\)"),
        (lambda cubes: cubes.astype(complex), "values of type complex128"),
    ],
)
def test_a_source_that_fails_is_named_with_what_was_asked(answer: Any, message: str) -> None:
    with pytest.raises(SourceFailed, match=message) as caught:
        voxels_of(Broken(answer)).features(np.array([0, 511]))
    assert isinstance(caught.value.__cause__, OSError) == (answer is raising)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_voxel_that_is_not_finite_is_named(value: float, encoder: str) -> None:
    volume = body((10, 10, 10)).astype(np.float32)
    volume[3, 4, 6] = value
    with pytest.raises(NonFiniteSample) as caught:
        voxels_of(ArraySource(volume), encoder).features(np.arange(1000))
    assert caught.value.voxel == (3, 4, 6)
    assert caught.value.code == "non-finite-sample"


def test_a_value_outside_of_the_statistics_is_named() -> None:
    volume = body((6, 6, 6))
    volume[1, 2, 3] = 2001
    with pytest.raises(SampleOutOfRange, match="not those of this scan") as caught:
        voxels_of(ArraySource(volume), "identity").features(np.arange(216))
    assert caught.value.voxel == (1, 2, 3)


def test_blocks_are_all_features_of_their_voxels() -> None:
    source = ArraySource(body((7, 11, 13)))
    voxels = voxels_of(source)
    layout = qtt_layout(source.shape, 4)
    scalar, block = SampledField(voxels, layout), BlockField(voxels, layout.spatial())
    keys = np.random.default_rng(0).integers(0, 8 * 12 * 15, (3, 1, 5))
    values = block(keys)
    assert values.shape == (3, 1, 5, 4)
    assert torch.equal(values, scalar(4 * keys[..., None] + np.arange(4)))
    assert block.counts.samples == 15
    assert block.counts.unique_samples == len(np.unique(keys))
    with pytest.raises(InvalidShape, match="voxels alone"):
        BlockField(voxels, layout)


def test_samples_are_counted_alike_in_one_call_and_in_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.cpic.field.COUNTED_AT_ONCE", 40)
    source = ArraySource(body((8, 8, 8)))
    field = SampledField(voxels_of(source, "identity"), qtt_layout(source.shape, 1))
    keys = np.random.default_rng(0).integers(0, 300, (60, 7))
    for part in keys:
        field(part)
    assert field.counts.samples == 420
    assert field.counts.unique_samples == field.counts.unique_cubes == len(np.unique(keys))


def shared_network(volumes: list[Any]) -> list[EncodedVoxels]:
    """Volumes that look through one network, each with statistics of its own."""
    encoder = random_cpic(1, 4, 0, STATISTICS, CPU)
    scales = (STATISTICS, IntensityStatistics(0.0, 2000.0, 100.0, 150.0), STATISTICS)
    return [
        EncodedVoxels(source, replace(encoder, statistics=scale), CPU)
        for source, scale in zip(volumes, scales, strict=False)
    ]


def test_a_batch_of_volumes_is_what_each_is_alone_in_fewer_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [ArraySource(body((16, 16, 16)) + shift) for shift in (0, 40, 80)]
    layout = qtt_layout((16, 16, 16), 4)
    keys = np.random.default_rng(0).integers(0, 16**3 * 4, (3, 4, 5))
    encoded = watch_encoder(monkeypatch)
    together = FieldBatch([SampledField(voxels, layout) for voxels in shared_network(sources)])
    values = together(keys)
    assert values.shape == keys.shape
    assert len(encoded) == 1
    alone = [SampledField(voxels, layout) for voxels in shared_network(sources)]
    assert torch.equal(values, torch.stack([field(row) for field, row in zip(alone, keys, strict=True)]))
    assert together.counts == tuple(field.counts for field in alone)
    with pytest.raises(InvalidShape, match="2 rows of keys for 3 volumes"):
        together(keys[:2])


def test_a_volume_may_be_in_a_batch_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = watch_encoder(monkeypatch)
    (voxels,) = shared_network([ArraySource(body((8, 8, 8)))])
    layout = qtt_layout((8, 8, 8), 4).spatial()
    keys = np.array([[3, 4, 5], [5, 6, 7]])
    values = FieldBatch([BlockField(voxels, layout), BlockField(voxels, layout)])(keys)
    assert torch.equal(values[0, 2], values[1, 0])
    assert sum(encoded) == len(voxels) == 5


@pytest.mark.parametrize("bad", [0, 2])
def test_errors_name_the_volume_of_a_batch(bad: int) -> None:
    arrays = [body((8, 8, 8)).astype(np.float32) for _ in range(3)]
    arrays[bad][3, 4, 6] = np.nan
    layout = qtt_layout((8, 8, 8), 4).spatial()
    batch = FieldBatch([BlockField(v, layout) for v in shared_network([ArraySource(a) for a in arrays])])
    with pytest.raises(
        NonFiniteSample, match=rf"^volume {bad}: the value sampled at voxel \(3, 4, 6\)"
    ) as caught:
        batch(np.tile(np.arange(512), (3, 1)))
    assert caught.value.facts()["volume"] == bad
    arrays = [body((8, 8, 8)) for _ in range(3)]
    arrays[bad][1, 2, 3] = 3000
    voxels = [voxels_of(ArraySource(array), "identity") for array in arrays]
    batch = FieldBatch([BlockField(each, layout) for each in voxels])
    with pytest.raises(SampleOutOfRange, match=rf"^volume {bad}: ") as caught_range:
        batch(np.tile(np.arange(512), (3, 1)))
    assert caught_range.value.voxel == (1, 2, 3)


def test_features_are_forgotten_when_weights_change_and_raw_boxes_are_not() -> None:
    source = ArraySource(body((16, 16, 16)))
    encoder = random_cpic(1, 4, 0, STATISTICS, CPU)
    voxels = EncodedVoxels(source, encoder, CPU, keep_bytes=1 << 20)
    some = np.arange(0, 16**3, 7)
    before = voxels.features(some)
    with torch.no_grad():
        next(encoder.network.parameters()).mul_(0.5)
    after = voxels.features(some)
    assert not torch.equal(before, after)
    assert torch.equal(after, EncodedVoxels(source, encoder, CPU).features(some))
    voxels.forget()
    assert len(voxels) == 0
    assert torch.equal(voxels.features(some), after)
    assert set(source.asked.values()) == {2}  # once for each of the two that read


def test_raw_boxes_keep_within_their_bytes() -> None:
    source = ArraySource(body((32, 32, 32)))
    boxes = RawBoxes(source, keep_bytes=100 * 729 * 2)
    corners = np.random.default_rng(0).permutation(np.argwhere(np.ones((12, 12, 12))))[:400] * 2 - 4
    expected = RawBoxes(source).read(corners, (9, 9, 9))
    source.asked.clear()
    for part in (
        slice(0, 60),
        slice(30, 90),
        slice(0, 30),
        slice(100, 300),
        slice(310, 350),
        slice(320, 350),
    ):
        assert np.array_equal(boxes.read(corners[part], (9, 9, 9)), expected[part])
        assert boxes.nbytes <= 100 * 729 * 2
    assert set(source.asked.values()) == {1}
    assert np.array_equal(boxes.read(corners[:5], (1, 30, 2)), RawBoxes(source).read(corners[:5], (1, 30, 2)))
