"""Augmentations do what a naive loop over images does, with every offset drawn and nothing else changed."""

import math

import pytest
import torch

from fmnist_lightning.data.augment import augment, erase_rectangles, mix, move


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(count: int) -> torch.Tensor:
    """Images (n, 1, 28, 28) uint8 without black, so that what came in can be told from what was there."""
    return torch.randint(1, 256, (count, 1, 28, 28), generator=seeded(), dtype=torch.uint8)


def moved(image: torch.Tensor, flip: bool, down: int, right: int) -> torch.Tensor:
    """One image (1, 28, 28), pixel by pixel."""
    result = torch.zeros_like(image)
    source = image.flip(2) if flip else image
    for row in range(28):
        for column in range(28):
            if 0 <= row - down < 28 and 0 <= column - right < 28:
                result[0, row, column] = source[0, row - down, column - right]
    return result


def test_each_image_is_moved_as_one_of_all_moves_and_each_occurs_equally_often() -> None:
    [image] = random_images(1)
    moves = [
        moved(image, flip, down, right) for flip in (False, True) for down in range(-2, 3) for right in range(-2, 3)
    ]
    result = move(image.expand(20_000, 1, 28, 28), flip=True, shift=2, generator=seeded())
    counts = [int((result == one).flatten(1).all(dim=1).sum()) for one in moves]
    assert sum(counts) == 20_000
    # 400 each; six standard deviations of a binomial.
    assert min(counts) > 280
    assert max(counts) < 520


def test_without_flip_and_shift_images_stay_as_they_are() -> None:
    images = random_images(8)
    assert augment(images, flip=False, shift=0, erase=0.0) is images


def test_flip_alone_flips_half() -> None:
    images = random_images(2000)
    result = move(images, flip=True, shift=0, generator=seeded())
    flipped = (result == images.flip(3)).flatten(1).all(dim=1)
    assert (flipped | (result == images).flatten(1).all(dim=1)).all()
    assert 900 < flipped.sum() < 1100


def test_an_erased_part_is_one_black_rectangle_of_the_stated_size() -> None:
    images = random_images(2000)
    erased = erase_rectangles(images, 1.0, seeded()) == 0
    rows, columns = erased.any(dim=3).sum(dim=2), erased.any(dim=2).sum(dim=2)
    area = erased.sum(dim=(1, 2, 3))
    assert torch.equal(rows * columns, area[:, None])
    assert area.min() >= 1
    # A side is rounded to whole pixels, half a pixel more at most.
    assert area.max() <= (28 * (1 / 3 / 0.3) ** 0.5 + 0.5) * (28 * (0.3 / 3) ** 0.5 + 0.5)
    # Each place of an image can be hit.
    assert erased.any(dim=0).all()


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_stated_share_of_images_is_erased(share: float) -> None:
    erased = (erase_rectangles(random_images(2000), share, seeded()) == 0).flatten(1).any(dim=1).float().mean()
    assert abs(erased - share) < 0.04


def test_the_same_generator_gives_the_same_images_and_the_input_is_left_alone() -> None:
    images = random_images(50)
    before = images.clone()
    first, again = (augment(images, True, 2, 0.5, seeded(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, augment(images, True, 2, 0.5, seeded(4)))
    assert torch.equal(images, before)
    assert first.dtype == torch.uint8


def test_each_image_is_blended_with_its_neighbour_and_the_labels_alike() -> None:
    images, labels = random_images(40), torch.arange(40) % 10
    shares = []
    for seed in range(200):
        torch.manual_seed(seed)
        mixed, targets = mix(images, labels, alpha=0.5)
        share = targets[1, 1].item()
        shares.append(share)
        blend = images.double() * share + images.roll(1, 0).double() * (1 - share)
        assert (mixed - blend).abs().max() < 0.501
        one_hot = torch.eye(10)[labels]
        torch.testing.assert_close(targets, share * one_hot + (1 - share) * one_hot.roll(1, 0))
        assert mixed.dtype == torch.uint8
    # Beta(1/2, 1/2) has the distribution function 2 / pi arcsin(sqrt(x)), so 41 % of it outside of 0.1 to 0.9, where an
    # even distribution has 20. Three and a half standard deviations of a binomial of 200.
    outside = sum(not 0.1 < share < 0.9 for share in shares) / len(shares)
    assert abs(outside - 4 / math.pi * math.asin(math.sqrt(0.1))) < 0.12


def test_a_batch_of_one_is_mixed_with_itself() -> None:
    images = random_images(1)
    mixed, targets = mix(images, torch.tensor([3]), alpha=0.2)
    assert torch.equal(mixed, images)
    torch.testing.assert_close(targets, torch.eye(10)[[3]])
