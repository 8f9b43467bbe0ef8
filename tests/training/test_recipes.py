"""Recipes are options of the training script, and nothing else."""

from pathlib import Path

import pytest
import yaml

from fmnist_lightning.cli import parse
from fmnist_lightning.training.train import train

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


def test_there_are_recipes() -> None:
    assert RECIPES


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_accepted_and_its_options_arrive(recipe: Path) -> None:
    options = yaml.safe_load(recipe.read_text())
    parsed = parse(train, ["--config", str(recipe)])
    assert {name: parsed[name] for name in options} == options


def test_the_seed_recipe_is_the_default_in_32_bits() -> None:
    [recipe] = [path for path in RECIPES if path.stem == "seed"]
    assert parse(train, ["--config", str(recipe)]) == {**parse(train, []), "precision": "32-true"}
