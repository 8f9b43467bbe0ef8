"""recipes/schema.json is that of the options, accepts what a training accepts, and refuses what it refuses."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from fmnist_lightning.cli.parser import parse_values
from fmnist_lightning.errors import UserError
from fmnist_lightning.runs.folders import write_config
from fmnist_lightning.runs.options import TrainOptions, as_yaml, names
from tools.schema import SCHEMA, recipe_schema

RECIPES = sorted(SCHEMA.parent.glob("*.yaml"))


def errors(values: Any) -> list[str]:
    return [error.message for error in Draft202012Validator(recipe_schema()).iter_errors(values)]


def test_schema_file_is_that_of_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FMNIST_DATA_DIR", "elsewhere")
    assert json.loads(SCHEMA.read_text()) == recipe_schema(), "run make schema"


def test_schema_is_valid_and_describes_every_option() -> None:
    schema = recipe_schema()
    Draft202012Validator.check_schema(schema)
    assert schema["properties"].keys() == {"$schema", *names(TrainOptions)}
    assert all(option["description"] for option in schema["properties"].values())


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_schema_accepts_recipe_that_names_it(recipe: Path) -> None:
    text = recipe.read_text()
    assert text.startswith("# yaml-language-server: $schema=schema.json\n")
    assert errors(yaml.safe_load(text)) == []


@pytest.mark.parametrize(
    "changes", [{}, {"class_weights": (1.0, 0.5), "limit_train_batches": 3, "classes": ("a", "b")}]
)
def test_schema_accepts_config_of_a_run(tmp_path: Path, changes: dict[str, Any]) -> None:
    write_config(tmp_path, as_yaml(replace(TrainOptions(), **changes)))
    assert errors(yaml.safe_load((tmp_path / "config.yaml").read_text())) == []


@pytest.mark.parametrize(
    "values",
    [
        {"learning_rate": 0.1},
        {"lr": "high"},
        {"lr": 0},
        {"seed": 2**32},
        {"max_epochs": 1.5},
        {"optimizer": "sdg"},
        {"dropout": [0.1, 0.1]},
        {"dropout": [0.1, 0.1, 1.0]},
        {"class_weights": "even"},
        {"channels": 2},
        {"logger": "csv,files"},
        {"flip": "often"},
    ],
    ids=str,
)
def test_schema_refuses_what_training_refuses(values: dict[str, Any]) -> None:
    assert len(errors(values)) == 1
    with pytest.raises(UserError):
        parse_values(TrainOptions, values, "recipe.yaml")
