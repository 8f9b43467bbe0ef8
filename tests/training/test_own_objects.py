"""Runs with an own datamodule or loss: what they record, and that they resume and test with the same objects."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Program, metrics_of, small_run
from lightning.pytorch.callbacks import Callback
from torch.nn import functional as F

from fmnist_lightning.data.datamodule import FashionMNISTDataModule
from fmnist_lightning.data.source import DataSource, Split, difference
from fmnist_lightning.errors import Interrupted, UserError
from fmnist_lightning.report.compare import ComparedRun, draw
from fmnist_lightning.runs.checkpoints import read_checkpoint
from fmnist_lightning.runs.options import TestOptions, TrainOptions, read_options
from fmnist_lightning.training.callbacks import Compilation
from fmnist_lightning.training.evaluate import evaluate
from fmnist_lightning.training.train import train
from tools.torture import result


def load(part: str) -> Split:
    labels = torch.arange(80) % 2
    return Split((100 * labels).to(torch.uint8).view(-1, 1, 1, 1).repeat(1, 1, 12, 12), labels)


STARS = DataSource(name="stars", title="Stars", classes=("dwarf", "giant"), image_shape=(1, 12, 12), load=load)
NAMES = ("loss", "accuracy", "data")  # in metrics.json
MARGIN: Any = F.multi_margin_loss


def new_datamodule() -> FashionMNISTDataModule:
    return FashionMNISTDataModule(STARS, batch_size=20, val_fraction=0.25, shift=1, erase=0.5)


def options(log_dir: Path, **changes: Any) -> TrainOptions:
    """Their batch size, split and augmentation are not those of the datamodule."""
    fixed: dict[str, Any] = {"accelerator": "cpu", "precision": "32-true", "log_dir": str(log_dir), "logger": "csv"}
    return TrainOptions(**{"max_epochs": 2, "flip": True, **fixed, **changes})


class StopAt(Callback):
    """Stops a training as Ctrl-C does."""

    def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.current_epoch == 1:
            raise Interrupted(2)


@pytest.fixture
def stars(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Path, str]:
    """A run with an own datamodule and loss, and what it printed."""
    train(options(tmp_path), datamodule=new_datamodule(), loss=MARGIN)
    return tmp_path / "version_0", capsys.readouterr().out


def test_difference_names_what_differs() -> None:
    assert difference(STARS, replace(STARS, title="Other")) == ""
    assert difference(STARS, replace(STARS, name="suns")) == "the data set suns instead of stars"
    assert difference(STARS, replace(STARS, classes=("a", "b"))) == "class names a, b instead of dwarf, giant"
    assert (
        difference(STARS, replace(STARS, image_shape=(3, 12, 12))) == "image shape (3, 12, 12) instead of (1, 12, 12)"
    )


def test_options_of_an_own_datamodule_are_recorded(stars: tuple[Path, str]) -> None:
    expected = {"dataset": "stars", "batch_size": 20, "val_fraction": 0.25, "flip": False, "shift": 1, "erase": 0.5}
    recorded = read_options(stars[0])
    assert {name: getattr(recorded, name) for name in expected} == expected
    assert read_checkpoint(stars[0] / "checkpoints" / "last.ckpt")["data"] == STARS.as_plain()


def test_datamodule_of_another_seed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="seed 3"):
        train(options(tmp_path, seed=3), datamodule=new_datamodule())
    assert list(tmp_path.iterdir()) == []


def test_hints_of_an_own_run_are_calls_in_python(stars: tuple[Path, str], tmp_path: Path) -> None:
    assert "--run" not in stars[1]
    with pytest.raises(Interrupted) as caught:
        train(options(tmp_path), datamodule=new_datamodule(), loss=MARGIN, callbacks=[StopAt()])
    call = f"train(replace(options, resume={str(tmp_path / 'version_1')!r}), datamodule=..., loss=...)"
    assert call in str(caught.value.advice)


@pytest.mark.usefixtures("small_drawn")
def test_own_run_resumes_with_its_objects(stars: tuple[Path, str], tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(options(tmp_path), datamodule=new_datamodule(), loss=MARGIN, callbacks=[StopAt()])
    run = tmp_path / "version_1"
    given = options(tmp_path, resume=str(run))
    some: list[dict[str, Any]] = [{"datamodule": new_datamodule()}, {"loss": MARGIN}, {}]
    for objects in some:
        with pytest.raises(UserError, match=r"datamodule=\.\.\., loss="):
            train(replace(given, dataset="drawn"), **objects)
    train(given, datamodule=new_datamodule(), loss=MARGIN)
    assert result(run) == result(stars[0])


@pytest.mark.usefixtures("small_drawn")
@pytest.mark.parametrize("kept", [True, False])
def test_own_loss_is_never_dropped_silently(program: Program, tmp_path: Path, kept: bool) -> None:
    """On the command line; also if the run was killed before its first checkpoint."""
    train(options(tmp_path, dataset="drawn", test=False), loss=MARGIN)
    run = tmp_path / "version_0"
    if not kept:
        for path in (run / "checkpoints").iterdir():
            path.unlink()
    for function, arguments in ((train, ("--resume", run)), (evaluate, ("--run", run))):
        status, output = program(function, *arguments)
        assert (status, "loss=..." in output) == (1, True), output


@pytest.mark.usefixtures("small_drawn")
def test_run_without_own_objects_takes_none(program: Program, tmp_path: Path) -> None:
    run, _ = small_run(program, tmp_path, "--max_epochs", 1, "--test", "false")
    with pytest.raises(UserError, match="loss"):
        train(replace(read_options(run), resume=str(run), max_epochs=2), loss=MARGIN)


def test_own_run_is_tested_with_its_objects(program: Program, stars: tuple[Path, str]) -> None:
    run, before = stars[0], metrics_of(stars[0])
    (run / "metrics.json").unlink()
    status, output = program(evaluate, "--run", run)
    assert (status, "datamodule=..., loss=..." in output) == (1, True), output
    evaluate(TestOptions(run=str(run), accelerator="cpu"), datamodule=new_datamodule(), loss=MARGIN)
    after = metrics_of(run)
    assert [(after[name], name) for name in NAMES] == [(before[name], name) for name in NAMES]


def test_config_of_an_own_run_does_not_pass_for_a_recipe(program: Program, stars: tuple[Path, str]) -> None:
    status, output = program(train, "--config", stars[0] / "config.yaml")
    assert (status, str(stars[0]) in output) == (2, True), output


def test_pictures_of_an_own_run_are_refused(stars: tuple[Path, str], tmp_path: Path) -> None:
    run: Any = ComparedRun("run", stars[0], STARS, {}, None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="stars"):
        draw(run, [0], tmp_path / "a.png", None)


@pytest.mark.usefixtures("small_drawn")
def test_smoke_run_compiles_too(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Callable[..., object]] = []
    monkeypatch.setattr(Compilation, "on_train_start", lambda *given: compiled.append(given[0]))
    monkeypatch.setattr("fmnist_lightning.training.train.check_compiler", lambda _: None)
    arguments = ("--dataset", "drawn", "--accelerator", "cpu", "--fast_dev_run", "true")
    for wanted in ("false", "true"):
        status, output = program(train, *arguments, "--compile", wanted)
        assert status == 0, output
        assert len(compiled) == (wanted == "true")
