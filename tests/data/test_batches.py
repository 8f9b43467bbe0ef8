"""Each index once, in an order that (seed, epoch) alone decides, on any number of devices, from any place."""

import pytest
import torch

from fmnist_lightning.data.batches import Batches, epoch_order
from fmnist_lightning.data.fashion_mnist import DataError, Split

COUNT = 103


@pytest.fixture
def split() -> Split:
    images = torch.arange(COUNT, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 28, 28).contiguous()
    return Split(images, torch.arange(COUNT) % 10)


def indices(batches: Batches) -> list[int]:
    return [index for batch in batches for index in batch.indices.tolist()]


def test_a_batch_is_the_images_and_labels_of_its_indices(split: Split) -> None:
    for batch in Batches(split, 10, seed=1):
        assert torch.equal(batch.images[:, 0, 0, 0].long(), batch.indices)
        assert torch.equal(batch.labels, batch.indices % 10)
        assert batch.total == len(batch.labels)
        assert batch.targets is None


def test_training_sees_each_image_once_in_full_batches_but_the_last(split: Split) -> None:
    batches = Batches(split, 10, seed=1)
    sizes = [len(batch.labels) for batch in batches]
    assert sizes == [10] * 10 + [3]
    assert len(batches) == 11
    assert sorted(indices(batches)) == list(range(COUNT))


def test_the_order_depends_on_seed_and_epoch_alone(split: Split) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        batches = Batches(split, 10, seed=seed)
        batches.set_epoch(epoch)
        torch.rand(7)  # what else was drawn does not matter
        return indices(batches)

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3)
    assert order(1, 2) != order(2, 2)
    assert not torch.equal(epoch_order(COUNT, 1, 2), epoch_order(COUNT, 2, 1))


@pytest.mark.parametrize("batch_size", [1, 7, 10, 102, 103, 500])
def test_evaluation_goes_through_the_file_in_order(split: Split, batch_size: int) -> None:
    batches = Batches(split, batch_size)
    assert indices(batches) == list(range(COUNT))
    assert len(list(batches)) == len(batches)
    assert max(len(batch.labels) for batch in batches) <= batch_size


@pytest.mark.parametrize("world_size", [2, 3, 7])
@pytest.mark.parametrize("seed", [None, 5])
def test_devices_share_the_same_batches_without_overlap(split: Split, seed: int | None, world_size: int) -> None:
    whole = list(Batches(split, 24, seed=seed))
    shares = [list(Batches(split, 24, seed=seed, rank=rank, world_size=world_size)) for rank in range(world_size)]
    for step, batch in enumerate(whole):
        joined = torch.cat([share[step].indices for share in shares])
        assert torch.equal(joined, batch.indices)
        assert all(len(share[step].labels) and share[step].total == batch.total for share in shares)


@pytest.mark.parametrize(("seed", "batch_size", "smallest"), [(None, 2, 1), (5, 2, 1), (5, 51, 1), (5, 34, 1)])
def test_fewer_images_in_a_batch_than_devices_is_refused(
    split: Split, seed: int | None, batch_size: int, smallest: int
) -> None:
    with pytest.raises(DataError, match=f"batches of --batch_size {batch_size} make one of {smallest}, .* 3 devices"):
        Batches(split, batch_size, seed=seed, world_size=3)
    Batches(split, 25, seed=seed, world_size=3)  # whose last one has three


def test_a_restored_place_goes_on_behind_the_batches_that_were_done(split: Split) -> None:
    batches = Batches(split, 10, seed=1)
    batches.set_epoch(4)
    expected = indices(batches)
    iterator = iter(batches)
    done = [index for _ in range(3) for index in next(iterator).indices.tolist()]
    restored = Batches(split, 10, seed=1)
    restored.load_state_dict(batches.state_dict())
    restored.set_epoch(4)
    assert done + indices(restored) == expected
    assert indices(restored) == expected  # the next pass is a whole one


def test_a_restored_place_does_not_count_in_another_epoch(split: Split) -> None:
    batches = Batches(split, 10, seed=1)
    batches.load_state_dict({"epoch": 4, "batches_done": 11})
    batches.set_epoch(5)
    assert len(indices(batches)) == COUNT
