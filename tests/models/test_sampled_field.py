"""The field of encoded cubes: every cube once, every failure named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from model_fields import ArraySource, body

from models.cpic.encoder import ENCODERS, IntensityStatistics
from models.cpic.field import EncodedVoxels, SampledField
from models.errors import NonFiniteSample, SampleOutOfRange, SourceFailed
from models.tt.qtt import qtt_layout

CPU = torch.device("cpu")
STATISTICS = IntensityStatistics(0.0, 2000.0, 300.0, 400.0)


def voxels_of(source: Any, encoder: str = "random_cpic", statistics: Any = STATISTICS) -> EncodedVoxels:
    return EncodedVoxels(source, ENCODERS[encoder](source.channels, 4, 0, statistics, CPU), CPU)


def test_each_cube_is_encoded_once_whatever_is_asked_in_whichever_order() -> None:
    source = ArraySource(body((20, 15, 12)))
    voxels = voxels_of(source)
    layout = qtt_layout(source.shape, 4)
    field = SampledField(voxels, layout)
    keys = np.random.default_rng(0).integers(0, 20 * 15 * 12 * 4, (7, 30, 3))
    together = field(keys)
    again = torch.stack([field(part) for part in keys])
    voxels.features(np.arange(20 * 15 * 12))
    assert together.shape == keys.shape
    assert torch.equal(together, again)
    assert len(voxels) == len(source.asked) == 20 * 15 * 12
    assert set(source.asked.values()) == {1}
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
    assert torch.allclose(field(layout.keys_of(entries)), expected[0].double(), atol=1e-6)


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
    whole = voxels_of(ArraySource(volume)).features(some)
    single = voxels_of(ArraySource(volume))
    parts = [single.features(part) for part in np.split(some, [1, 4, 20, 27, 150, 283])]
    assert torch.equal(whole, torch.cat(parts))


def test_many_cubes_are_read_in_bounded_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.cpic.field.FETCH_BYTES", 8 * 729 * 50)
    portions = []

    class Watched(ArraySource):
        def cubes(self, origins: Any, size: int) -> Any:
            portions.append(len(origins))
            return super().cubes(origins, size)

    voxels_of(Watched(body((10, 10, 10)))).features(np.arange(220))
    assert portions == [50, 50, 50, 50, 20]


class Broken(ArraySource):
    def __init__(self, answer: Any) -> None:
        super().__init__(body((8, 8, 8)))
        self.answer = answer

    def cubes(self, origins: Any, size: int) -> Any:
        return self.answer(super().cubes(origins, size))


def raising(cubes: Any) -> Any:
    raise OSError("the disk is gone")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (raising, r"2 cubes of 9\^3 around voxels \(0, 0, 0\) ... \(7, 7, 7\): OSError: the disk is gone"),
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
