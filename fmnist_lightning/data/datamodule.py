"""The LightningDataModule: which data, which split, which batches."""

from collections.abc import Sequence

import lightning as L
import torch
from torch import Tensor

from fmnist_lightning.cli import default_data_dir
from fmnist_lightning.data.augment import augment, mix
from fmnist_lightning.data.batches import Batch, Batches
from fmnist_lightning.data.sets import find_source
from fmnist_lightning.data.source import DataError, DataSource, Part, Split
from fmnist_lightning.runs.options import SourceOptions

# All runs validate on the same images, whatever their seed, so that their val/accuracy can be compared.
SPLIT_SEED = 20170825  # the day on which Fashion-MNIST was published


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Sorted indices of a larger and a smaller part. The smaller one has `fraction` of each class.

    Raises DataError if a part would be empty.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        shuffled = members[torch.randperm(len(members), generator=generator)]
        chosen.append(shuffled[: round(len(members) * fraction)])
    smaller = torch.cat(chosen).sort().values
    larger = torch.ones(len(labels), dtype=torch.bool).index_fill(0, smaller, False).nonzero().flatten()
    if not len(smaller) or not len(larger):
        raise DataError(
            f"cannot split {len(labels):,} images: a fraction of {fraction} leaves one part empty (choose another)"
        )
    return larger, smaller


class FashionMNISTDataModule(L.LightningDataModule):
    """A data set in `Batches` from one uint8 tensor on the device: Fashion-MNIST, or any other `DataSource`.

    `dataset` is a name in `data.sets.SOURCES`, or a `DataSource` of your own. `data_dir` is by default the environment
    variable FMNIST_DATA_DIR, else `data`. `val_fraction` of the training set, balanced by class, is the validation
    split; 0 makes none. Only the test loop reads the test set. `flip`, `shift` and `erase` are arguments of `augment`;
    `mixup` is the alpha of `mix`, or 0.
    """

    def __init__(
        self,
        dataset: str | DataSource = "fashion_mnist",
        data_dir: str | None = None,
        image_size: int | None = None,
        channels: int | None = None,
        classes: Sequence[str] | None = None,
        skip_unreadable: bool = False,
        batch_size: int = 128,
        val_fraction: float = 0.1,
        seed: int = 0,
        flip: bool = False,
        shift: int = 0,
        erase: float = 0.0,
        mixup: float = 0.0,
    ) -> None:
        super().__init__()
        given = dataset if isinstance(dataset, DataSource) else None
        dataset = given.name if given else str(dataset)
        data_dir = data_dir or default_data_dir()
        self.save_hyperparameters()
        self.source = given or find_source(
            SourceOptions(
                dataset=dataset,  # type: ignore[arg-type]
                data_dir=data_dir,
                image_size=image_size,
                channels=channels,  # type: ignore[arg-type]
                classes=None if classes is None else tuple(classes),
                skip_unreadable=skip_unreadable,
            )
        )
        self.batch_size = batch_size
        self.val_fraction = val_fraction
        self.seed = seed
        self.augmentation = (flip, shift, erase)
        self.mixup = mixup
        self.prepared = False
        self.splits: dict[str, Split] = {}

    def prepare_data(self) -> None:
        """Download what is missing, once: Lightning calls this before training and again before the test."""
        if not self.prepared:
            self.source.prepare()
            self.prepared = True

    def setup(self, stage: str) -> None:
        """Load what `stage` needs: `fit`, `validate` or `test`."""
        if stage == "test":
            self.splits["test"] = self.load("test")
        elif "train" not in self.splits:
            self.splits["train"] = whole = self.load("train")
            if self.val_fraction:
                parts = stratified_split(whole.labels, self.val_fraction, SPLIT_SEED)
                for name, indices in zip(("train", "val"), parts, strict=True):
                    self.splits[name] = Split(whole.images[indices], whole.labels[indices])

    def load(self, part: Part) -> Split:
        """Read a part of the data set. Override it to use other images."""
        return self.source.load(part)

    def train_dataloader(self) -> Batches:
        return self.batches("train", self.seed)

    def val_dataloader(self) -> Batches | list[Batches]:
        return self.batches("val") if self.val_fraction else []

    def test_dataloader(self) -> Batches:
        return self.batches("test")

    def batches(self, name: str, seed: int | None = None) -> Batches:
        """This rank's shards of the batches of split `name`, which moves to the trainer's device once."""
        if self.trainer is None:
            return Batches(self.splits[name], self.batch_size, seed=seed)
        device, rank, ranks = self.trainer.strategy.root_device, self.trainer.global_rank, self.trainer.world_size
        self.splits[name] = Split(*(tensor.to(device) for tensor in self.splits[name]))
        return Batches(self.splits[name], self.batch_size, seed=seed, rank=rank, world_size=ranks)

    def check_divisible(self, world_size: int) -> None:
        """Raise DataError if a batch of training or validation has fewer images than there are ranks."""
        for name, split in self.splits.items():
            Batches(split, self.batch_size, seed=self.seed if name == "train" else None, world_size=world_size)

    # Lightning also passes the module's example_input_array, a plain tensor, through both hooks.

    def transfer_batch_to_device(
        self, batch: Batch | Tensor, device: torch.device, dataloader_idx: int
    ) -> Batch | Tensor:
        """Leave a `Batch` where it is: it is on the device, and Lightning's recursive move would cost time."""
        return batch if isinstance(batch, Batch) else batch.to(device)

    def on_after_batch_transfer(self, batch: Batch | Tensor, dataloader_idx: int) -> Batch | Tensor:
        """Augment training batches, with torch's global generator."""
        if not isinstance(batch, Batch) or self.trainer is None or not self.trainer.training:
            return batch
        images = augment(batch.images, *self.augmentation)
        if not self.mixup:
            return batch._replace(images=images)
        images, targets = mix(images, batch.labels, len(self.source.classes), self.mixup)
        return batch._replace(images=images, labels=targets.argmax(dim=1), targets=targets)
