"""A config.yaml that was edited to what no training takes is refused by name."""

from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from fmnist_lightning.errors import UserError
from fmnist_lightning.runs.folders import CONFIG
from fmnist_lightning.runs.options import TrainOptions, as_yaml, read_options

WRONG = {"model": [1], "dropout": 5, "batch_size": None, "seed": "x", "dataset": "auto", "lr": date(2026, 1, 1)}


@pytest.mark.parametrize(("option", "value"), [("dataset", "foo"), ("batch_size", 0), *WRONG.items()])
def test_option_that_training_does_not_take_is_named(tmp_path: Path, option: str, value: Any) -> None:
    path, options = tmp_path / CONFIG, TrainOptions(dataset="drawn")
    older = {name: value for name, value in as_yaml(options).items() if name != "erase"}
    path.write_text(yaml.safe_dump(older))
    assert read_options(tmp_path) == options  # the negative control: a newer option has its default
    path.write_text(yaml.safe_dump({**as_yaml(options), option: value}))
    with pytest.raises(UserError, match=option) as caught:
        read_options(tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", ["seed: 2026-13-01", "a: &a [*a]", "[" * 5000])
def test_config_that_yaml_cannot_read_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / CONFIG).write_text(content)
    with pytest.raises(UserError, match=CONFIG):
        read_options(tmp_path)
