"""Each index occurs once, in an order of (seed, epoch) alone, on any number of ranks, from any position."""

import pytest
import torch

from fmnist_lightning.data.batches import Batches
from fmnist_lightning.data.datamodule import stratified_split
from fmnist_lightning.data.source import DataError, Split

COUNT = 103


@pytest.fixture
def split() -> Split:
    """Each image holds its own index."""
    return Split(torch.arange(COUNT, dtype=torch.uint8).view(-1, 1, 1, 1), torch.arange(COUNT) % 10)


def indices(batches: Batches) -> list[int]:
    return [index for batch in batches for index in batch.indices.tolist()]


def test_split_is_balanced_disjoint_and_fixed_by_its_seed() -> None:
    labels = torch.arange(1000) % 10
    train, val = stratified_split(labels, 0.1, seed=1)
    assert labels[val].bincount().tolist() == [10] * 10
    assert torch.equal(torch.cat([train, val]).sort().values, torch.arange(1000))
    assert torch.equal(val, stratified_split(labels, 0.1, seed=1)[1])
    assert not torch.equal(val, stratified_split(labels, 0.1, seed=2)[1])
    with pytest.raises(DataError, match=r"fraction of 0\.1"):
        stratified_split(torch.arange(10), 0.1, seed=0)


def test_training_batches_are_full_but_the_last(split: Split) -> None:
    batches = Batches(split, 10, seed=1)
    for batch in batches:
        assert torch.equal(batch.images[:, 0, 0, 0].long(), batch.indices)
        assert torch.equal(batch.labels, batch.indices % 10)
    assert [batch.total for batch in batches] == [10] * 10 + [3]
    assert len(batches) == 11
    assert sorted(indices(batches)) == list(range(COUNT))


def test_order_depends_on_seed_and_epoch_alone(split: Split) -> None:
    orders = []
    for seed, epoch in ((1, 2), (1, 2), (1, 3), (2, 2), (2, 1)):
        batches = Batches(split, 10, seed=seed)
        batches.set_epoch(epoch)
        torch.rand(7)  # other random numbers don't matter
        orders.append(tuple(indices(batches)))
    assert orders[0] == orders[1]
    assert len(set(orders)) == 4


def test_each_pass_without_a_trainer_is_the_next_epoch(split: Split) -> None:
    batches = Batches(split, 10, seed=1)
    by_epoch = []
    for epoch in range(3):
        batches.set_epoch(epoch)
        by_epoch.append(indices(batches))
    again = Batches(split, 10, seed=1)
    iter(again)  # Lightning makes iterators that it does not read
    assert [indices(again) for _ in range(3)] == by_epoch
    next(iter(again))
    assert again.state_dict() == {"epoch": 3, "batches_done": 1}  # a pass that was broken off counts
    again.set_epoch(1)
    assert indices(again) == by_epoch[1]
    assert indices(Batches(split, 10)) == list(range(COUNT))


@pytest.mark.parametrize("batch_size", [1, 7, 10, 102, 103, 500])
def test_evaluation_batches_are_in_file_order(split: Split, batch_size: int) -> None:
    batches = Batches(split, batch_size)
    assert indices(batches) == list(range(COUNT))
    assert len(list(batches)) == len(batches)
    assert max(len(batch.labels) for batch in batches) <= batch_size


@pytest.mark.parametrize("world_size", [2, 3, 7])
@pytest.mark.parametrize("seed", [None, 5])
def test_ranks_shard_the_same_batches(split: Split, seed: int | None, world_size: int) -> None:
    whole = list(Batches(split, 24, seed=seed))
    ranks = [list(Batches(split, 24, seed=seed, rank=rank, world_size=world_size)) for rank in range(world_size)]
    for step, batch in enumerate(whole):
        assert torch.equal(torch.cat([shards[step].indices for shards in ranks]), batch.indices)
        assert all(len(shards[step].labels) and shards[step].total == batch.total for shards in ranks)


@pytest.mark.parametrize(("seed", "batch_size"), [(None, 2), (5, 2), (5, 51), (5, 34)])
def test_batches_with_fewer_images_than_ranks_are_refused(split: Split, seed: int | None, batch_size: int) -> None:
    with pytest.raises(DataError, match=f"a batch of 1 among 3 devices.* --batch_size {batch_size}"):
        Batches(split, batch_size, seed=seed, world_size=3)
    Batches(split, 25, seed=seed, world_size=3)  # the control: its last batch has 3 images


def test_restored_position_resumes_after_the_done_batches(split: Split) -> None:
    batches = Batches(split, 10, seed=1)
    batches.set_epoch(4)
    expected = indices(batches)
    batches.set_epoch(4)
    iterator = iter(batches)
    done = [index for _ in range(3) for index in next(iterator).indices.tolist()]
    restored = Batches(split, 10, seed=1)
    restored.load_state_dict(batches.state_dict())
    restored.set_epoch(4)
    assert done + indices(restored) == expected
    restored.set_epoch(4)
    assert indices(restored) == expected  # the next pass is complete
    restored.load_state_dict(batches.state_dict())
    restored.set_epoch(5)
    assert len(indices(restored)) == COUNT  # as is another epoch
