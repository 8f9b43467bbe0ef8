"""The datamodule is a good Lightning citizen: with a Trainer, with loaders alone, and with a data set of one's own."""

import hashlib
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringModel

from fmnist_lightning import FashionMNISTDataModule
from fmnist_lightning.data.batches import Batch, Batches
from fmnist_lightning.data.source import DataError, DataInfo, DataSource, Part, Split

AUGMENTATION: dict[str, Any] = {"flip": True, "shift": 2, "erase": 0.5, "mixup": 0.4}


class Toy:
    """A data set of 40 + 20 color images; counts how often it is prepared and loaded."""

    def __init__(self, parts: tuple[Part, ...] = ("train", "test"), **changes: Any) -> None:
        self.calls: list[str] = []
        self.changes = changes
        self.source = DataSource(
            name="toy",
            title="Toy",
            classes=("a", "b"),
            image_shape=(3, 6, 8),
            load=self.load,
            prepare=lambda: self.calls.append("prepare"),
            parts=parts,
        )

    def load(self, part: Part) -> Split:
        self.calls.append(part)
        count = 40 if part == "train" else 20
        generator = torch.Generator().manual_seed(len(part))
        images = torch.randint(1, 256, (count, 3, 6, 8), dtype=torch.uint8, generator=generator)
        return Split(images, torch.arange(count) % 2)._replace(**self.changes)


class Noting(BoringModel):
    """Keeps all batches that it sees; trains one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, list[Batch]] = {"train": [], "val": [], "test": [], "predict": []}

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.seen["train"].append(batch)
        return self.layer.weight.sum()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.seen["val"].append(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.seen["test"].append(batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.seen["predict"].append(batch)
        return batch.labels


def trainer(tmp_path: Path, **options: Any) -> L.Trainer:
    defaults: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "max_epochs": 2}
    folder = {"default_root_dir": tmp_path, "enable_checkpointing": False}
    return L.Trainer(**defaults | options | folder, enable_model_summary=False)


def digest(batches: list[Batch]) -> str:
    found = hashlib.sha256()
    for images, labels, indices, _, targets in batches:
        for tensor in (images, labels, indices, *([] if targets is None else [targets])):
            found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def test_training_loader_equals_the_former_hook_bit_for_bit() -> None:
    """The digest is that of three epochs by version 0.1.0, whose hook on_after_batch_transfer augmented."""
    images = torch.randint(1, 256, (20, 1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    datamodule = FashionMNISTDataModule("drawn", batch_size=8, seed=5, **AUGMENTATION)
    datamodule.splits["train"] = Split(images, torch.arange(20) % 10)
    torch.manual_seed(11)
    loader = datamodule.train_dataloader()
    assert digest([batch for _ in range(3) for batch in loader]) == "917971f0dc02cbf1"


def test_loader_alone_trains_as_the_datamodule_does(tmp_path: Path) -> None:
    """It augments, too, and in the same order of random numbers."""
    digests = []
    for alone in (True, False):
        datamodule = FashionMNISTDataModule(Toy().source, batch_size=16, **AUGMENTATION)
        model, fitting = Noting(), trainer(tmp_path, num_sanity_val_steps=0)
        torch.manual_seed(3)
        if alone:
            fitting.fit(model, datamodule.train_dataloader(), datamodule.val_dataloader())
        else:
            fitting.fit(model, datamodule=datamodule)
        digests.append((digest(model.seen["train"]), digest(model.seen["val"])))
        first, second = model.seen["train"][0], model.seen["train"][3]
        assert not torch.equal(first.indices, second.indices)
        assert not torch.equal(first.images, datamodule.splits["train"].images[first.indices])
        validated = model.seen["val"][0]
        assert torch.equal(validated.images, datamodule.splits["val"].images[validated.indices])
    assert digests[0] == digests[1]


def test_training_resumes_exactly_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    """A loader that was passed alone, too, starts after the batches that were done."""

    class Saving(Noting):
        def on_train_batch_end(self, *_: Any) -> None:
            if self.trainer.global_step == 4:
                self.trainer.save_checkpoint(tmp_path / "step_4.ckpt")

    whole, rest = Saving(), Noting()
    for model, checkpoint in ((whole, None), (rest, tmp_path / "step_4.ckpt")):
        loader = FashionMNISTDataModule(Toy().source, batch_size=16).train_dataloader()
        trainer(tmp_path, limit_val_batches=0).fit(model, loader, ckpt_path=checkpoint)
    assert len(whole.seen["train"]) == 6
    assert digest(rest.seen["train"]) == digest(whole.seen["train"][4:])


def test_loaders_prepare_and_set_up_themselves() -> None:
    toy = Toy()
    datamodule = FashionMNISTDataModule(toy.source, batch_size=16)
    assert sum(len(batch.labels) for batch in datamodule.train_dataloader()) == 36
    assert toy.calls == ["prepare", "train"]
    assert sum(len(batch.labels) for batch in datamodule.val_dataloader()) == 4  # type: ignore[union-attr]
    assert toy.calls == ["prepare", "train"]
    assert sum(len(batch.labels) for batch in datamodule.test_dataloader()) == 20
    assert toy.calls == ["prepare", "train", "test"]
    orders = [[batch.indices.tolist() for batch in datamodule.train_dataloader()] for _ in range(2)]
    assert orders[0] == orders[1]  # a new loader starts with the first epoch
    loader = datamodule.train_dataloader()
    assert [batch.indices.tolist() for batch in loader] != [batch.indices.tolist() for batch in loader]


def test_setup_without_an_argument_loads_everything() -> None:
    datamodule = FashionMNISTDataModule(Toy(parts=("train", "val", "test")).source, val_fraction=0.5)
    datamodule.setup()
    assert {name: len(split.labels) for name, split in datamodule.splits.items()} == {
        "train": 40,
        "val": 20,
        "test": 20,
    }
    assert datamodule.split_record["fraction"] == 0  # it has a part of its own


def test_trainer_tests_and_predicts_with_the_test_images(tmp_path: Path) -> None:
    toy = Toy()
    datamodule, model = FashionMNISTDataModule(toy.source, batch_size=16, **AUGMENTATION), Noting()
    predicted = trainer(tmp_path).predict(model, datamodule=datamodule)
    assert torch.equal(torch.cat(predicted), torch.arange(20) % 2)  # type: ignore[arg-type]
    trainer(tmp_path).test(model, datamodule=datamodule, verbose=False)
    assert digest(model.seen["test"]) == digest(model.seen["predict"])
    assert torch.equal(torch.cat([batch.images for batch in model.seen["test"]]), toy.load("test").images)
    assert "train" not in toy.calls


def test_data_dir_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for folder in (tmp_path / "one", tmp_path / "two"):
        monkeypatch.setenv("FMNIST_DATA_DIR", str(folder))
        datamodule = FashionMNISTDataModule()
        with pytest.raises(DataError, match=f"{folder}$"):
            datamodule.load("train")
    assert FashionMNISTDataModule(data_dir=tmp_path / "x").hparams["data_dir"] == str(tmp_path / "x")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        *({"batch_size": wrong} for wrong in (0, 12.5, "128", None)),
        *({"val_fraction": wrong} for wrong in (1.0, "0.1", None)),
        *({"seed": wrong} for wrong in (-1, 0.5, None)),
        {"erase": 5.0},
        {"shift": -3},
        {"mixup": -1.0},
    ],
    ids=str,
)
def test_values_out_of_range_are_refused_at_once(wrong: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=next(iter(wrong))):
        FashionMNISTDataModule(Toy().source, **wrong)


@pytest.mark.parametrize(("shift", "fits"), [(5, True), (6, False), (999, False)])
def test_shift_must_be_smaller_than_the_image(shift: int, fits: bool) -> None:
    if not fits:
        with pytest.raises(DataError, match=f"images of 6 x 8 by {shift} pixels"):
            FashionMNISTDataModule(Toy().source, shift=shift)
        return
    batch = next(iter(FashionMNISTDataModule(Toy().source, shift=shift).train_dataloader()))
    assert batch.images.flatten(1).any(dim=1).all()  # something of each image stays


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "floats": ({"images": torch.rand(20, 3, 6, 8)}, "torch.float32"),
    "no channels": ({"images": torch.zeros(20, 6, 8, dtype=torch.uint8)}, r"\(6, 8\)"),
    "fewer labels": ({"labels": torch.zeros(19, dtype=torch.int64)}, r"\(19,\)"),
    "bytes as labels": ({"labels": torch.zeros(20, dtype=torch.uint8)}, "torch.uint8"),
    "unknown label": ({"labels": torch.full((20,), 2)}, "2 to 2, expected 0 to 1"),
    "no images": (
        {"images": torch.zeros(0, 3, 6, 8, dtype=torch.uint8), "labels": torch.zeros(0, dtype=torch.int64)},
        "no images",
    ),
}


@pytest.mark.parametrize("fault", WRONG)
def test_wrong_images_of_an_own_data_set_are_explained(fault: str) -> None:
    changes, message = WRONG[fault]
    FashionMNISTDataModule(Toy().source).setup("test")  # the control
    with pytest.raises(DataError, match=message):
        FashionMNISTDataModule(Toy(**changes).source).setup("test")


def test_own_data_set_is_recorded_by_plain_values() -> None:
    source = Toy().source
    datamodule = FashionMNISTDataModule(source)
    assert datamodule.source is source
    assert datamodule.hparams["dataset"] == "toy"
    assert DataInfo.from_plain(datamodule.source.as_plain()) == DataInfo(
        name="toy", title="Toy", classes=("a", "b"), image_shape=(3, 6, 8)
    )
    assert isinstance(datamodule.train_dataloader(), Batches)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside Lightning
def test_lightning_cli_explains_every_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["fit.py", "--data.dataset", "drawn", "--data.shift", "2"])
    cli = LightningCLI(BoringModel, FashionMNISTDataModule, run=False, seed_everything_default=False)
    assert cli.datamodule.augmentation == (False, 2, 0.0)
    helps = {action.dest: action.help for action in cli.parser._actions if action.dest.startswith("data.")}
    assert {f"data.{name}" for name in FashionMNISTDataModule.__init__.__annotations__} - {"data.return"} <= {*helps}
    assert all(len(text) > 20 for text in helps.values())


def test_class_without_a_validation_image_is_named() -> None:
    """Four of its images are too few for a tenth; fourteen are enough."""
    for count, lacks in ((4, True), (14, False)):
        datamodule = FashionMNISTDataModule(Toy(labels=(torch.arange(40) < count).long()).source)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            datamodule.setup("fit")
        assert [str(one.message).partition(":")[0][-2:] for one in caught] == [" b"] * lacks
