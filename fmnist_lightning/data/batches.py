"""Batches by one gather from a tensor that holds all images; the order is a function of (seed, epoch) alone."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fmnist_lightning.data.fashion_mnist import DataError, Split


class Batch(NamedTuple):
    """A share of a batch, on the images' own device."""

    images: Tensor  # (B, 1, 28, 28) uint8
    labels: Tensor  # (B,) int64; of an image that is mixed of two, the larger part's
    indices: Tensor  # (B,) int64: places in the split
    total: int  # images in the batch, the shares of all devices together
    targets: Tensor | None = None  # (B, 10) float32, where images are mixed: the share of each class


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """A permutation of `count` indices that depends on (seed, epoch) alone, not on what was drawn before."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(mixed_seed(seed, epoch)))


def mixed_seed(*numbers: int) -> int:
    """One seed of several numbers, far from that of their neighbours."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


class Batches:
    """An iterable of `Batch`es over a split, one device's share of each.

    With `seed`, for training: a new order each epoch, batches of `batch_size` and a smaller last one, as in Keras.
    Without, for evaluation: file order, batches as equal as can be, so that each device has the same number of
    them and each index is seen once.

    `batch_size` is global: device `rank` of `world_size` takes its part of the same batch; parts differ by one
    image at most. Raises DataError where a batch has fewer images than there are devices.
    `state_dict` and `load_state_dict` keep the place in the middle of an epoch; Lightning saves them.
    """

    def __init__(
        self, split: Split, batch_size: int, *, seed: int | None = None, rank: int = 0, world_size: int = 1
    ) -> None:
        self.split = split
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.batches_done = 0
        self._start = 0  # where the next pass begins
        # Lightning announces each epoch to loader.batch_sampler.sampler.set_epoch, where torch's loaders want it.
        self.batch_sampler = SimpleNamespace(sampler=self)
        count = len(split.labels)
        smallest = count // len(self) if seed is None else count % batch_size or batch_size
        if smallest < world_size:
            raise DataError(
                f"{count:,} images in batches of --batch_size {batch_size} make one of {smallest}, "
                f"which can't be divided among {world_size} devices: choose another batch size, or fewer devices"
            )

    def __len__(self) -> int:
        return -(-len(self.split.labels) // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order; a place restored from another epoch does not count in this one."""
        if epoch != self.epoch:
            self.epoch, self._start = epoch, 0

    def indices_of_batches(self) -> tuple[Tensor, ...]:
        """The epoch's batches as index tensors, all devices together."""
        count = len(self.split.labels)
        if self.seed is None:
            return torch.arange(count).tensor_split(len(self))
        return epoch_order(count, self.seed, self.epoch).split(self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        images, labels = self.split
        self.batches_done, self._start = self._start, 0
        for indices in self.indices_of_batches()[self.batches_done :]:
            share = indices.tensor_split(self.world_size)[self.rank].to(images.device)
            # Counted before the yield: a state saved while a batch is in use lies behind that batch.
            self.batches_done += 1
            yield Batch(images[share], labels[share], share, len(indices))

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "batches_done": self.batches_done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where `state` was saved: the next pass starts behind the batches that were done."""
        self.epoch, self._start = state["epoch"], state["batches_done"]
