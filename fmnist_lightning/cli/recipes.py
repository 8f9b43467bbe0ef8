"""YAML files of options, and the recipes that come with the project."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from fmnist_lightning.cli.shell import PACKAGE, expanded
from fmnist_lightning.errors import UserError, full_path, missing

RECIPES = (PACKAGE if (PACKAGE / "recipes").is_dir() else PACKAGE.parent) / "recipes"  # a wheel has them inside
YAML_LINES = "lines `name: value`, not indented, with a space after the colon"


class Loader(yaml.SafeLoader):
    """YAML in which no name is given twice, and dates are text. No code in it can run."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines:
                where = f"line {line}" if line == lines[name] else f"lines {lines[name]} and {line}"
                raise yaml.YAMLError(f"it has {name} twice, in {where}")
            lines[name] = line
        return node


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def find_recipe(name: str | Path, kind: str = ".") -> Path:
    """The file `name`, else the recipe of this name that comes with the project, from the folder `kind` of recipes.

    Raises UserError if there is neither.
    """
    path, known = Path(expanded(str(name))), recipes(kind)
    if path.is_file():
        return path
    if str(name) in known:
        return known[str(name)]
    kind = "folder" if path.is_dir() else "device or pipe"
    reason = f"{full_path(path)} is a {kind}" if path.exists() else missing(path)
    if not reason.endswith("?") and (close := get_close_matches(path.stem.lower(), known, 1)):
        reason = f"did you mean {close[0]}?"
    raise UserError(f"cannot use {str(name)!r}: {reason} (expected a YAML file, or one of {', '.join(known)})")


def read_yaml(path: Path, hint: str = "") -> dict[str, Any]:
    """The names and values in a YAML file. Raises UserError, with `hint`, if it holds none, or a name twice."""
    hint = f" ({hint})" if hint else ""
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.load(text, Loader)  # noqa: S506 (it is a SafeLoader)
    except OSError as error:
        reason = missing(path) if isinstance(error, FileNotFoundError) else error.strerror
        raise UserError(f"cannot read {path}: {reason}{hint}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read {path}: it is no text in UTF-8, from byte {error.start} on{hint}") from error
    # PyYAML raises ValueError for a number such as 0b2, and RecursionError for many brackets.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {problem(error)}{hint}") from error
    if not text.strip():
        hint = hint or " (a shell empties the file of `> FILE` before the command reads it)"
        raise UserError(f"cannot use {path}: the file is empty; expected {YAML_LINES}{hint}")
    if content is None:
        raise UserError(f"cannot use {path}: it holds no option; expected {YAML_LINES}{hint}")
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise UserError(f"cannot use {path}: expected {YAML_LINES}{hint}")
    return content


def problem(error: Exception) -> str:
    """An error of PyYAML, which has up to six lines, in one."""
    if isinstance(error, yaml.reader.ReaderError):
        return f"it is no text, from character {error.position} on"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        line, column = error.problem_mark.line + 1, error.problem_mark.column + 1
        return f"line {line}, column {column}: {error.problem}; expected {YAML_LINES}"
    return "it is nested too deep" if isinstance(error, RecursionError) else " ".join(str(error).split())


def recipes(kind: str = ".") -> dict[str, Path]:
    """The recipes that come with the project by name, from the folder `kind` of recipes."""
    return {path.stem: path for path in sorted((RECIPES / kind).glob("*.yaml"))}
