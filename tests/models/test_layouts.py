"""Index arithmetic by strides."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import InvalidShape
from models.tt.qtt import Layout, make_layout, qtt_layout, smooth_size, tt_layout

SHAPES = [((4, 4, 4), 2), ((6, 5, 9), 3), ((7, 1, 11), 1), ((1, 1, 1), 1), ((1, 1, 13), 7), ((2, 3, 5), 1)]
MAKERS = {
    "tt": tt_layout,
    "sequential": qtt_layout,
    "interleaved": lambda shape, features: qtt_layout(shape, features, "interleaved"),
}


def all_keys(layout: Layout) -> np.ndarray:
    indices = np.stack(np.unravel_index(np.arange(math.prod(layout.modes)), layout.modes), axis=-1)
    return layout.keys(indices)


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize(("shape", "features"), SHAPES)
def test_keys_are_a_bijection(maker: str, shape: tuple[int, int, int], features: int) -> None:
    layout = MAKERS[maker](shape, features)
    keys = all_keys(layout)
    assert np.array_equal(np.sort(keys), np.arange(math.prod(layout.padded)))
    assert np.array_equal(layout.keys(layout.indices(keys)), keys)
    mirror = layout.mirrored()
    assert np.array_equal(mirror.keys(layout.indices(keys)[:, ::-1]), keys)


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize(("shape", "features"), SHAPES)
def test_entries_are_the_inverse_of_keys_and_padding_is_the_border(
    maker: str, shape: tuple[int, int, int], features: int
) -> None:
    layout = MAKERS[maker](shape, features)
    real = np.indices((*shape, features)).reshape(4, -1).T
    assert np.array_equal(layout.entries(layout.keys_of(real)), real)
    padded = np.indices(layout.padded).reshape(4, -1).T
    assert np.array_equal(
        layout.entries(layout.keys_of(padded)), np.minimum(padded, np.array(layout.shape) - 1)
    )


@given(st.integers(1, 5000))
@settings(max_examples=60, deadline=None)
def test_sizes_are_padded_to_the_next_5_smooth_number(n: int) -> None:
    padded = smooth_size(n)
    rest = padded
    for prime in (2, 3, 5):
        while rest % prime == 0:
            rest //= prime
    assert rest == 1
    assert n <= padded <= 1.2 * n + 1
    between = [m for m in range(n, padded) if _smooth(m)]
    assert not between


def _smooth(n: int) -> bool:
    return pow(30, 20, n) == 0


def test_mixed_radix_pads_no_size_that_factors() -> None:
    assert qtt_layout((240, 256, 96), 16).padded == (240, 256, 96, 16)
    assert qtt_layout((155, 30, 7), 3).padded == (160, 30, 8, 3)
    assert qtt_layout((240, 1, 1), 1).modes == (5, 3, 2, 2, 2, 2)


def test_digits_are_coarse_first_and_features_last() -> None:
    sequential = qtt_layout((8, 4, 2), 4)
    assert sequential.strides == (4 * 32, 2 * 32, 32, 2 * 8, 8, 4, 2, 1)
    interleaved = qtt_layout((8, 4, 2), 4, "interleaved")
    assert interleaved.strides == (4 * 32, 2 * 32, 2 * 8, 32, 8, 4, 2, 1)
    cube = qtt_layout((4, 4, 4), 1, "interleaved")
    assert cube.strides == (32, 8, 2, 16, 4, 1)


def test_sizes_of_one_have_no_mode_but_a_layout_has_one() -> None:
    assert tt_layout((1, 5, 1), 3).modes == (5, 3)
    assert tt_layout((1, 1, 1), 1).modes == qtt_layout((1, 1, 1), 1).modes == (1,)


def test_the_largest_volumes_have_exact_keys() -> None:
    layout = qtt_layout((8192, 8192, 8192), 16)
    assert len(layout.modes) == 43
    corner = np.array([[8191, 8191, 8191, 15], [8191, 0, 17, 3]])
    keys = layout.keys_of(corner)
    assert keys[0] == 2**43 - 1
    assert np.array_equal(layout.entries(layout.keys(layout.indices(keys))), corner)
    with pytest.raises(InvalidShape, match=r"2\^63"):
        tt_layout((2**21, 2**21, 2**21), 1)


def test_what_makes_no_layout_is_refused() -> None:
    with pytest.raises(InvalidShape, match="no voxels"):
        tt_layout((4, 0, 4), 1)
    with pytest.raises(InvalidShape, match="no voxels"):
        qtt_layout((4, 0, 4), 1)
    with pytest.raises(InvalidShape, match="no layout 'tucker'"):
        make_layout("tucker", (4, 4, 4), 1)
    with pytest.raises(InvalidShape, match="no order 'backwards'"):
        make_layout("qtt", (4, 4, 4), 1, "backwards")
