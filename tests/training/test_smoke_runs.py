"""--fast_dev_run: a batch of everything, to see that all works."""

from pathlib import Path

import pytest
from conftest import Program

from fmnist_lightning.training.module import Classifier
from fmnist_lightning.training.train import train

pytestmark = pytest.mark.usefixtures("small_drawn")


def test_a_smoke_run_writes_nothing(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    status, output = program(train, "--dataset", "drawn", "--fast_dev_run", "--accelerator", "cpu")
    assert status == 0, output
    assert "smoke run passed" in output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ([], "training, validation, test"),
        (["--test", "false"], "training, validation"),
        (["--val_fraction", "0", "--ckpt", "last"], "training, test"),
    ],
)
def test_a_smoke_run_does_what_it_says(
    program: Program, monkeypatch: pytest.MonkeyPatch, options: list[str], parts: str
) -> None:
    done = ["training"]
    monkeypatch.setattr(Classifier, "on_validation_epoch_end", lambda _: done.append("validation"))
    monkeypatch.setattr(Classifier, "on_test_epoch_end", lambda _: done.append("test"))
    status, output = program(train, "--dataset", "drawn", "--accelerator", "cpu", "--fast_dev_run", *options)
    assert status == 0, output
    assert f"one batch of {parts}; no run folder" in output
    assert ", ".join(done) == parts
