"""--fast_dev_run: one batch of everything."""

from pathlib import Path

import pytest
from conftest import Program

from fmnist_lightning.training.module import Classifier
from fmnist_lightning.training.train import train


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ([], ["training", "validation", "test"]),
        (["--val_fraction", "0", "--ckpt", "last", "--test", "false"], ["training"]),
    ],
)
def test_smoke_run_does_what_it_says_and_writes_nothing(
    program: Program,
    tmp_path: Path,
    small_drawn: None,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    parts: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    done = ["training"]
    monkeypatch.setattr(Classifier, "on_validation_epoch_end", lambda _: done.append("validation"))
    monkeypatch.setattr(Classifier, "on_test_epoch_end", lambda _: done.append("test"))
    status, output = program(train, "--dataset", "drawn", "--accelerator", "cpu", "--fast_dev_run", *options)
    assert status == 0, output
    assert done == parts
    assert f"one batch of {', '.join(parts)};" in output
    assert list(tmp_path.iterdir()) == []
