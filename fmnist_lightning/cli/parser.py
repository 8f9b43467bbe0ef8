"""Options from a dataclass: the parser, `--help`, and plain typed values."""

import json
import re
import sys
from argparse import SUPPRESS, Action, ArgumentError
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from itertools import zip_longest
from pathlib import Path
from types import NoneType
from typing import Any, NoReturn, TypeVar, get_args, get_type_hints

from jsonargparse import (  # type: ignore[attr-defined]  # ActionConfigFile is public, but not in __all__
    ActionConfigFile,
    ArgumentParser,
    DefaultHelpFormatter,
    set_parsing_settings,
)

from fmnist_lightning.cli.mistakes import explain, explain_words, given_words, no_option
from fmnist_lightning.cli.recipes import find_recipe, read_yaml, recipes
from fmnist_lightning.cli.shell import VERSION, expanded
from fmnist_lightning.cli.types import expected, plain_text, required_words
from fmnist_lightning.errors import UserError

Options = TypeVar("Options")

# The docstring below a dataclass's field is the option's help.
set_parsing_settings(docstring_parse_attribute_docstrings=True)


class Parser(ArgumentParser):
    """A required list is typed as plain words without its name. jsonargparse would ask for YAML in one word."""

    options: type[Any]

    def add_argument(self, *names: Any, **kwargs: Any) -> Any:
        if names and not names[0].startswith("-"):
            kwargs = {"help": kwargs.get("help"), "type": str, "nargs": "+"}
        return super().add_argument(*names, **kwargs)


class Recipe(ActionConfigFile):
    """`--config`: a file of options, or for a training the name of a recipe."""

    @staticmethod
    def apply_config(parser: Any, cfg: Any, dest: str, value: str) -> None:
        path = find_recipe(value) if hasattr(parser.options, "RECIPES") else Path(expanded(value))
        content = read_yaml(path)
        check_values(parser.options, content, path)
        try:
            ActionConfigFile.apply_config(parser, cfg, dest, str(path))
        # A RecursionError is of a list that contains itself.
        except (ArgumentError, TypeError, ValueError, RecursionError) as error:
            raise UserError(f"cannot use {path}: {explain(parser.options, str(error), content)}") from error


class Help(DefaultHelpFormatter):
    """An option's help ends with what it takes, unless its choices are shown anyway, and with its default."""

    def _get_help_string(self, action: Action) -> str:
        hint = getattr(action, "_typehint", None)
        if hint is None:
            return super()._get_help_string(action)
        takes = expected(hint)
        notes = [] if takes == "text" or str(action.metavar).startswith("{") else [takes]
        if action.required:
            notes.append("required")
        elif action.default not in (None, SUPPRESS):
            notes.append(f"default: {plain_text(action.default)}")
        return f"{action.help} ({'; '.join(notes)})" if notes else action.help or ""


def build_parser(options: type[Any], prog: str | None = None) -> Parser:
    """A parser of the fields of a dataclass, flat, with `--config`.

    The dataclasses that it inherits from, the last first, are groups of `--help` with their docstrings as titles. The
    parser raises ArgumentError for a wrong option.
    """
    parser = Parser(
        prog=prog,
        usage=" ".join(["%(prog)s [options]", *required_words(options)]),
        description=options.__doc__,
        exit_on_error=False,
        allow_abbrev=False,
        formatter_class=Help,
    )
    parser.options = options
    named = f", or the name of a recipe: {', '.join(recipes())}" if hasattr(options, "RECIPES") else ""
    parser.add_argument("--version", action="version", version=VERSION, help="Show the version and exit.")
    parser.add_argument("--config", action=Recipe, help=f"A YAML file of these options{named}.")
    added: list[str] = []
    for group in reversed(options.__bases__):
        if is_dataclass(group):
            added += parser.add_argument_group(group.__doc__).add_class_arguments(group, as_group=False)
    parser.add_class_arguments(options, as_group=False, as_positional=True, skip=set(added))
    return parser


def parse(options: type[Options], arguments: Sequence[str], prog: str | None = None) -> Options:
    """The options on a command line; exits with 2 if one is wrong, with 0 after `--help`."""
    parser = build_parser(options, prog)
    arguments = with_flags_completed(options, arguments)
    try:
        check_names(parser, arguments)
        return typed(options, parser.parse_args(arguments).as_dict())
    except ArgumentError as error:
        reason = explain_words(parser, str(error), arguments)
        reason = reason or explain(options, str(error), given_words(arguments), "--")
        fail(f"cannot run {parser.prog}: {reason} (see {parser.prog} --help)")
    except UserError as error:
        fail(str(error) if str(error).endswith(")") else f"{error} (see {parser.prog} --help)")
    except UnicodeError as error:
        fail(f"cannot run {parser.prog}: an option is not UTF-8 text: {error} (in an ASCII locale set PYTHONUTF8=1)")


def fail(message: str) -> NoReturn:
    """End the program, which was started with wrong options."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def parse_values(options: type[Options], values: dict[str, Any], source: str | Path) -> Options:
    """Options from a mapping, such as the content of `source`, a file.

    Raises UserError that names `source` if an option is unknown or ill-typed.
    """
    check_values(options, values, source)
    try:
        return typed(options, build_parser(options).parse_object(values).as_dict())
    except (ArgumentError, TypeError) as error:
        raise UserError(f"cannot use {source}: {explain(options, str(error), values)}") from error


def check_values(options: type[Any], values: Mapping[str, Any], source: str | Path) -> None:
    """Raise UserError if a name is no option, or its value is null though it needs one, which jsonargparse allows."""
    hints = {one.name: get_type_hints(options)[one.name] for one in fields(options)}
    for name, value in values.items():
        if name not in hints:
            raise UserError(f"cannot use {source}: {no_option(options, name)}")
        if value is None and NoneType not in get_args(hints[name]):
            raise UserError(f"cannot use {source}: {name} has no value; expected {expected(hints[name])}")


def check_names(parser: Parser, arguments: Sequence[str]) -> None:
    """Raise ArgumentError for the first word with a dash that is no option."""
    for argument in arguments:
        if argument == "--":
            return
        name = argument.partition("=")[0]
        if re.match(r"--?[^\W\d]|---", name) and name not in parser._option_string_actions:
            raise ArgumentError(None, no_option(parser.options, name, "--"))


def typed(options: type[Options], values: dict[str, Any]) -> Options:
    """The dataclass with plain values, not jsonargparse's. Raises UnicodeError for text that YAML can't hold."""
    plain: dict[str, Any] = {}
    for one in fields(options):  # type: ignore[arg-type]
        value = json.loads(json.dumps(values[one.name]))
        if isinstance(value, str):
            value.encode()
        if value and one.metadata.get("path"):
            value = expanded(value)
        plain[one.name] = tuple(value) if isinstance(value, list) and one.default is not MISSING else value
    return options(**plain)


def with_flags_completed(options: type[Any], arguments: Sequence[str]) -> list[str]:
    """Write `--flag` alone, or before plain words, as jsonargparse wants it: `--flag=true`."""
    hints = get_type_hints(options)
    flags = {f"--{name}" for name, hint in hints.items() if hint is bool}
    takes_words = any(hint == list[str] for hint in hints.values())
    return [
        f"{argument}=true"
        if argument in flags and (after.startswith("-") or (takes_words and after.lower() not in ("true", "false")))
        else argument
        for argument, after in zip_longest(arguments, arguments[1:], fillvalue="--")
    ]
