"""Quantised trains of integers: digits, values that no machine rounds otherwise, and bytes."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from storage.putt.coder import decoded, encoded
from storage.putt.digits import Digits
from storage.putt.factorising import factorised
from storage.putt.integer_train import OCTAVE, IntegerTrain, lg, power, scales_of

SHAPES = [(16, 16, 16), (1, 16, 8), (5, 7, 3), (1, 1, 9), (2, 1, 1), (1, 1, 1), (32, 8, 16)]


def body(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray[Any, np.dtype[np.float64]]:
    """A ball of 1,000 on 0, with a slope and noise of deviation 20."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij")
    noise = np.random.default_rng(seed).normal(0, 20, shape)
    return 1000.0 * (z**2 + y**2 + x**2 < 0.7) + 50 * x + noise


def hadamard(size: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Sylvester's matrix: the sign is the parity of the bits that row and column share."""
    return np.array([[(-1.0) ** (row & column).bit_count() for column in range(size)] for row in range(size)])


def train_of(shape: tuple[int, int, int] = (16, 16, 16), step: float = 40.0) -> IntegerTrain:
    return factorised(Digits.of(shape).split(body(shape)), step)


@pytest.mark.parametrize("shape", SHAPES)
def test_digits_are_bits_of_places_coarse_first(shape: tuple[int, int, int]) -> None:
    digits = Digits.of(shape)
    values = np.arange(prod(shape)).reshape(shape)
    split = digits.split(values)
    assert split.shape == digits.modes
    assert np.array_equal(digits.joined(split), values)
    at = tuple(side - 1 for side in shape)
    number = []
    for axes, level in zip(digits.axes, range(digits.levels - 1, -1, -1), strict=True):
        digit = 0
        for axis in axes:
            digit = 2 * digit + (at[axis] >> level & 1)
        number.append(digit)
    assert split[tuple(number)] == values[at]


def test_the_modes_of_a_cube_are_putts_and_flat_blocks_have_fewer() -> None:
    assert Digits.of((64, 64, 64)).modes == (8,) * 6
    assert Digits.of((1, 64, 64)).modes == (4,) * 6
    assert Digits.of((8, 64, 33)).modes == (4, 4, 4, 8, 8, 8)
    for shape in ((0, 3, 3), (3, 3)):
        with pytest.raises(ValueError, match="no voxels"):
            Digits.of(shape)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", SHAPES)
def test_values_are_the_products_of_the_dequantised_cores(shape: tuple[int, int, int]) -> None:
    train = train_of(shape)
    expected = np.full((1, 1), train.step)
    for level, core in enumerate(train.cores):
        scales = scales_of(core) if level else np.zeros(1)
        H = core * 2.0 ** (-scales / OCTAVE)[:, None, None]
        H = np.einsum("de,aeb->adb", hadamard(core.shape[1]) / np.sqrt(core.shape[1]), H)
        expected = (expected @ H.reshape(len(H), -1)).reshape(-1, H.shape[2])
    assert train.values().ravel() == pytest.approx(train.offset + expected.ravel(), abs=5e-3)


def test_rows_have_unit_norm_whatever_their_integers() -> None:
    rng = np.random.default_rng(0)
    for largest in (1, 7, 1000, 1 << 30, 1 << 40):
        q = rng.integers(-largest, largest + 1, (20, 8, 3))
        q[:, 0, 0] = largest
        norms = np.linalg.norm((q * power(-scales_of(q))[:, None, None]).reshape(20, -1), axis=1)
        assert np.abs(16 * np.log2(norms)).max() <= 1.25


@pytest.mark.parametrize("step", [5.0, 20.0, 80.0])
def test_the_error_is_below_a_third_of_the_step_and_ranks_fall_as_it_grows(step: float) -> None:
    block, digits = body((32, 32, 32)), Digits.of((32, 32, 32))
    train = factorised(digits.split(block), step)
    error = np.sqrt(np.square(digits.joined(train.values()) - block).mean())
    assert error < step / 3
    coarser = factorised(digits.split(block), 2 * step)
    assert sum(coarser.ranks) <= sum(train.ranks)
    assert len(encoded(coarser)) < 0.9 * len(encoded(train))


def test_a_direction_that_does_not_pay_for_its_numbers_is_left_out() -> None:
    """Of a block of rank 1, a product whose mean is 0, and noise far below the step, one is kept at
    each bond.
    """
    z, y, x = np.meshgrid(*[np.arange(16)] * 3, indexing="ij")
    block = 50 * (-1.0) ** z * 1.1 ** (y + x) + np.random.default_rng(0).normal(0, 1, (16, 16, 16))
    train = factorised(Digits.of((16, 16, 16)).split(block), 20.0)
    assert train.ranks == (1, 1, 1)


def test_a_rank_is_a_cap_and_its_error_is_that_of_the_truncated_svd() -> None:
    """For two levels there is one bond: Eckart and Young."""
    block = body((4, 4, 4))
    train = factorised(Digits.of((4, 4, 4)).split(block), 0.01, max_rank=3)
    assert train.ranks == (3,)
    A = Digits.of((4, 4, 4)).split(block).reshape(8, 8)
    tail = np.linalg.svd(A - A.mean(), compute_uv=False)[3:]
    assert np.linalg.norm(train.values() - A) == pytest.approx(np.linalg.norm(tail), rel=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_have_the_bits_of_the_whole(shape: tuple[int, int, int]) -> None:
    train = train_of(shape)
    for bond in range(1, len(train.modes)):
        prefixes = np.array(list(np.ndindex(*train.modes[:bond])))[::-2]
        told = train.blocks(prefixes)
        whole = train.values().reshape(*train.modes[:bond], -1)
        assert np.array_equal(told, whole[tuple(prefixes.T)])


def test_levels_are_means_of_the_values() -> None:
    train = train_of((32, 16, 8))
    for levels in range(1, 5):
        means = train.values().reshape(*train.modes[:levels], -1).mean(axis=-1)
        assert train.values(levels) == pytest.approx(means, abs=5e-3)
    assert Digits.of((32, 16, 8)).joined(train.values(4), 4).shape == (16, 8, 4)
    full = Digits.of((32, 16, 8)).joined(train.values())
    pooled = full.reshape(16, 2, 8, 2, 4, 2).mean(axis=(1, 3, 5))
    assert Digits.of((32, 16, 8)).joined(train.values(4), 4) == pytest.approx(pooled, abs=5e-3)


def test_bytes_and_values_are_the_same_whatever_threads_there_are() -> None:
    block = Digits.of((32, 32, 32)).split(body((32, 32, 32)))
    told, bits = set(), set()
    for threads in (1, 2, 3):
        with threadpool_limits(threads):
            train = factorised(block, 150.0)
            told.add(encoded(train))
            bits.add(train.values().tobytes())
    assert len(told) == len(bits) == 1


def test_powers_are_exact_and_logarithms_rough() -> None:
    scales = np.arange(-300, 300)
    assert power(scales) == pytest.approx(2.0 ** (scales / 16), rel=1e-8)
    values = np.geomspace(1e-3, 1e9, 1001)
    error = 16 * np.log2(values) - lg(values)
    assert error.min() >= 0
    assert error.max() <= 2.4


# Bytes


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("step", [0.01, 3.0, 60.0, 1e5])
def test_bytes_give_the_same_train(shape: tuple[int, int, int], step: float) -> None:
    train = train_of(shape, step)
    cores = decoded(encoded(train), train.modes)
    assert all(np.array_equal(a, b) for a, b in zip(cores, train.cores, strict=True))


def test_bytes_are_far_fewer_than_a_general_packer_takes() -> None:
    import lzma

    train = train_of((32, 32, 32), 400.0)
    plain = np.concatenate([core.ravel() for core in train.cores]).astype("<i2").tobytes()
    assert len(encoded(train)) < 0.8 * len(lzma.compress(plain, preset=9))


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_broken_bytes_are_refused_or_give_another_train_of_the_same_modes(data: st.DataObject) -> None:
    train = train_of((8, 8, 8), 30.0)
    whole = bytearray(encoded(train))
    if data.draw(st.booleans()):
        whole = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        cores = decoded(bytes(whole), train.modes)
    except ValueError:
        return
    other = IntegerTrain(cores, 1.0, 0.0)
    assert other.modes == train.modes
    assert np.isfinite(other.values()).all()


def test_what_cannot_be_a_train_is_refused() -> None:
    values = Digits.of((4, 4, 4)).split(body((4, 4, 4)))
    for step in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="above 0 and finite"):
            factorised(values, step)
    values[0, 0] = np.nan
    with pytest.raises(ValueError, match="must be finite"):
        factorised(values, 1.0)
    train = train_of((4, 4, 4))
    with pytest.raises(ValueError, match="do not fit"):
        IntegerTrain(train.cores[::-1], 1.0, 0.0)


def test_a_constant_block_costs_a_few_bytes_and_is_exact() -> None:
    digits = Digits.of((16, 16, 16))
    train = factorised(digits.split(np.full((16, 16, 16), 7.25)), 2.0)
    assert np.array_equal(train.values(), np.full(digits.modes, 7.25))
    assert len(encoded(train)) < 16


@pytest.mark.parametrize("scale", [1 << 45, 1 << 62])
def test_numbers_without_measure_are_refused_before_they_are_computed_with(scale: int) -> None:
    train = train_of((8, 8, 8), 30.0)
    largest = train.cores[-1] * (scale // int(np.abs(train.cores[-1]).max()))
    with pytest.raises(ValueError, match="they are from 0 to 160"):
        decoded(encoded(IntegerTrain((*train.cores[:-1], largest), 1.0, 0.0)), train.modes)
