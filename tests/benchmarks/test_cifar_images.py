"""CIFAR-10 for benchmarks: labels, order and spread of the images, and the augmentation."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from benchmarks.cifar_images import MARGIN, MEAN, STD, augmented, images, missing, normalised

needs_images = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@needs_images
def test_images_are_spread_over_labels_and_the_same_at_each_call() -> None:
    pixels, labels = images("test", 100)
    assert pixels.shape == (100, 3, 32, 32)
    assert pixels.dtype == torch.uint8
    assert labels.tolist() == sorted(list(range(10)) * 10)
    assert images("test", 100)[0] is pixels
    every, of_every = images("test", every=100)
    assert torch.equal(every, pixels)
    assert torch.equal(of_every, labels)


@needs_images
def test_normalised_undoes_to_the_pixels() -> None:
    pixels = images("test", 100)[0]
    back = normalised(pixels) * torch.tensor(STD).reshape(3, 1, 1) + torch.tensor(MEAN).reshape(3, 1, 1)
    assert torch.equal((255 * back).round().to(torch.uint8), pixels)


@needs_images
def test_a_count_beyond_the_images_is_refused() -> None:
    with pytest.raises(ValueError, match="1 to 100"):
        images("test", 101, every=100)


def test_an_augmented_image_is_a_crop_or_its_mirror_image() -> None:
    batch = torch.arange(40 * 3 * 32 * 32, dtype=torch.float32).reshape(40, 3, 32, 32) + 1
    made = augmented(batch, torch.Generator().manual_seed(0))
    around = functional.pad(batch, (MARGIN,) * 4)
    mirrored = 0
    for image, padded in zip(made, around, strict=True):
        crops = [padded[:, y : y + 32, x : x + 32] for y in range(9) for x in range(9)]
        straight = any(torch.equal(image, crop) for crop in crops)
        flipped = any(torch.equal(image.flip(-1), crop) for crop in crops)
        assert straight != flipped
        mirrored += flipped
    assert 8 <= mirrored <= 32
    assert torch.equal(made, augmented(batch, torch.Generator().manual_seed(0)))
