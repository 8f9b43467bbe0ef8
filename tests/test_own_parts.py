"""What a user wants to change takes one place: each test does it from outside the package."""

import csv
import json
import re
from pathlib import Path

import lightning as L
import numpy as np
import onnxruntime
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from fmnist_lightning import Classifier, FashionMNISTDataModule, load_classifier
from fmnist_lightning.data.source import DataSource, Split
from fmnist_lightning.models.export import export
from fmnist_lightning.models.nets import MODELS
from fmnist_lightning.predict.predict import predict
from fmnist_lightning.report.compare import compare
from fmnist_lightning.runs.options import TrainOptions
from fmnist_lightning.training.evaluate import evaluate
from fmnist_lightning.training.train import train
from tests.conftest import SMALL, Program, metrics_of
from tests.own_data import DIGITS, SHAPES, draw_shape, write_digits_as_folder, write_digits_as_idx, write_shapes

FOREIGN = re.compile(r"Fashion-MNIST|91\.39|T-shirt|STAND-IN", re.IGNORECASE)
ON_CPU = ("--accelerator", "cpu", "--precision", "32-true")


def check_own_names(run: Path, classes: tuple[str, ...], *texts: str) -> None:
    """The run, its report and what was printed name the run's own data set alone."""
    report = (run / "report.html").read_text()
    assert metrics_of(run)["data"]["classes"] == list(classes)
    assert all(f'<th scope="row">{name}</th>' in report for name in classes)
    for text in (report, (run / "metrics.json").read_text(), *texts):
        assert not FOREIGN.search(text), FOREIGN.search(text)


@pytest.mark.usefixtures("drawing")
def test_idx_files_of_digits_train_and_test(program: Program, tmp_path: Path) -> None:
    write_digits_as_idx(tmp_path / "digits")
    options = ("--dataset", "idx", "--data_dir", tmp_path / "digits", "--log_dir", tmp_path / "logs")
    status, printed = program(
        train, *options, *ON_CPU, "--model", "compact", "--max_epochs", 6, "--lr", 0.003, "--optimizer", "muon"
    )
    assert status == 0, printed
    run = tmp_path / "logs" / "version_0"
    assert metrics_of(run)["n"] == 297
    assert metrics_of(run)["accuracy"] > 0.8  # chance is 0.1
    check_own_names(run, DIGITS, printed)


@pytest.mark.usefixtures("drawing")
def test_folder_of_digits_trains_and_tests(program: Program, tmp_path: Path) -> None:
    write_digits_as_folder(tmp_path / "digits", 400)
    options = ("--dataset", "folder", "--data_dir", tmp_path / "digits", "--image_size", 12, "--channels", 1)
    status, printed = program(train, *options, *ON_CPU, "--max_epochs", 2, "--log_dir", tmp_path / "logs")
    assert status == 0, printed
    check_own_names(tmp_path / "logs" / "version_0", DIGITS, printed)


@pytest.mark.usefixtures("drawing")
def test_folder_of_color_pictures_from_training_to_export(program: Program, tmp_path: Path) -> None:
    write_shapes(tmp_path / "shapes", 30)
    options = ("--dataset", "folder", "--data_dir", tmp_path / "shapes", "--image_size", 32)
    for seed in (0, 1):
        status, printed = program(
            train,
            *(*options, *ON_CPU, "--model", "compact", "--max_epochs", 5, "--batch_size", 16, "--lr", 0.003),
            *("--seed", seed, "--flip", "--log_dir", tmp_path / "logs"),
        )
        assert status == 0, printed
    run, other = tmp_path / "logs" / "version_0", tmp_path / "logs" / "version_1"
    check_own_names(run, SHAPES, printed)
    assert metrics_of(run)["accuracy"] > 0.4  # chance is 0.14
    before = metrics_of(run)["accuracy"]

    status, tested = program(evaluate, "--run", run, "--accelerator", "cpu")
    assert (status, metrics_of(run)["accuracy"]) == (0, before), tested
    check_own_names(run, SHAPES, tested)

    status, compared = program(compare, run, other, "--pictures", tmp_path / "common.png")
    assert status == 0, compared
    assert not FOREIGN.search(compared)
    with Image.open(tmp_path / "common.png") as picture:
        assert len(set(picture.convert("RGB").get_flattened_data())) > 256  # more colors than gray has

    rng = np.random.default_rng(7)
    draw_shape("stripes", rng).resize((64, 64)).save(tmp_path / "new.jpg", quality=95)
    status, rows = program(predict, tmp_path / "new.jpg", "--weights", run, "--format", "json", "--top_k", 7)
    assert status == 0, rows
    row = json.loads(rows)
    assert {one["class"] for one in row["top"]} == set(SHAPES)
    assert row["class"] == load_classifier(str(run))(str(tmp_path / "new.jpg")).names[0]

    status, exported = program(export, "--run", run)
    assert status == 0, exported
    assert not FOREIGN.search(exported)
    session = onnxruntime.InferenceSession(run / "export" / "compact.onnx", providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == list(SHAPES)
    image = np.asarray(draw_shape("circle", rng)).transpose(2, 0, 1)
    [probs] = session.run(None, {"images": image[None]})
    assert np.allclose(probs, load_classifier(str(run), device="cpu")(image).probs, atol=1e-5)


class OwnNet(nn.Module):
    """A user's net: one dense layer."""

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.dense = nn.Linear(channels * height * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.dense(images.flatten(1).float() / 255)


def test_own_net_trains_tests_and_predicts_by_name(
    program: Program, tmp_path: Path, small_drawn: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "own", OwnNet)
    status, printed = program(train, *SMALL, "--model", "own", "--log_dir", tmp_path)
    assert status == 0, printed
    run = tmp_path / "version_0"
    before = metrics_of(run)["accuracy"]
    status, printed = program(evaluate, "--run", run, "--accelerator", "cpu")
    assert (status, metrics_of(run)["accuracy"]) == (0, before), printed
    assert isinstance(load_classifier(str(run)).net, OwnNet)


def test_own_net_object_trains_with_a_plain_trainer(tmp_path: Path, small_drawn: None) -> None:
    net = OwnNet((1, 28, 28), 10)
    module, data = Classifier(net=net, num_classes=10), FashionMNISTDataModule("drawn", batch_size=50)
    trainer = L.Trainer(max_epochs=2, accelerator="cpu", default_root_dir=tmp_path, logger=False)
    trainer.fit(module, datamodule=data)
    [tested] = trainer.test(module, datamodule=data, verbose=False)
    assert tested["test/accuracy"] > 0.5
    checkpoint = next(tmp_path.rglob("*.ckpt"))
    classify = load_classifier(str(checkpoint), net=OwnNet((1, 28, 28), 10), device="cpu")
    images = data.splits["test"].images
    assert torch.allclose(classify(images).probs, net(images).softmax(dim=1), atol=1e-6)


def test_timm_net_trains_and_exports(program: Program, tmp_path: Path, small_drawn: None) -> None:
    pytest.importorskip("timm")
    status, printed = program(
        train, *SMALL, "--model", "timm:test_resnet", "--max_epochs", 1, "--log_dir", tmp_path / "logs"
    )
    assert status == 0, printed
    status, printed = program(export, "--run", tmp_path / "logs" / "version_0")
    assert status == 0, printed
    assert len(list((tmp_path / "logs" / "version_0" / "export").glob("*.onnx"))) == 1


def test_own_loss_is_minimized_and_logged(tmp_path: Path, small_drawn: None) -> None:
    def focal_loss(logits: Tensor, targets: Tensor) -> Tensor:
        losses = F.cross_entropy(logits, targets, reduction="none")
        return ((1 - (-losses).exp()).square() * losses).mean()

    options = TrainOptions(
        dataset="drawn", max_epochs=2, batch_size=50, accelerator="cpu", precision="32-true", log_dir=str(tmp_path)
    )
    result = train(options, loss=focal_loss)
    assert result is not None
    assert result.run is not None
    assert result.metrics is not None
    with np.load(result.run / "predictions.npz") as predictions:
        probs, labels = torch.tensor(predictions["probs"]), torch.tensor(predictions["labels"])
    assert result.metrics["loss"] == pytest.approx(focal_loss(probs.log(), labels).item(), rel=1e-4)
    assert result.metrics == metrics_of(result.run)


def test_class_weights_favor_a_rare_class(tmp_path: Path) -> None:
    """The recall of the rare one of two overlapping classes rises with balanced weights."""
    generator = torch.Generator().manual_seed(0)

    def load(part: str) -> Split:
        labels = (torch.rand(1200, generator=generator) < 0.08).long()
        gray = (100 + 40 * labels + 30 * torch.randn(1200, generator=generator)).clamp(0, 255)
        return Split(gray.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 10, 10).contiguous(), labels)

    recalls = []
    for weights in (None, "balanced"):
        source = DataSource(name="gray", title="Shades", classes=("dark", "light"), image_shape=(1, 10, 10), load=load)
        options = TrainOptions(
            class_weights=weights, max_epochs=3, accelerator="cpu", precision="32-true", log_dir=str(tmp_path)
        )
        result = train(options, datamodule=FashionMNISTDataModule(source))
        assert result is not None
        assert result.run is not None
        with np.load(result.run / "predictions.npz") as predictions:
            probs, labels = predictions["probs"], predictions["labels"]
        recalls.append((probs.argmax(axis=1) == labels)[labels == 1].mean())
    assert recalls[0] < 0.5 < recalls[1]


@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_own_logger_and_trainer_take_plain_loaders(tmp_path: Path) -> None:
    """No part of this package but the Classifier; Lightning's own logger, at its default intervals."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    images = torch.rand(300, 3, 16, 16, generator=generator) * 0.5
    images[torch.arange(300), labels] += 0.4  # each class has its color, in floats
    data = TensorDataset(images, labels)
    shuffled, loader = DataLoader(data, batch_size=32, shuffle=True), DataLoader(data, batch_size=32)
    module = Classifier("compact", image_shape=(3, 16, 16), num_classes=3, class_names=["red", "green", "blue"])
    trainer = L.Trainer(
        max_epochs=2, accelerator="cpu", logger=CSVLogger(tmp_path, name=""), enable_checkpointing=False
    )
    trainer.fit(module, shuffled, loader)
    [tested] = trainer.test(module, loader, verbose=False)
    assert tested["test/accuracy"] == 1
    probs = torch.cat(trainer.predict(module, DataLoader(images, batch_size=64)))  # type: ignore[arg-type]
    assert (probs.argmax(dim=1) == labels).all()
    with (tmp_path / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len([row for row in rows if row.get("train/accuracy")]) == 2
