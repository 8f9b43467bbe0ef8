"""Runs from end to end, in this process, on a small drawn set; recipes."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import NOWHERE, SMALL, Mirror, Program, metrics_of, small_run, use_mirrors
from sklearn.metrics import accuracy_score
from test_metrics import by_scikit_learn
from torch._inductor import config as inductor_config

from fmnist_lightning.data.batches import Batch
from fmnist_lightning.data.datamodule import FashionMNISTDataModule
from fmnist_lightning.data.sets.drawn import DRAWN, load_drawn
from fmnist_lightning.data.source import Split
from fmnist_lightning.metrics import METRIC_NAMES, EpochMetrics
from fmnist_lightning.report.results import read_curves
from fmnist_lightning.runs.checkpoints import read_checkpoint
from fmnist_lightning.runs.folders import read_config
from fmnist_lightning.runs.options import TrainOptions, as_yaml, read_recipe, recipe_values
from fmnist_lightning.training.devices import fastest_precision
from fmnist_lightning.training.evaluate import evaluate
from fmnist_lightning.training.module import Classifier
from fmnist_lightning.training.train import train

pytestmark = pytest.mark.usefixtures("small_drawn")
RECIPES = Path(__file__).parents[2] / "recipes"


def weights(run: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return read_checkpoint(run / "checkpoints" / f"{name}.ckpt")["state_dict"]


def same_weights(first: Path, second: Path) -> bool:
    return all(map(torch.equal, weights(first).values(), weights(second).values()))


def accuracy_of(state: dict[str, torch.Tensor], split: Split) -> float:
    """The accuracy of the default model with these weights."""
    module = Classifier()
    module.load_state_dict(state)
    return accuracy_score(split.labels, module.eval()(split.images).argmax(dim=1))


def test_run_folder_holds_what_the_design_names(plotted_once: Path) -> None:
    names = {path.name for path in plotted_once.rglob("*")}
    assert {name for name in names if "tfevents" not in name} == {
        *(".lock", ".test.lock", "checkpoints", "best.ckpt", "last.ckpt", "config.yaml", "hparams.yaml"),
        *("metrics.csv", "metrics.json", "predictions.npz", "report.html", "report", "confusion.png"),
        *("roc.png", "precision_recall.png", "reliability.png", "learning_curves.png", "worst_mistakes.png"),
    }
    assert any("tfevents" in name for name in names)
    metrics = metrics_of(plotted_once)
    known = {"dataset": "drawn", "split": "test", "n": 200, "seed": 3, "epochs": 2, "parameters": 225034}
    assert known.items() <= metrics.items()
    assert metrics["training_seconds"] > 0
    assert set(metrics["git"]) == {"commit", "dirty"}


def test_predictions_are_in_file_order_and_give_the_metrics(plotted_once: Path) -> None:
    predictions, metrics = np.load(plotted_once / "predictions.npz"), metrics_of(plotted_once)
    assert predictions["dataset"] == "drawn"
    assert (predictions["probs"].shape, predictions["probs"].dtype) == ((200, 10), np.float32)
    assert predictions["labels"].dtype == np.int64
    assert np.array_equal(predictions["labels"], load_drawn("test").labels.numpy())
    probs = predictions["probs"].astype(np.float64)
    reference = by_scikit_learn(probs / probs.sum(axis=1, keepdims=True), predictions["labels"])
    assert {name: metrics[name] for name in reference} == pytest.approx(reference, abs=1e-6)


def test_schedule_ends_with_its_run(plotted_once: Path) -> None:
    checkpoint = read_checkpoint(plotted_once / "checkpoints" / "last.ckpt")
    [schedule] = checkpoint["lr_schedulers"]
    assert schedule["last_epoch"] == schedule["total_steps"] == checkpoint["global_step"] == 22
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] < 0.003 / 25


def test_best_is_the_epoch_of_the_highest_validation_accuracy(plotted_once: Path) -> None:
    datamodule = FashionMNISTDataModule("drawn")
    datamodule.setup("fit")
    best = max(accuracy for _, accuracy in read_curves(plotted_once)["val/accuracy"])
    assert accuracy_of(weights(plotted_once, "best"), datamodule.splits["val"]) == pytest.approx(best)


def test_config_repeats_its_run_bit_for_bit(program: Program, tmp_path: Path, plotted_once: Path) -> None:
    config = plotted_once / "config.yaml"
    status, output = program(train, "--config", config, "--log_dir", tmp_path)
    assert status == 0, output
    assert "epoch 2/2  train " in output
    repeated, other = tmp_path / "version_0", tmp_path / "version_1"
    assert same_weights(repeated, plotted_once)
    assert (repeated / "predictions.npz").read_bytes() == (plotted_once / "predictions.npz").read_bytes()
    program(train, "--config", config, "--log_dir", tmp_path, "--seed", 4, "--test", "false")
    assert not same_weights(other, plotted_once)  # negative control


def test_test_loop_counts_each_image_once_at_any_batch_size(
    program: Program, tmp_path: Path, plotted_once: Path
) -> None:
    copy = shutil.copytree(plotted_once, tmp_path / "run")
    before = metrics_of(plotted_once)
    for batch_size in (1, 37, 1000):
        status, output = program(evaluate, "--run", copy, "--batch_size", batch_size, "--accelerator", "cpu")
        assert status == 0, output
        after = metrics_of(copy)
        names = ("n", *METRIC_NAMES)
        assert [after[name] for name in names] == pytest.approx([before[name] for name in names], abs=1e-6)


def test_test_set_is_not_read_without_the_test(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(self: FashionMNISTDataModule, part: str) -> Split:
        opened.append(part)
        return load_drawn(part)

    opened: list[str] = []
    monkeypatch.setattr(FashionMNISTDataModule, "load", load)
    run, _ = small_run(program, tmp_path, "--test", "false", "--max_epochs", 1)
    assert opened == ["train"]
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
    assert before["arithmetic"] == fastest_precision(torch.device("cpu"))
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 12  # 600 images in batches of 50
    assert program(evaluate, "--run", run)[0] == 0
    assert metrics_of(run)["accuracy"] == before["accuracy"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--max_steps", 10], "the first validation follows step 11 (use --ckpt last)"),
        (["--max_steps", 2, "--limit_train_batches", 9, "--accumulate_grad_batches", 4], "follows step 3 "),
        (["--limit_train_batches", 0.05], "leaves none of 11 batches"),
        (["--limit_val_batches", 0.4], "leaves none of 2 batches"),
        (["--class_weights", "[1,2]"], "2 class_weights"),
    ],
)
def test_options_that_the_data_rules_out_make_no_run(
    program: Program, tmp_path: Path, options: list[object], words: str
) -> None:
    status, output = program(train, *SMALL, *options, "--log_dir", tmp_path / "logs")
    assert (status, words in output) == (1, True), output
    assert not (tmp_path / "logs").exists()


def test_last_step_of_an_epoch_is_enough_for_the_best_checkpoint(program: Program, tmp_path: Path) -> None:
    """The negative control of the limit of --max_steps."""
    run, _ = small_run(program, tmp_path, "--max_steps", 11)
    assert metrics_of(run)["checkpoint"] == "best"


@pytest.mark.usefixtures("new_compiler_cache")
def test_missing_compiler_makes_no_run(program: Program, tmp_path: Path) -> None:
    with inductor_config.patch({"cpp.cxx": (None, "no-such-compiler")}):
        status, output = program(train, *SMALL, "--compile", "true", "--log_dir", tmp_path / "logs")
    assert (status, "no-such-compiler" in output, output.count("\n")) == (1, True, 1), output
    assert not (tmp_path / "logs").exists()


@pytest.fixture
def new_compiler_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("record", "refused"),
    [
        (None, ""),
        ({"classes": ["a", "b"]}, "instead of a, b"),
        ({"image_shape": [3, 28, 28]}, "(3, 28, 28)"),
        ({"title": "x"}, ""),
    ],
)
def test_run_is_tested_on_its_own_kind_of_data(
    program: Program, trained: Path, record: dict[str, object], refused: str
) -> None:
    """A checkpoint from before this was recorded can be tested, too; the title may change."""
    path = trained / "checkpoints" / "best.ckpt"
    content = read_checkpoint(path)
    assert content["data"] == DRAWN.as_plain()
    content["data"] |= record or {}
    if record is None:
        del content["data"]
    torch.save(content, path)
    status, output = program(evaluate, "--run", trained, "--accelerator", "cpu")
    if refused:
        assert (status, refused in output) == (1, True), output
        assert not (trained / "metrics.json").exists()
    else:
        assert status == 0, output
        assert metrics_of(trained)["data"] == DRAWN.as_plain()
        assert metrics_of(trained)["validation"]["fraction"] == 0.1


@pytest.mark.parametrize("options", [[], ["--ckpt", "last", "--patience", 3]])
def test_no_validation_is_refused_for_what_needs_it(program: Program, tmp_path: Path, options: list[object]) -> None:
    status, output = program(train, "--dataset", "drawn", "--val_fraction", 0, *options, "--log_dir", tmp_path / "logs")
    assert status == 1
    assert "--val_fraction 0" in output
    assert not (tmp_path / "logs").exists()


def test_average_of_the_weights_is_validated_and_saved(program: Program, tmp_path: Path) -> None:
    run, _ = small_run(program, tmp_path, "--ema", 0.9, "--max_epochs", 1)
    saved, test_set = read_checkpoint(run / "checkpoints" / "last.ckpt"), load_drawn("test")
    average, trained = (accuracy_of(saved[name], test_set) for name in ("state_dict", "current_model_state"))
    assert metrics_of(run)["accuracy"] == pytest.approx(average, abs=0.006)  # bf16 or not
    assert abs(metrics_of(run)["accuracy"] - trained) > 0.006


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ([], ["training", "validation", "test"]),
        (["--val_fraction", "0", "--ckpt", "last", "--test", "false"], ["training"]),
    ],
)
def test_smoke_run_takes_one_batch_and_writes_nothing(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], parts: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    done = ["training"]
    monkeypatch.setattr(Classifier, "on_validation_epoch_end", lambda _: done.append("validation"))
    monkeypatch.setattr(Classifier, "on_test_epoch_end", lambda _: done.append("test"))
    status, output = program(train, "--dataset", "drawn", "--accelerator", "cpu", "--fast_dev_run", *options)
    assert (status, done) == (0, parts), output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipe_values_become_options(recipe: Path) -> None:
    values, options = recipe_values(recipe), as_yaml(read_recipe(recipe))
    assert {name: options[name] for name in values} == values


def test_seed_recipe_is_the_default_in_32_bits() -> None:
    assert read_recipe(RECIPES / "seed.yaml") == replace(TrainOptions(), precision="32-true")
