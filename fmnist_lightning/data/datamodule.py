"""The LightningDataModule: which data, which cut, which batches."""

from pathlib import Path

import lightning as L
import torch

from fmnist_lightning.data.augment import augment, mix
from fmnist_lightning.data.batches import Batch, Batches
from fmnist_lightning.data.download import ensure_files
from fmnist_lightning.data.fashion_mnist import Split, stratified_split
from fmnist_lightning.data.sources import load_images

# The validation cut is the same in every run, whatever its seed, so that all runs are chosen on the same images.
SPLIT_SEED = 20170825  # the day on which Fashion-MNIST came out


class FashionMNISTDataModule(L.LightningDataModule):
    """Fashion-MNIST or its drawn stand-in, as batches by one gather from a uint8 tensor on the device.

    `val_fraction` of the training set, balanced by class, is the validation cut; 0 makes none. The test set is read for
    the test loop alone. For training, `flip`, `shift` and `erase` are those of `augment`, and `mixup` is the alpha of
    `mix`, 0 for none.
    """

    def __init__(
        self,
        dataset: str = "fashion_mnist",
        data_dir: str = "data",
        batch_size: int = 128,
        val_fraction: float = 0.1,
        seed: int = 0,
        flip: bool = False,
        shift: int = 0,
        erase: float = 0.0,
        mixup: float = 0.0,
    ) -> None:
        super().__init__()
        if dataset not in ("fashion_mnist", "drawn"):
            raise ValueError(f"dataset is {dataset}; expected fashion_mnist or drawn (resolve_dataset answers auto)")
        self.save_hyperparameters()
        self.dataset = dataset
        self.data_dir = Path(data_dir)
        self.batch_size = batch_size
        self.val_fraction = val_fraction
        self.seed = seed
        self.augmentation = (flip, shift, erase)
        self.mixup = mixup
        self.prepared = False
        self.splits: dict[str, Split] = {}

    def prepare_data(self) -> None:
        """Fetch what is missing, once; Lightning asks before training and again before the test."""
        if self.dataset == "fashion_mnist" and not self.prepared:
            ensure_files(self.data_dir)
            self.prepared = True

    def setup(self, stage: str) -> None:
        """Load what `stage`, one of Lightning's `fit validate test`, needs."""
        if stage == "test":
            self.splits["test"] = self.load(train=False)
        elif "train" not in self.splits:
            whole = self.load(train=True)
            if not self.val_fraction:
                self.splits["train"] = whole
                return
            train, val = stratified_split(whole.labels, self.val_fraction, SPLIT_SEED)
            self.splits["train"] = Split(whole.images[train], whole.labels[train])
            self.splits["val"] = Split(whole.images[val], whole.labels[val])

    def load(self, *, train: bool) -> Split:
        return load_images(self.dataset, self.data_dir, train=train)

    def check_divisible(self, world_size: int) -> None:
        """Raise DataError where a batch of training or validation has fewer images than there are devices."""
        for name, split in self.splits.items():
            Batches(split, self.batch_size, seed=self.seed if name == "train" else None, world_size=world_size)

    def batches(self, name: str, *, seed: int | None = None) -> Batches:
        """The split `name`, moved to the trainer's device once, in this device's share of each batch."""
        if self.trainer is None:
            return Batches(self.splits[name], self.batch_size, seed=seed)
        device = self.trainer.strategy.root_device
        self.splits[name] = split = Split(*(tensor.to(device) for tensor in self.splits[name]))
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        return Batches(split, self.batch_size, seed=seed, rank=rank, world_size=world_size)

    def train_dataloader(self) -> Batches:
        return self.batches("train", seed=self.seed)

    def val_dataloader(self) -> Batches | list[Batches]:
        return self.batches("val") if self.val_fraction else []

    def test_dataloader(self) -> Batches:
        return self.batches("test")

    # The example image of the summary and the graph comes through both hooks too, as a plain tensor.

    def on_after_batch_transfer(self, batch: Batch | torch.Tensor, dataloader_idx: int) -> Batch | torch.Tensor:
        """In training, images are other ones each time they are seen, by torch's global generator."""
        if not isinstance(batch, Batch) or self.trainer is None or not self.trainer.training:
            return batch
        images = augment(batch.images, *self.augmentation)
        if not self.mixup:
            return batch._replace(images=images)
        images, targets = mix(images, batch.labels, self.mixup)
        return batch._replace(images=images, labels=targets.argmax(dim=1), targets=targets)

    def transfer_batch_to_device(
        self, batch: Batch | torch.Tensor, device: torch.device, dataloader_idx: int
    ) -> Batch | torch.Tensor:
        """Move the example image alone: batches lie where they are used, and Lightning's search in them takes long."""
        return batch if isinstance(batch, Batch) else batch.to(device)
