"""Recipes are options of the training script, and nothing else."""

from dataclasses import replace
from pathlib import Path

import pytest

from fmnist_lightning.runs.options import TrainOptions, as_yaml, read_recipe, recipe_values

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipe_values_become_options(recipe: Path) -> None:
    values, options = recipe_values(recipe), as_yaml(read_recipe(recipe))
    assert {name: options[name] for name in values} == values


def test_seed_recipe_is_the_default_in_32_bits() -> None:
    assert read_recipe(RECIPES / "seed.yaml") == replace(TrainOptions(), precision="32-true")
