"""Write recipes/schema.json, by which editors complete and check recipes: python -m tools.schema"""

import json
import math
from typing import Any

from fmnist_lightning.cli.parser import build_parser
from fmnist_lightning.cli.recipes import RECIPES
from fmnist_lightning.runs.files import write_text
from fmnist_lightning.runs.options import TrainOptions

SCHEMA = RECIPES / "schema.json"


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of the options of a training."""
    schema = tidied(json.loads(build_parser(TrainOptions).get_completion_script("jsonschema")))
    del schema["properties"]["data_dir"]["default"]  # an environment variable sets it
    return schema


def tidied(part: Any) -> Any:
    """Text without its line breaks, and no infinite bounds, which JSON can't hold."""
    if isinstance(part, dict):
        return {name: tidied(value) for name, value in part.items() if value != math.inf}
    if isinstance(part, list):
        return [tidied(value) for value in part]
    return " ".join(part.split()) if isinstance(part, str) else part


if __name__ == "__main__":
    write_text(SCHEMA, json.dumps(recipe_schema(), indent=2, allow_nan=False) + "\n")
