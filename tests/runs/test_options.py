"""A config.yaml that was edited to what no training takes is refused by name."""

import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from fmnist_lightning.errors import UserError
from fmnist_lightning.runs.folders import CONFIG
from fmnist_lightning.runs.options import TrainOptions, as_yaml, read_options


def write_options(run: Path, **changes: Any) -> TrainOptions:
    options = TrainOptions(dataset="drawn")
    (run / CONFIG).write_text(yaml.safe_dump({**as_yaml(options), **changes}))
    return options


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("model", [1]),
        ("dropout", 5),
        ("batch_size", 0),
        ("batch_size", None),
        ("val_fraction", 5),
        ("seed", "x"),
        ("data_dir", None),
        ("dataset", "foo"),
        ("dataset", "auto"),
        ("lr", datetime.date(2026, 1, 1)),
    ],
)
def test_option_that_training_does_not_take_is_named(tmp_path: Path, option: str, value: Any) -> None:
    assert write_options(tmp_path) == read_options(tmp_path)  # the negative control
    write_options(tmp_path, **{option: value})
    with pytest.raises(UserError, match=option) as caught:
        read_options(tmp_path)
    assert str(tmp_path / CONFIG) in str(caught.value)


@pytest.mark.parametrize("content", ["seed: 2026-13-01", "a: &a [*a]", "[" * 5000])
def test_config_that_yaml_cannot_read_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / CONFIG).write_text(content)
    with pytest.raises(UserError, match=CONFIG):
        read_options(tmp_path)
