"""Batches: one gather each from a tensor that holds all images, in an order that (seed, epoch) alone determines."""

from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fmnist_lightning.data.source import DataError, Split


class Batch(NamedTuple):
    """One rank's shard of a batch, on the images' own device."""

    images: Tensor  # (B, C, H, W) uint8
    labels: Tensor  # (B,) int64; of a blended image, that of the larger part
    indices: Tensor  # (B,) int64: positions in the split
    total: int  # images in the whole batch, the shards of all ranks
    targets: Tensor | None = None  # (B, num_classes) float32 probabilities, if images are blended


def first_tensors(batch: Any, count: int) -> list[Tensor]:
    """The first `count` parts of any loader's batch. Raises ValueError if they are no tensors."""
    parts = list(batch[:count]) if isinstance(batch, Sequence) else []
    if len(parts) < count or not all(isinstance(part, Tensor) for part in parts):
        found = f" of {', '.join(type(part).__name__ for part in parts)}" if parts else ""
        expected = "(images, labels) as tensors" if count == 2 else "images as a tensor, or what begins with them"
        raise ValueError(f"cannot use a batch that is a {type(batch).__name__}{found}: expected {expected}")
    return parts


def labels_and_targets(labels: Tensor, count: int, num_classes: int, *, look: bool) -> tuple[Tensor, Tensor | None]:
    """Labels (B,) int64 of `count` images, and the probabilities (B, num_classes) that were given for them, if any.

    Takes integers (B,) or (B, 1), or probabilities as floats. Raises ValueError for others, and with `look` for labels
    out of range.
    """
    targets = labels if labels.is_floating_point() else None
    if targets is None and labels.shape == (count, 1):
        labels = labels[:, 0]
    if not count or labels.shape != ((count,) if targets is None else (count, num_classes)):
        raise ValueError(
            f"cannot use labels {tuple(labels.shape)} {labels.dtype} of {count} images: expected integers (B,), or "
            f"probabilities (B, {num_classes}) as floats"
        )
    if targets is not None:
        return targets.argmax(dim=1), targets
    labels = labels.long()
    if look and not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(
            f"cannot use labels from {labels.min()} to {labels.max()}: num_classes is {num_classes} (number the "
            "classes from 0)"
        )
    return labels, None


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """A permutation of `count` indices that depends on (seed, epoch) alone."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(mixed_seed(seed, epoch)))


def mixed_seed(*numbers: int) -> int:
    """One seed from several numbers. Neighboring numbers give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


class Batches:
    """An iterable of `Batch`es over a split: one rank's shard of each.

    With `seed`, for training: a new order each epoch, batches of `batch_size` and a smaller last one, as in Keras.
    Without, for evaluation: file order, in batches of nearly equal size, so that each rank has a shard of every one.
    `augment` changes each batch just before it is yielded.

    A Trainer sets the epoch. Without one, each pass is the next epoch.

    `batch_size` is global: `rank` of `world_size` takes its shard of the same batch. Shards differ by one image at
    most. Raises DataError if a batch has fewer images than there are ranks.
    Lightning saves the position within an epoch, `state_dict`, in checkpoints.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        seed: int | None = None,
        augment: Callable[[Batch], Batch] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.split = split
        self.batch_size = batch_size
        self.seed = seed
        self.augment = augment
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.batches_done = 0
        self._start = 0  # the first batch of the next pass
        self._begun = False  # whether a pass of this epoch began
        # Lightning calls loader.batch_sampler.sampler.set_epoch before each epoch, as torch's loaders have it.
        self.batch_sampler = SimpleNamespace(sampler=self)
        count = len(split.labels)
        smallest = count // len(self) if seed is None else count % batch_size or batch_size
        if smallest < world_size:
            raise DataError(
                f"cannot divide a batch of {smallest} among {world_size} devices: {count:,} images in batches of "
                f"--batch_size {batch_size} make such a batch (choose another batch size, or fewer devices)"
            )

    def __len__(self) -> int:
        return -(-len(self.split.labels) // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass. A restored position counts only in the epoch that it was saved in."""
        if epoch != self.epoch:
            self.epoch, self._start = epoch, 0
        self._begun = False

    def __iter__(self) -> Iterator[Batch]:
        # Lightning makes more iterators than it reads; this runs when the first batch is read.
        if self._begun:
            self.set_epoch(self.epoch + 1)
        self._begun = True
        images, labels = self.split
        batches = torch.arange(len(labels)).tensor_split(len(self))
        if self.seed is not None:
            batches = epoch_order(len(labels), self.seed, self.epoch).split(self.batch_size)
        self.batches_done, self._start = self._start, 0
        for indices in batches[self.batches_done :]:
            shard = indices.tensor_split(self.world_size)[self.rank].to(images.device)
            # Counted before the yield, since Lightning saves the state after the step that uses the batch.
            self.batches_done += 1
            batch = Batch(images[shard], labels[shard], shard, len(indices))
            yield self.augment(batch) if self.augment else batch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "batches_done": self.batches_done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume at `state`: the next pass starts after the batches that were done."""
        self.epoch, self._start, self._begun = state["epoch"], state["batches_done"], False
