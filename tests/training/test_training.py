"""Runs from end to end, in this process, on a small drawn set."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import NOWHERE, Mirror, Program, metrics_of, small_run, use_mirrors
from sklearn.metrics import accuracy_score
from test_metrics import by_scikit_learn

from fmnist_lightning.data.batches import Batch
from fmnist_lightning.data.datamodule import FashionMNISTDataModule
from fmnist_lightning.data.drawn import load_drawn
from fmnist_lightning.data.fashion_mnist import FILES, load_split
from fmnist_lightning.report.findings import read_curves
from fmnist_lightning.runs.checkpoints import read_checkpoint
from fmnist_lightning.training.devices import fastest_precision
from fmnist_lightning.training.evaluate import evaluate
from fmnist_lightning.training.module import Classifier
from fmnist_lightning.training.train import train

pytestmark = pytest.mark.usefixtures("small_drawn")


@pytest.mark.usefixtures("drawing")
def test_a_run_folder_holds_what_the_design_names(program: Program, tmp_path: Path) -> None:
    run, output = small_run(program, tmp_path)
    names = {path.name for path in run.rglob("*") if "tfevents" not in path.name}
    assert names == {
        ".lock", ".test.lock",
        "checkpoints", "best.ckpt", "last.ckpt", "config.yaml", "hparams.yaml", "metrics.json", "predictions.npz",
        "report.html", "report", "confusion.png", "confusion_by_row.png", "roc.png", "precision_recall.png",
        "reliability.png", "learning_curves.png", "worst_mistakes.png",
    }  # fmt: skip
    assert any("tfevents" in path.name for path in run.iterdir())
    metrics = metrics_of(run)
    assert metrics["dataset"] == "drawn"
    assert metrics["split"] == "test"
    assert metrics["n"] == 200
    assert metrics["seed"] == 0
    assert metrics["epochs"] == 2
    assert metrics["parameters"] == 225034
    assert metrics["arithmetic"] == fastest_precision(torch.device("cpu"))
    assert metrics["training_seconds"] > 0
    assert set(metrics["git"]) == {"commit", "dirty"}
    assert "DRAWN STAND-IN" in output
    assert "epoch 2/2" in output


def test_predictions_are_in_file_order_and_give_the_metrics(program: Program, tmp_path: Path) -> None:
    run, _ = small_run(program, tmp_path, "--max_epochs", 4, "--batch_size", 16)
    predictions = np.load(run / "predictions.npz")
    probs, labels = predictions["probs"], predictions["labels"]
    assert predictions["dataset"] == "drawn"
    assert probs.shape == (200, 10)
    assert probs.dtype == np.float32
    assert labels.dtype == np.int64
    assert np.array_equal(labels, load_drawn(train=False).labels.numpy())
    metrics = metrics_of(run)
    reference = by_scikit_learn(probs.astype(np.float64) / probs.sum(1, keepdims=True, dtype=np.float64), labels)
    assert {name: metrics[name] for name in reference} == pytest.approx(reference, abs=1e-6)


def test_checkpoints_load_without_code_and_options_are_plain(program: Program, tmp_path: Path) -> None:
    run, _ = small_run(program, tmp_path, "--patience", 5)
    for name in ("best", "last"):
        checkpoint = read_checkpoint(run / "checkpoints" / f"{name}.ckpt")
        assert {type(value) for value in checkpoint["hyper_parameters"].values()} <= {str, int, float, bool, list}
    assert yaml.safe_load((run / "config.yaml").read_text())["patience"] == 5


def test_best_is_the_epoch_of_the_highest_validation_accuracy(program: Program, tmp_path: Path) -> None:
    run, _ = small_run(program, tmp_path, "--max_epochs", 4, "--lr", 0.003)
    best = max(accuracy for _, accuracy in read_curves(run)["val/accuracy"])
    datamodule = FashionMNISTDataModule("drawn", batch_size=50)
    datamodule.setup("fit")
    module = Classifier()
    module.load_state_dict(read_checkpoint(run / "checkpoints" / "best.ckpt")["state_dict"])
    images, labels = datamodule.splits["val"]
    predicted = module.eval()(images).argmax(dim=1)
    assert accuracy_score(labels, predicted) == pytest.approx(best)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]


def same_weights(first: Path, second: Path) -> bool:
    return all(torch.equal(tensor, weights(second)[name]) for name, tensor in weights(first).items())


def test_two_runs_with_one_seed_end_in_equal_weights_bit_for_bit(program: Program, tmp_path: Path) -> None:
    first, _ = small_run(program, tmp_path)
    second, _ = small_run(program, tmp_path)
    other, _ = small_run(program, tmp_path, "--seed", 1)
    assert same_weights(first, second)
    assert not same_weights(first, other)
    assert (first / "predictions.npz").read_bytes() == (second / "predictions.npz").read_bytes()


def test_a_runs_config_repeats_it(program: Program, tmp_path: Path) -> None:
    first, _ = small_run(program, tmp_path, "--seed", 3, "--lr", 0.002)
    status, output = program(train, "--config", first / "config.yaml")
    assert status == 0, output
    assert same_weights(first, tmp_path / "version_1")


@pytest.mark.parametrize("batch_size", [1, 37, 200, 1000])
def test_the_test_loop_counts_each_image_once_at_any_batch_size(
    program: Program, tmp_path: Path, batch_size: int
) -> None:
    run, _ = small_run(program, tmp_path)
    before = metrics_of(run)
    status, output = program(evaluate, "--log_dir", tmp_path, "--batch_size", batch_size, "--accelerator", "cpu")
    assert status == 0, output
    after = metrics_of(run)
    assert after["n"] == 200
    names = ("accuracy", "precision", "recall", "f1", "auroc")
    assert {name: after[name] for name in names} == pytest.approx({name: before[name] for name in names}, abs=1e-6)


def test_early_stopping_stops_early(program: Program, tmp_path: Path) -> None:
    run, _ = small_run(program, tmp_path, "--max_epochs", 30, "--lr", 1e-12, "--patience", 2)
    assert metrics_of(run)["epochs"] == 3


def test_the_test_set_stays_shut_without_the_test(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    load = FashionMNISTDataModule.load
    monkeypatch.setattr(
        FashionMNISTDataModule, "load", lambda self, *, train: opened.append(train) or load(self, train=train)
    )
    run, _ = small_run(program, tmp_path, "--test", "false")
    assert opened == [True]
    assert not (run / "metrics.json").exists()


def test_auto_takes_the_real_data_where_it_can_be_had(program: Program, tmp_path: Path, mirror: Mirror) -> None:
    data = tmp_path / "data"
    run, output = small_run(program, tmp_path / "logs", "--dataset", "auto", "--data_dir", data, "--max_epochs", 1)
    assert "NOT FASHION-MNIST" not in output
    assert metrics_of(run)["dataset"] == "fashion_mnist"
    assert yaml.safe_load((run / "config.yaml").read_text())["dataset"] == "fashion_mnist"
    assert len(load_split(data, train=True).labels) == 120
    assert len(mirror.asked) == len(FILES)


def test_auto_takes_the_drawn_set_elsewhere_and_says_so_loudly(
    program: Program, tmp_path: Path, tiny_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_mirrors(monkeypatch, NOWHERE)
    run, output = small_run(
        program, tmp_path / "logs", "--dataset", "auto", "--data_dir", tmp_path / "data", "--max_epochs", 1
    )
    assert "NOT FASHION-MNIST" in output
    assert metrics_of(run)["dataset"] == "drawn"
    assert yaml.safe_load((run / "config.yaml").read_text())["dataset"] == "drawn"


def test_the_validation_cut_is_the_same_for_every_seed() -> None:
    cuts = []
    for seed in (0, 1):
        datamodule = FashionMNISTDataModule("drawn", seed=seed)
        datamodule.setup("fit")
        cuts.append(datamodule.splits["val"].images)
        assert len(datamodule.splits["train"].labels) == 540
        assert datamodule.splits["val"].labels.bincount().tolist() == [6] * 10
    assert torch.equal(*cuts)


def test_the_module_refuses_auto() -> None:
    with pytest.raises(ValueError, match="resolve_dataset"):
        FashionMNISTDataModule("auto")


@pytest.mark.real_data
def test_on_the_real_data_the_metrics_are_scikit_learns_at_any_batch_size(
    program: Program, tmp_path: Path, real_data_dir: Path
) -> None:
    data = ["--dataset", "fashion_mnist", "--data_dir", real_data_dir]
    run, _ = small_run(program, tmp_path, *data, "--max_epochs", 1, "--batch_size", 512)
    for batch_size in (512, 777):
        status, output = program(evaluate, "--run", run, "--batch_size", batch_size, "--accelerator", "cpu")
        assert status == 0, output
        predictions, metrics = np.load(run / "predictions.npz"), metrics_of(run)
        assert metrics["n"] == len(predictions["labels"]) == 10000
        assert np.array_equal(predictions["labels"], load_split(real_data_dir, train=False).labels.numpy())
        probs = predictions["probs"].astype(np.float64)
        reference = by_scikit_learn(probs / probs.sum(axis=1, keepdims=True), predictions["labels"])
        assert {name: metrics[name] for name in reference} == pytest.approx(reference, abs=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_probabilities_of_the_cpu(program: Program, tmp_path: Path) -> None:
    run, _ = small_run(program, tmp_path)
    on_cpu = np.load(run / "predictions.npz")["probs"]
    status, output = program(evaluate, "--run", run, "--accelerator", "gpu")
    assert status == 0, output
    np.testing.assert_allclose(np.load(run / "predictions.npz")["probs"], on_cpu, rtol=0, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_trains(program: Program, tmp_path: Path) -> None:
    run, _ = small_run(program, tmp_path, "--accelerator", "gpu")
    assert "threads" not in metrics_of(run)["device"]


def test_training_images_are_augmented_and_validation_images_are_not(
    program: Program, tmp_path: Path, small_drawn: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed: dict[str, set[bool]] = {"train": set(), "val": set()}

    def noting(self: Classifier, batch: Batch, stage: str) -> torch.Tensor:
        stored = self.trainer.datamodule.splits[stage].images[batch.indices]
        changed[stage].add(not torch.equal(batch.images, stored))
        return logits(self, batch, stage)

    logits = Classifier.logits
    monkeypatch.setattr(Classifier, "logits", noting)
    options = ["--flip", "true", "--shift", 2, "--erase", 0.5, "--max_epochs", 1, "--test", "false"]
    small_run(program, tmp_path, *options)
    assert changed == {"train": {True}, "val": {False}}


def test_a_mixed_batch_is_learnt_by_its_shares_and_counted_by_the_larger_ones(
    program: Program, tmp_path: Path, small_drawn: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def noting(self: Classifier, batch: Batch, batch_idx: int) -> torch.Tensor:
        stored = self.trainer.datamodule.splits["train"]
        loss = training_step(self, batch, batch_idx)
        seen.append((batch, stored.labels[batch.indices], self.seen["train"][-1:], loss.item()))
        return loss

    training_step = Classifier.training_step
    monkeypatch.setattr(Classifier, "training_step", noting)
    options = ["--mixup", 0.5, "--label_smoothing", 0.1, "--max_epochs", 1, "--test", "false", "--precision", "32-true"]
    small_run(program, tmp_path, *options)
    for batch, stored, answers, loss in seen[:-1]:  # the last one's answers went into the epoch's figures
        [(logits, labels, _)] = answers
        assert torch.equal(labels, batch.targets.argmax(dim=1))
        one_hot = torch.eye(10)[stored]
        share = (batch.targets * one_hot).sum(dim=1)  # at least; the whole where the neighbour has the same label
        assert torch.equal(batch.labels[share > 0.5], stored[share > 0.5])
        neighbours = stored.roll(1, 0)[share < 0.5]
        assert torch.equal(batch.labels[share < 0.5], neighbours)
        smooth = 0.9 * batch.targets + 0.1 / 10
        assert loss == pytest.approx(-(smooth * logits.log_softmax(dim=1)).sum(dim=1).mean().item(), rel=1e-5)
    assert {bool((batch.labels == stored).all()) for batch, stored, _, _ in seen} == {True, False}


def test_without_validation_all_images_are_trained_on_and_the_last_checkpoint_is_tested(
    program: Program, tmp_path: Path
) -> None:
    run, _ = small_run(program, tmp_path, "--val_fraction", 0, "--ckpt", "last")
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"last.ckpt"}
    assert metrics_of(run)["checkpoint"] == "last"
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 2 * 12  # 600 images in batches of 50
    before = metrics_of(run)
    status, output = program(evaluate, "--run", run, "--accelerator", "cpu")  # which needs not be told of it
    assert status == 0, output
    assert metrics_of(run)["accuracy"] == before["accuracy"]


@pytest.mark.parametrize("options", [[], ["--ckpt", "last", "--patience", 3]])
def test_what_needs_validation_is_refused_without_it(program: Program, tmp_path: Path, options: list[object]) -> None:
    status, output = program(train, "--dataset", "drawn", "--val_fraction", 0, *options, "--log_dir", tmp_path / "logs")
    assert status == 1
    assert "--val_fraction 0 leaves none" in output
    assert not (tmp_path / "logs").exists()


def test_the_average_of_the_weights_is_what_is_validated_and_kept(program: Program, tmp_path: Path) -> None:
    run, _ = small_run(program, tmp_path, "--ema", 0.9, "--max_epochs", 1)
    kept = read_checkpoint(run / "checkpoints" / "last.ckpt")
    averaged, trained = kept["state_dict"], kept["current_model_state"]
    assert not torch.equal(averaged["net.layers.0.weight"], trained["net.layers.0.weight"])
    module = Classifier(**kept["hyper_parameters"])
    module.load_state_dict(averaged)
    images, labels = load_drawn(train=False)
    assert metrics_of(run)["accuracy"] == pytest.approx(accuracy_of(module, images, labels), abs=0.006)  # bf16 or not
    module.load_state_dict(trained)
    assert abs(metrics_of(run)["accuracy"] - accuracy_of(module, images, labels)) > 0.006


def accuracy_of(module: Classifier, images: torch.Tensor, labels: torch.Tensor) -> float:
    return (module.eval()(images).argmax(dim=1) == labels).float().mean().item()
