"""Augmentations equal naive ones, draw every offset equally often, and change nothing else."""

import hashlib

import numpy as np
import pytest
import torch

from fmnist_lightning.data.augment import augment, erase_rectangles, mix, move


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(count: int) -> torch.Tensor:
    """Images (n, 1, 28, 28) uint8 without black, so that only the margin and erased parts are black."""
    return torch.randint(1, 256, (count, 1, 28, 28), generator=seeded(), dtype=torch.uint8)


def test_move_draws_each_flip_and_shift_equally_often() -> None:
    image = random_images(1)
    padded = [np.pad(pixels, 2) for pixels in (image[0, 0].numpy(), image[0, 0].numpy()[:, ::-1])]
    moves = {pixels[y : y + 28, x : x + 28].tobytes(): 0 for pixels in padded for y in range(5) for x in range(5)}
    for result in move(image.expand(5000, 1, 28, 28), flip=True, shift=2, generator=seeded()).numpy():
        moves[result.tobytes()] += 1
    assert len(moves) == 50
    # 100 each; six standard deviations of a binomial.
    assert 40 < min(moves.values()) <= max(moves.values()) < 160


def test_gray_images_are_changed_as_by_the_first_version() -> None:
    """Bit for bit. The digests are those of commit c67eea5, which took gray images alone."""
    images = random_images(20)
    torch.manual_seed(7)
    results = [move(images, True, 2), move(images, True, 0), move(images, False, 3), erase_rectangles(images, 0.5)]
    digests = [hashlib.sha256(result.contiguous().numpy().tobytes()).hexdigest()[:16] for result in results]
    assert digests == ["0e00ca24df76822a", "b66b06a042239edf", "c17fd79810d6bdc9", "7b0a906e37171471"]


@pytest.mark.parametrize("size", [(28, 28), (9, 14)])
def test_color_channels_are_changed_alike(size: tuple[int, int]) -> None:
    """Each channel equals a gray image that is changed by the same random numbers."""
    images = torch.randint(1, 256, (200, 3, *size), generator=seeded(), dtype=torch.uint8)
    changed = augment(images, True, 4, 0.5, seeded(1))
    for channel in range(3):
        gray = augment(images[:, channel : channel + 1], True, 4, 0.5, seeded(1))
        assert torch.equal(changed[:, channel : channel + 1], gray)
    erased = erase_rectangles(images, 1.0, seeded(2)) == 0
    assert torch.equal(erased.any(dim=1), erased.all(dim=1))
    assert erased.flatten(1).any(dim=1).all()


def test_erase_blackens_a_rectangle_of_the_stated_size() -> None:
    images = random_images(2000)
    erased = erase_rectangles(images, 1.0, seeded()) == 0
    rows, columns = erased.any(dim=3).sum(dim=2), erased.any(dim=2).sum(dim=2)
    area = erased.sum(dim=(1, 2, 3))
    assert torch.equal(rows * columns, area[:, None])
    assert area.min() >= 1
    # Sides are rounded to whole pixels, by half a pixel at most.
    assert area.max() <= (28 * (1 / 3 / 0.3) ** 0.5 + 0.5) * (28 * (0.3 / 3) ** 0.5 + 0.5)
    assert erased.any(dim=0).all()
    quarter = (erase_rectangles(images, 0.25, seeded()) == 0).flatten(1).any(dim=1)
    assert abs(quarter.float().mean() - 0.25) < 0.04


def test_augment_depends_on_its_generator_alone() -> None:
    images = random_images(50)
    before = images.clone()
    first, again = (augment(images, True, 2, 0.5, seeded(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, augment(images, True, 2, 0.5, seeded(4)))
    assert torch.equal(images, before)
    assert first.dtype == torch.uint8
    assert augment(images, flip=False, shift=0, erase=0.0) is images


def test_mix_blends_images_and_labels_alike() -> None:
    images, labels = random_images(40), torch.arange(40) % 10
    one_hot = torch.eye(10)[labels]
    weights = set()
    for seed in range(20):
        torch.manual_seed(seed)
        mixed, targets = mix(images, labels, 10, alpha=0.5)
        weight = targets[1, 1].item()
        weights.add(weight)
        blend = images.double() * weight + images.roll(1, 0).double() * (1 - weight)
        assert (mixed - blend).abs().max() < 0.501
        torch.testing.assert_close(targets, weight * one_hot + (1 - weight) * one_hot.roll(1, 0))
        assert mixed.dtype == torch.uint8
    assert len(weights) == 20
    assert torch.equal(mix(images[:1], labels[:1], 10, alpha=0.5)[0], images[:1])  # the last batch may have one image
