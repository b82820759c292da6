"""Wavelet blocks: the transform, what is expected of coefficients, their bytes, and blocks of any values."""

from __future__ import annotations

import itertools
import os
import struct
import subprocess
import sys
from base64 import b85decode
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.compressors.wavelet import Wavelet
from storage.putt.block import AS_IT_IS, CONSTANT
from storage.wavelet.bands import ORDER, levels_of, odd_along, phase
from storage.wavelet.block import HEADER, WAVELET, Levels, _chosen, wavelet_bytes, wavelet_values
from storage.wavelet.coder import LARGEST, decoded, encoded
from storage.wavelet.expected import ALL, BOX, CAP, Expected, of_the_coarsest
from storage.wavelet.lifting import corners, most_levels, restored, transformed
from storage.wavelet.weights import DEEP, FLAT, PARENTS

Array = np.ndarray[Any, np.dtype[Any]]
DEEPEST = [(True, True, True)] * 3
SPLITS = [
    [],
    DEEPEST,
    [(False, True, True)] * 4,
    [(True, True, True), (False, True, True), (False, False, True)],
    [(False, False, True)],
    [(True, False, False)] * 2,
]
DTYPES = ["uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64"]


def scan(shape: tuple[int, int, int] = (20, 33, 26), dtype: str = "int16", seed: int = 0) -> Array:
    """A soft-edged ball on a slope, with a little noise."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij")
    values = 90 / (1 + np.exp(12 * (z**2 + y**2 + x**2 - 0.6))) + 20 + 9 * x
    return (values + np.random.default_rng(seed).normal(0, 2, shape)).round().astype(dtype)


def long_enough(splits: list[tuple[bool, bool, bool]]) -> tuple[int, ...]:
    """Sides of which no level splits a single place."""
    return tuple(2 ** sum(split[axis] for split in splits) for axis in range(3))


@pytest.mark.parametrize("splits", SPLITS)
def test_what_was_transformed_is_restored(splits: list[tuple[bool, bool, bool]]) -> None:
    noise = np.random.default_rng(0)
    least = long_enough(splits)
    for more in [(0, 0, 0), (1, 0, 2), (3, 5, 1), (8, 7, 13)]:
        z, y, x = (a + b for a, b in zip(least, more, strict=True))
        values = noise.normal(0, 1, (z, y, x))
        told = restored(transformed(values, splits), splits)
        np.testing.assert_allclose(told, values, rtol=0, atol=1e-12)


def test_constants_are_in_one_corner_and_slopes_are_not_seen_inside() -> None:
    flat = transformed(np.full((16, 16, 16), 3.0), DEEPEST)
    np.testing.assert_allclose(flat[:2, :2, :2], 3.0 * 2**4.5, rtol=1e-12)
    flat[:2, :2, :2] = 0
    assert np.abs(flat).max() < 1e-12
    cubic = transformed(np.broadcast_to(np.arange(64.0) ** 3 / 1e4, (1, 1, 64)), [(False, False, True)])
    assert np.abs(cubic[0, 0, 34:60]).max() < 1e-10
    assert np.abs(cubic[0, 0, 63]) > 1e-3


def test_errors_of_coefficients_are_about_those_of_values() -> None:
    errors = np.random.default_rng(1).normal(0, 1, (32, 32, 32))
    assert 0.9 < np.square(restored(errors, DEEPEST)).mean() < 1.15


@pytest.mark.parametrize("shape", [(8, 8, 8), (9, 14, 11), (2, 31, 16)])
def test_every_coefficient_belongs_to_one_phase_of_one_band(shape: tuple[int, int, int]) -> None:
    splits = [(shape[0] > 2, True, True), (False, True, True), (False, False, True)]
    numbers = 1 + np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    put = np.zeros_like(numbers)
    found = [numbers[tuple(map(slice, corners(shape, splits)[-1]))].ravel()]
    for level in levels_of(shape, splits):
        stack = level.taken(numbers)
        inside = np.ones(stack.shape, bool) if level.inside is None else level.inside
        assert ((stack > 0) == inside).all()
        assert stack.shape[:3] == tuple(2 * side for side in level.half)
        found += [phase(stack, number)[phase(inside, number)] for number in range(8)]
        level.put(stack, put)
    assert np.array_equal(np.sort(np.concatenate(found)), np.arange(1, numbers.size + 1))
    corner = tuple(map(slice, corners(shape, splits)[-1]))
    put[corner] = numbers[corner]
    assert np.array_equal(put, numbers)


def by_the_formula(stack: Array, number: int, passed: list[int], mean: int) -> Array:
    """The expectations of a phase of a coarsest level, place by place."""
    weights = DEEP[number]
    side = len(stack) // 2
    parents = [mean] * ALL + [BOX * mean] * ALL + [BOX * ALL * mean]
    told = np.empty((side, side, side, ALL))
    odd = odd_along(number)
    for place in product(range(side), repeat=3):
        known = list(parents)
        for apart in range(1, 8):
            if number ^ apart not in passed:
                continue
            steps = [(-1, 1) if differs else (0,) for differs in odd_along(apart)]
            sums = np.zeros(ALL)
            for step in product(*steps):
                at = [2 * i + o + s for i, o, s in zip(place, odd, step, strict=True)]
                at = [a if 0 <= a < 2 * side else a - 2 * s for a, s in zip(at, step, strict=True)]
                sums += np.minimum(np.abs(stack[tuple(at)]), CAP)
            known += sums.tolist()
        told[place] = np.array(known) @ weights.known.astype(float) + weights.constant
    return told


def test_expectations_are_those_of_the_formula() -> None:
    (level,) = levels_of((8, 8, 8), [(True, True, True)])
    stack = np.random.default_rng(2).integers(-900, 900, (4, 4, 4, ALL)).astype(np.int32)
    expected, passed = Expected(level, of_the_coarsest(level, 5)), []
    for number in ORDER:
        np.testing.assert_array_equal(expected.of(number), by_the_formula(stack, number, passed, 5))
        expected.learn(number, phase(stack, number))
        passed.append(number)


def test_parents_are_those_of_the_place_that_was_halved() -> None:
    level, above = levels_of((4, 8, 8), [(False, True, True), (True, True, True)])
    stack = above.empty()
    assert stack.shape == (2, 2, 2, ALL)
    stack[1, 1, 0, 3] = 9
    expected = Expected(above, of_the_coarsest(above, 0))
    for number in ORDER:
        expected.learn(number, phase(stack, number))
    known = expected.known()
    assert known.parents[1, 1, 0, 3] == 9
    assert known.parents[1, 1, 0, ALL + 3] == 9 * 3 * 3 * 3
    assert known.parents[0, 1, 1, ALL + 3] == 9 * 1 * 3 * 1
    for number in range(8):
        told = known.at(number, level.half)
        assert told.shape == (*level.half, PARENTS)
        assert told[..., 3].sum() == 9


def test_no_sum_of_weights_is_rounded_by_float32() -> None:
    for every, bands in ((DEEP, 7), (FLAT, 3)):
        passed: set[int] = set()
        for number in ORDER:
            weights = every[number]
            near = [CAP * 2 ** bin(apart).count("1") for apart in range(1, 8) if number ^ apart in passed]
            most = (
                [CAP] * ALL + [CAP * BOX] * ALL + [CAP * BOX * ALL] + [x for x in near for _ in range(bands)]
            )
            assert weights.known.shape == (len(most), bands)
            assert (weights.known >= 0).all()
            assert (weights.constant >= 1).all()
            assert (weights.known == np.rint(weights.known)).all()
            assert (np.array(most) @ weights.known.astype(float) + weights.constant).max() < 1 << 24
            passed.add(number)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_coefficients_come_back(data: st.DataObject) -> None:
    splits = data.draw(st.sampled_from(SPLITS))
    z, y, x = (side + data.draw(st.integers(0, 12)) for side in long_enough(splits))
    noise = np.random.default_rng(data.draw(st.integers(0, 99)))
    size = data.draw(st.sampled_from([0.0, 0.3, 3.0, 40.0, 1e4, 1e8]))
    q = np.clip(noise.laplace(0, size, (z, y, x)), 1 - LARGEST, LARGEST - 1)
    q[noise.random(q.shape) < data.draw(st.sampled_from([0.0, 0.9]))] = 0
    q.reshape(-1)[data.draw(st.integers(0, q.size - 1))] = data.draw(st.sampled_from([0, 1 - LARGEST, 77]))
    exact = q.astype(np.int32)
    assert np.array_equal(decoded(encoded(exact.copy(), splits), (z, y, x), splits), exact)


def test_zeros_take_next_to_nothing_and_neighbours_tell_of_each_other() -> None:
    empty = np.zeros((64, 64, 64), np.int32)
    assert len(encoded(empty, DEEPEST)) < 20
    noise = np.random.default_rng(3)
    spread, gathered = empty.copy(), empty.copy()
    spread.reshape(-1)[noise.choice(64**3, 4096, replace=False)] = 1
    gathered[40:56, 40:56, 40:56] = 1
    assert 2 * len(encoded(gathered, DEEPEST)) < len(encoded(spread, DEEPEST))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_comes_back_within_its_step(dtype: str) -> None:
    values = scan(dtype=dtype)
    errors = []
    for step in (2.0, 8.0, 30.0):
        data = wavelet_bytes(values, step)
        assert data[0] == WAVELET
        told = wavelet_values(data, values.shape, values.dtype)  # type: ignore[arg-type]
        assert told.dtype == values.dtype
        errors.append(float(np.square(told.astype(float) - values.astype(float)).mean()))
        assert errors[-1] < step**2 / 8 + 1 / 12
    assert errors == sorted(errors)


def test_every_shape_comes_back() -> None:
    for shape in itertools.product((1, 2, 7, 8, 17), repeat=3):
        z, y, x = shape
        values = scan((max(2, z), max(2, y), max(2, x)), "float32")[:z, :y, :x]
        told = wavelet_values(wavelet_bytes(values, 4.0), shape, values.dtype)
        assert told.shape == shape
        assert np.abs(told - values).max() < 16


def test_thick_slices_are_not_transformed_across() -> None:
    smooth = scan((32, 32, 32), "float64")
    assert _chosen(smooth, float(smooth.mean()), 8.0) == Levels((3, 3, 3))
    apart = smooth[np.random.default_rng(4).permutation(32)]
    for axis in range(3):
        levels = _chosen(np.moveaxis(apart, 0, axis), float(apart.mean()), 8.0)
        assert (levels.counts[axis], levels.first) == (0, axis)
        assert levels.order[0] == axis
        told = wavelet_values(
            wavelet_bytes(np.moveaxis(apart, 0, axis), 8.0), (32, 32, 32), np.dtype(np.float64)
        )
        assert np.abs(np.moveaxis(told, axis, 0) - apart).max() < 16


FULL = np.random.default_rng(5)


@pytest.mark.parametrize(
    ("values", "step", "kind"),
    [
        pytest.param(np.full((4, 5, 6), -7, np.int16), 3.0, CONSTANT, id="constant"),
        pytest.param(np.full((4, 4, 4), np.nan, np.float32), 3.0, AS_IT_IS, id="nothing but gaps"),
        pytest.param(np.where(scan() > 50, np.inf, scan(dtype="float32")), 3.0, AS_IT_IS, id="inf"),
        pytest.param(np.full((4, 4, 4), 2**60 + 1), 1.0, AS_IT_IS, id="no float64 holds it"),
        pytest.param(FULL.normal(0, 1e200, (4, 4, 4)), 1e195, AS_IT_IS, id="squares overflow"),
        pytest.param(FULL.normal(0, 1, (4, 4, 4)), 1e-30, AS_IT_IS, id="finer than integers"),
        pytest.param(FULL.integers(0, 2, (16, 16, 16)).astype(np.uint8), 0.05, AS_IT_IS, id="noise"),
    ],
)
def test_what_is_no_matter_of_waves_is_kept_exactly(values: Array, step: float, kind: int) -> None:
    data = wavelet_bytes(values, step)
    assert data[0] == kind
    z, y, x = values.shape
    np.testing.assert_array_equal(wavelet_values(data, (z, y, x), values.dtype), values)


@pytest.mark.parametrize("dtype", ["int16", "uint16", "int64", "uint64", "float32"])
def test_extremes_stay_within_their_dtype(dtype: str) -> None:
    info: Any = np.finfo(dtype) if dtype.startswith("f") else np.iinfo(dtype)
    values = np.where(np.random.default_rng(1).random((16, 16, 16)) < 0.5, info.min, info.max).astype(dtype)
    range_ = float(info.max) - float(info.min)
    data = wavelet_bytes(values, range_ / 3)
    assert data[0] == WAVELET
    told = wavelet_values(data, (16, 16, 16), values.dtype)
    assert np.isfinite(told.astype(float)).all()
    assert (
        told[values == info.max].astype(float) > told[values == info.min].astype(float).mean()
    ).mean() > 0.9
    assert told.min() == info.min
    assert float(told.max()) >= float(info.max) * (1 - 1e-6)


def test_cut_and_altered_blocks_are_refused_or_decode_to_something() -> None:
    values = scan()
    data = wavelet_bytes(values, 8.0)
    z, y, x = values.shape
    for stop in range(0, len(data), 5):
        with pytest.raises(ValueError, match=r"block|coefficients|announced|number at byte"):
            wavelet_values(data[:stop], (z, y, x), values.dtype)
    noise = np.random.default_rng(6)
    for at in [*range(HEADER.size + 12), *noise.integers(0, len(data), 60).tolist()]:
        altered = bytearray(data)
        altered[at] ^= 1 << int(noise.integers(8))
        try:
            told = wavelet_values(bytes(altered), (z, y, x), values.dtype)
        except ValueError:
            continue
        assert (told.shape, told.dtype) == (values.shape, values.dtype)


def test_headers_that_none_writes_are_named() -> None:
    values = scan()
    data = wavelet_bytes(values, 8.0)
    z, y, x = values.shape
    packed, step, offset, *means = HEADER.unpack_from(data)[1:]
    for fields, message in [
        (
            (0o7777, step, offset),
            r"levels \(7, 7, 7\), axis 7 first: a block of \(20, 33, 26\) has \(2, 3, 2\)",
        ),
        ((packed, -1.0, offset), "a step of -1.0 and an offset of .*: both are finite, a step is above 0"),
        ((packed, step, np.inf), "an offset of inf"),
        ((packed, 1e308, offset), "are not finite"),
    ]:
        forged = HEADER.pack(WAVELET, *fields, *means) + data[HEADER.size :]
        with pytest.raises(ValueError, match=message):
            wavelet_values(forged, (z, y, x), values.dtype)
    with pytest.raises(ValueError, match="no block of this version"):
        wavelet_values(b"\x07" + data[1:], (z, y, x), values.dtype)
    forged = data[: HEADER.size] + b"\xff\xff\xff\xff\x0f" + data[HEADER.size :]
    with pytest.raises(ValueError, match="4294967295 bytes announced"):
        wavelet_values(forged, (z, y, x), values.dtype)


def test_lengths_of_axes_decide_how_many_levels_they_have() -> None:
    assert [most_levels(side) for side in (1, 7, 8, 14, 15, 16, 32, 64, 1000)] == [0, 0, 1, 1, 2, 2, 3, 4, 4]
    assert struct.calcsize(HEADER.format) == HEADER.size == 22


DECODING = """
import sys, numpy as np
from storage.wavelet.block import wavelet_values
told = wavelet_values(open(sys.argv[1], "rb").read(), (40, 64, 64), np.dtype(np.float64))
open(sys.argv[2], "wb").write(told.tobytes())
"""


def test_the_same_bits_with_any_number_of_threads(tmp_path: Path) -> None:
    values = scan((40, 64, 64), "float64", seed=8)
    (tmp_path / "block").write_bytes(wavelet_bytes(values, 3.0))
    told = []
    for threads in ("1", "4"):
        many = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads)
        command = [sys.executable, "-c", DECODING, str(tmp_path / "block"), str(tmp_path / threads)]
        root = Path(__file__).resolve().parents[2]
        subprocess.run(command, check=True, env=os.environ | many, cwd=root, timeout=120)
        told.append((tmp_path / threads).read_bytes())
    assert told[0] == told[1]
    here = wavelet_values((tmp_path / "block").read_bytes(), (40, 64, 64), np.dtype(np.float64))
    assert told[0] == here.tobytes()


WRITTEN = (
    "1Cam#0000007O7Z8F;!iB5Xha0SN>!0RaKX1OLeQ_*2rvR(JkTm;u=lHjtHbe}~qP6A}?2;s!4c*DNk2WtQ}(xd8ZAmJf6@X"
    "DT~{RGF*CD692%J2)Ys=q1entP_2_(+-"
    "f<WA9#W3OGVpZ0DZ^w<&)CLC0%9w<hb~s2c6K3pkKEj5K?F{fxR<gTGDCx9&*VXz`IfsYSh*YZt_sj9insVNNmmm5z=IP70;"
    "<BS$tZB?v5tGOWZOw<$?zUlD>*vFd{MpWX}U(3E(-"
    "2$Li8^j3CuC<jNB?H}s*mAPF)xPh9r^Zo{hp>^=QTiXtcUjU}^+w&S$vLm<LMkq0_+pf*D&JPj3p!kUAT^xZZom~O0_vo&;3"
    "b>w0O~vZbp;1l+^i5JuL)mR0nmR4>-rb7#qO)WedEo=+Qh<ZB|HPR-W67QLh%f!RH|A@cXc3-"
    "WtLb}EHmst>2;vp!)U9n8Exc2<;|M)`olLi8g2Eh|rey-WRo8+_i8rMF{@o(1!FP55_Z!kwID~RZe*fqa*Ys?7ep;8xI?a;a"
    "?U|*$dao8|Q|(_|ewWA1F!;d_KkLpJ8r>N57^xXHDsdZ`F}9moobA&wT)Xrq9#Kak`6}rzC5Dg*S|5^7|G))VdP=O9R#pK(f"
    "B*mORae_<NhkvXU)Ofaq>?FxQIJCXlT3h%-"
    "prOAJH7NdB=KjuwbV4d*^zpx&rvbd<o6k?B^rWz7W~+zXwS5SU+qJ#40t%?E5Z2zuT3*=y!$8o!Cve10o5BsCFbU!oP$6"
)


def test_what_version_1_wrote_is_read_as_it_was() -> None:
    told = wavelet_values(b85decode(WRITTEN), (9, 16, 18), np.dtype(np.int16))
    assert sha256(told.astype("<i2").tobytes()).hexdigest()[:32] == "cdb6c78045742d3051494d298d712780"
    z, y, x = np.indices(told.shape)
    values = (z * 37 + y * 11 + x * x * 3) % 97 + (y > 7) * 300 + (x - 9) ** 2
    assert np.abs(told - values).max() <= 49


def test_blocks_that_are_no_grid_of_the_shape_are_refused_before_there_is_room_for_it() -> None:
    payload = Wavelet().packed(scan((9, 8, 70)), 8.0)
    assert Wavelet().unpacked(payload, (9, 8, 70), np.dtype(np.int16)).shape == (9, 8, 70)
    for shape in [(9, 8, 64), (1 << 40, 1 << 40, 1 << 40), (2, 9, 8, 70)]:
        with pytest.raises(ValueError, match="2 blocks for a shape of"):
            Wavelet().unpacked(payload, shape, np.dtype(np.int16))
