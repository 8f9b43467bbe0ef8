"""Recipes: YAML files of the training script's own options."""

from pathlib import Path
from typing import Any

import yaml

from fmnist_lightning.cli import parse
from fmnist_lightning.errors import UserError
from fmnist_lightning.training import train


def given_options(recipe: Path) -> dict[str, Any]:
    """The options that a recipe names, as they stand there. Raises UserError where --recipe names no file of options.

    Looked at first: the parser of the training script would tell its own usage, and of `--config`, which nobody typed.
    """
    cure = "name a recipe such as those in recipes/"
    try:
        content = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--recipe: {recipe} can't be read ({getattr(error, 'strerror', error)}); {cure}") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise UserError(f"--recipe: {recipe} holds no options; expected one `name: value` a line; {cure}")
    return content


def read_recipe(recipe: Path) -> dict[str, Any]:
    """All options of a training by a recipe. Raises UserError as `given_options`; exits with 2 where one is wrong."""
    given_options(recipe)
    return parse(train, [f"--config={recipe}"])
