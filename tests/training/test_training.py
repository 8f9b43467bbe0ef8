"""Runs from end to end, in this process, on a small drawn set."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import (
    NOWHERE,
    SMALL,
    Mirror,
    Program,
    draw_few,
    metrics_of,
    own_signals,
    run_command,
    small_run,
    use_mirrors,
)
from sklearn.metrics import accuracy_score
from test_metrics import by_scikit_learn

from fmnist_lightning.data.batches import Batch
from fmnist_lightning.data.datamodule import FashionMNISTDataModule
from fmnist_lightning.data.drawn import load_drawn
from fmnist_lightning.data.fashion_mnist import Split, load_split
from fmnist_lightning.metrics import METRIC_NAMES, EpochMetrics
from fmnist_lightning.report.results import read_curves
from fmnist_lightning.runs.checkpoints import read_checkpoint
from fmnist_lightning.runs.folders import read_config
from fmnist_lightning.training.devices import fastest_precision
from fmnist_lightning.training.evaluate import evaluate
from fmnist_lightning.training.module import Classifier
from fmnist_lightning.training.train import train

pytestmark = pytest.mark.usefixtures("small_drawn")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs with its test and all its plots; it is not to be changed."""
    log_dir = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch, own_signals():
        draw_few(patch)
        options = ["--max_epochs", 3, "--lr", 0.003, "--schedule", "one_cycle", "--seed", 3, "--patience", 5]
        assert run_command(patch, train, *SMALL, *options, "--log_dir", log_dir) == 0
    return log_dir / "version_0"


def weights(run: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return read_checkpoint(run / "checkpoints" / f"{name}.ckpt")["state_dict"]


def same_weights(first: Path, second: Path) -> bool:
    return all(map(torch.equal, weights(first).values(), weights(second).values()))


def accuracy_of(state: dict[str, torch.Tensor], split: Split) -> float:
    """The accuracy of the default model with these weights."""
    module = Classifier()
    module.load_state_dict(state)
    return accuracy_score(split.labels, module.eval()(split.images).argmax(dim=1))


def scikit_learns_values(run: Path) -> dict[str, float]:
    """Of the predictions in the run folder."""
    predictions = np.load(run / "predictions.npz")
    probs = predictions["probs"].astype(np.float64)
    return by_scikit_learn(probs / probs.sum(axis=1, keepdims=True), predictions["labels"])


def test_run_folder_holds_what_the_design_names(run: Path) -> None:
    assert {path.name for path in run.rglob("*") if "tfevents" not in path.name} == {
        *(".lock", ".test.lock", "checkpoints", "best.ckpt", "last.ckpt", "config.yaml", "hparams.yaml"),
        *("metrics.json", "predictions.npz", "report.html", "report", "confusion.png", "confusion_by_row.png"),
        *("roc.png", "precision_recall.png", "reliability.png", "learning_curves.png", "worst_mistakes.png"),
    }
    assert any("tfevents" in path.name for path in run.iterdir())
    metrics = metrics_of(run)
    known = {"dataset": "drawn", "split": "test", "n": 200, "seed": 3, "epochs": 3, "parameters": 225034}
    assert known.items() <= metrics.items()
    assert metrics["arithmetic"] == fastest_precision(torch.device("cpu"))
    assert metrics["training_seconds"] > 0
    assert set(metrics["git"]) == {"commit", "dirty"}


def test_predictions_are_in_file_order_and_give_the_metrics(run: Path) -> None:
    predictions, metrics = np.load(run / "predictions.npz"), metrics_of(run)
    assert predictions["dataset"] == "drawn"
    assert (predictions["probs"].shape, predictions["probs"].dtype) == ((200, 10), np.float32)
    assert predictions["labels"].dtype == np.int64
    assert np.array_equal(predictions["labels"], load_drawn(train=False).labels.numpy())
    reference = scikit_learns_values(run)
    assert {name: metrics[name] for name in reference} == pytest.approx(reference, abs=1e-6)


def test_checkpoints_hold_plain_options(run: Path) -> None:
    """And load without code."""
    for name in ("best", "last"):
        values = read_checkpoint(run / "checkpoints" / f"{name}.ckpt")["hyper_parameters"].values()
        assert {type(value) for value in values} <= {str, int, float, bool, list}


def test_schedule_ends_with_its_run(run: Path) -> None:
    checkpoint = read_checkpoint(run / "checkpoints" / "last.ckpt")
    [schedule] = checkpoint["lr_schedulers"]
    assert schedule["last_epoch"] == schedule["total_steps"] == checkpoint["global_step"] == 33
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] < 0.003 / 25


def test_best_is_the_epoch_of_the_highest_validation_accuracy(run: Path) -> None:
    datamodule = FashionMNISTDataModule("drawn")
    datamodule.setup("fit")
    best = max(accuracy for _, accuracy in read_curves(run)["val/accuracy"])
    assert accuracy_of(weights(run, "best"), datamodule.splits["val"]) == pytest.approx(best)


def test_config_repeats_its_run_bit_for_bit(program: Program, tmp_path: Path, run: Path) -> None:
    status, output = program(train, "--config", run / "config.yaml", "--log_dir", tmp_path)
    assert status == 0, output
    assert "DRAWN STAND-IN" in output
    assert "epoch 3/3" in output
    assert same_weights(tmp_path / "version_0", run)
    assert (tmp_path / "version_0" / "predictions.npz").read_bytes() == (run / "predictions.npz").read_bytes()
    program(train, "--config", run / "config.yaml", "--log_dir", tmp_path, "--seed", 4, "--test", "false")
    assert not same_weights(tmp_path / "version_1", run)  # negative control


def test_test_loop_counts_each_image_once_at_any_batch_size(program: Program, tmp_path: Path, run: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    before = metrics_of(run)
    for batch_size in (1, 37, 1000):
        status, output = program(evaluate, "--run", copy, "--batch_size", batch_size, "--accelerator", "cpu")
        assert status == 0, output
        after = metrics_of(copy)
        names = ("n", *METRIC_NAMES)
        assert [after[name] for name in names] == pytest.approx([before[name] for name in names], abs=1e-6)


@pytest.mark.real_data
def test_metrics_on_real_data_are_scikit_learns(program: Program, trained: Path, real_data_dir: Path) -> None:
    """Of a model that was trained on the drawn set, which is quick."""
    config = yaml.safe_load((trained / "config.yaml").read_text())
    config |= {"dataset": "fashion_mnist", "data_dir": str(real_data_dir)}
    (trained / "config.yaml").write_text(yaml.safe_dump(config))
    status, output = program(evaluate, "--run", trained, "--batch_size", 777, "--accelerator", "cpu")
    assert status == 0, output
    labels, metrics = np.load(trained / "predictions.npz")["labels"], metrics_of(trained)
    assert metrics["n"] == 10000
    assert np.array_equal(labels, load_split(real_data_dir, train=False).labels.numpy())
    reference = scikit_learns_values(trained)
    assert {name: metrics[name] for name in reference} == pytest.approx(reference, abs=1e-6)


def test_test_set_is_not_read_without_the_test(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    load = FashionMNISTDataModule.load
    monkeypatch.setattr(
        FashionMNISTDataModule, "load", lambda self, *, train: opened.append(train) or load(self, train=train)
    )
    run, _ = small_run(program, tmp_path, "--test", "false", "--max_epochs", 1)
    assert opened == [True]
    assert not (run / "metrics.json").exists()


@pytest.mark.parametrize(("reached", "dataset"), [(True, "fashion_mnist"), (False, "drawn")])
def test_auto_takes_fashion_mnist_if_it_can_be_had(
    program: Program, tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch, reached: bool, dataset: str
) -> None:
    """Else it says loudly that it takes the drawn set."""
    if not reached:
        use_mirrors(monkeypatch, NOWHERE)
    options = ["--dataset", "auto", "--data_dir", tmp_path / "data", "--max_epochs", 1]
    run, output = small_run(program, tmp_path / "logs", *options)
    assert ("NOT FASHION-MNIST" in output) is not reached
    assert metrics_of(run)["dataset"] == read_config(run)["dataset"] == dataset


def test_validation_split_is_the_same_for_every_seed() -> None:
    splits = []
    for seed in (0, 1):
        datamodule = FashionMNISTDataModule("drawn", seed=seed)
        datamodule.setup("fit")
        splits.append(datamodule.splits["val"].images)
        assert len(datamodule.splits["train"].labels) == 540
        assert datamodule.splits["val"].labels.bincount().tolist() == [6] * 10
    assert torch.equal(*splits)


def test_datamodule_refuses_auto() -> None:
    with pytest.raises(ValueError, match="auto"):
        FashionMNISTDataModule("auto")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_trains_and_gives_the_probabilities_of_the_cpu(program: Program, tmp_path: Path) -> None:
    run, _ = small_run(program, tmp_path, "--accelerator", "gpu")
    assert "threads" not in metrics_of(run)["device"]
    probs = []
    for accelerator in ("cpu", "gpu"):
        status, output = program(evaluate, "--run", run, "--accelerator", accelerator, "--precision", "32-true")
        assert status == 0, output
        probs.append(np.load(run / "predictions.npz")["probs"])
    np.testing.assert_allclose(*probs, rtol=0, atol=1e-4)


def test_training_images_alone_are_augmented(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = {}

    def noting(self: Classifier, batch: Batch, metrics: EpochMetrics) -> torch.Tensor:
        stage = metrics.prefix.rstrip("/")
        stored = self.trainer.datamodule.splits[stage].images[batch.indices]
        changed[stage] = not torch.equal(batch.images, stored)
        return shared_step(self, batch, metrics)

    shared_step = Classifier.shared_step
    monkeypatch.setattr(Classifier, "shared_step", noting)
    options = ["--flip", "true", "--shift", 2, "--erase", 0.5]
    assert program(train, *SMALL, "--log_dir", tmp_path, *options, "--fast_dev_run")[0] == 0
    assert changed == {"train": True, "val": False, "test": False}


def test_without_validation_all_images_are_trained_on(program: Program, tmp_path: Path) -> None:
    """And the last checkpoint is tested, later too."""
    run, _ = small_run(program, tmp_path, "--val_fraction", 0, "--ckpt", "last", "--max_epochs", 1)
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"last.ckpt"}
    before = metrics_of(run)
    assert before["checkpoint"] == "last"
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 12  # 600 images in batches of 50
    status, output = program(evaluate, "--run", run, "--accelerator", "cpu")
    assert status == 0, output
    assert metrics_of(run)["accuracy"] == before["accuracy"]


@pytest.mark.parametrize("options", [[], ["--ckpt", "last", "--patience", 3]])
def test_no_validation_is_refused_for_what_needs_it(program: Program, tmp_path: Path, options: list[object]) -> None:
    status, output = program(train, "--dataset", "drawn", "--val_fraction", 0, *options, "--log_dir", tmp_path / "logs")
    assert status == 1
    assert "--val_fraction 0" in output
    assert not (tmp_path / "logs").exists()


def test_average_of_the_weights_is_validated_and_saved(program: Program, tmp_path: Path) -> None:
    run, _ = small_run(program, tmp_path, "--ema", 0.9, "--max_epochs", 1)
    saved, test_set = read_checkpoint(run / "checkpoints" / "last.ckpt"), load_drawn(train=False)
    average, trained = (accuracy_of(saved[name], test_set) for name in ("state_dict", "current_model_state"))
    assert metrics_of(run)["accuracy"] == pytest.approx(average, abs=0.006)  # bf16 or not
    assert abs(metrics_of(run)["accuracy"] - trained) > 0.006
