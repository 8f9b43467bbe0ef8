"""A search space: which of the training script's options a search tries, and between which values.

A file of it maps options to {low, high, log, step} or {choices}. Nothing here imports Optuna: of a trial only
`suggest_int`, `suggest_float` and `suggest_categorical` are used.
"""

import inspect
import json
import math
from argparse import ArgumentError
from collections.abc import Hashable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jsonargparse import auto_parser

from fmnist_lightning.cli import Parser
from fmnist_lightning.errors import UserError
from fmnist_lightning.training.train import train

SMALLEST_RATE = 1 / 256  # between two rates of dropout: see `check_rate` of cli.py
NOT_SEARCHED = {
    **dict.fromkeys(("dataset", "data_dir", "val_fraction"), "all trials are judged on the same images"),
    "seed": "a seed that was lucky once is no better recipe",
    "test": "a search never opens the test set",
    "ckpt": "no last checkpoint is better than the best one on the images that chose it",
    **dict.fromkeys(
        ("accelerator", "devices", "num_nodes", "strategy", "precision"), "it is the machine's, not the recipe's"
    ),
    **dict.fromkeys(
        ("checkpoint_every_minutes", "log_dir", "resume", "fast_dev_run"), "it does not change what a recipe comes to"
    ),
}
SEARCHED = tuple(name for name in inspect.signature(train).parameters if name not in NOT_SEARCHED)
EXPECTED = "{low: ..., high: ...} with `log: true` or `step: ...` if wanted, or {choices: [...]}"


class Loader(yaml.SafeLoader):
    """PyYAML's, which of a name that is there twice would take the last in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value} is there twice: keep one of the two", problem_mark=key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


class Range(NamedTuple):
    """Whole numbers where `low` is one, else any; both ends belong to it."""

    low: float
    high: float
    step: float | None
    log: bool

    def suggest(self, trial: Any, name: str) -> Any:
        if isinstance(self.low, int):
            return trial.suggest_int(name, self.low, self.high, step=self.step or 1, log=self.log)
        return trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log)

    def labels(self, value: Any) -> list[Any]:
        """What a trial calls `value`, one entry; none where it could not be suggested."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return []
        steps = (value - self.low) / self.step if self.step else 0
        return [value] if math.isclose(steps, round(steps), abs_tol=1e-9) else []

    def record(self) -> list[Any]:
        """The range as JSON holds it."""
        return ["range", *self]


class Choices(NamedTuple):
    """Values by what a study's database calls them: themselves, but lists as JSON."""

    values: dict[Any, Any]

    def suggest(self, trial: Any, name: str) -> Any:
        return self.values[trial.suggest_categorical(name, list(self.values))]

    def labels(self, value: Any) -> list[Any]:
        """What a trial calls `value`, one entry; none where it is no choice."""
        return [label for label, known in self.values.items() if (type(known), known) == (type(value), value)]

    def record(self) -> list[Any]:
        return ["choices", *self.values.values()]


Space = dict[str, Range | Choices]


class Plan(NamedTuple):
    """What a search does, but for where it computes."""

    options: dict[str, Any]  # all those of the training script
    held: frozenset[str]  # which of them the best recipe holds, beside those of the space
    space: Space
    folder: Path
    study_name: str  # in its database
    trials: int
    prune: bool
    sampler_seed: int
    command: str  # that goes on with it, without a password


def suggest_options(trial: Any, space: Space, options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` with what `trial` suggests for those in the space."""
    suggested = {**options, "dropout": list(options["dropout"])}
    for name, values in space.items():
        option, _, place = name.partition(".")
        if place:
            suggested[option][int(place)] = values.suggest(trial, name)
        else:
            suggested[option] = values.suggest(trial, name)
    return suggested


def trial_of(space: Space, options: Mapping[str, Any]) -> dict[str, Any] | None:
    """The parameters by which `suggest_options` would suggest just `options`; None where the space lacks a value."""
    parameters = {}
    for name, values in space.items():
        option, _, place = name.partition(".")
        if not (labels := values.labels(options[option][int(place)] if place else options[option])):
            return None
        [parameters[name]] = labels
    return parameters


def read_space(path: Path) -> Space:
    """The space in a YAML file.

    Raises UserError where an option is unknown, there twice or can't be searched, or where a value is none that it
    could have.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader)  # noqa: S506  a SafeLoader
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read: {error}; name a search space with --space") from error
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path} holds no search space; expected one line `OPTION: {EXPECTED}` for each option")
    names = [str(name) for name in content]
    check_names(path, names)
    return {
        name: read_values(f"{path}: {name}", name, values) for name, values in zip(names, content.values(), strict=True)
    }


def check_names(path: Path, names: list[str]) -> None:
    """Raise UserError where one is no option that can be searched, or dropout is there twice."""
    places = [f"dropout.{place}" for place in range(len(inspect.signature(train).parameters["dropout"].default))]
    for name in names:
        if name in NOT_SEARCHED:
            raise UserError(f"{path}: {name} can't be searched: {NOT_SEARCHED[name]}; take it out")
        if name not in (*SEARCHED, *places):
            known = ", ".join((*SEARCHED, *places))
            raise UserError(f"{path}: {name} is no option of scripts/train.py; those that can be searched: {known}")
    if "dropout" in names and any(place in names for place in places):
        raise UserError(f"{path}: dropout is given as a whole and by places; keep one of the two")


def read_values(where: str, name: str, values: Any) -> Range | Choices:
    if not isinstance(values, dict):
        raise UserError(f"{where} is {json.dumps(values, default=str)}; expected {EXPECTED}")
    given = {str(key) for key in values}
    if given == {"choices"}:
        return read_choices(where, name, values["choices"])
    if {"low", "high"} <= given <= {"low", "high", "log", "step"}:
        return read_range(where, name, **values)
    raise UserError(f"{where} has {', '.join(sorted(given)) or 'nothing'}; expected {EXPECTED}")


def read_choices(where: str, name: str, choices: Any) -> Choices:
    if not isinstance(choices, list) or not choices:
        raise UserError(f"{where}: choices is {json.dumps(choices, default=str)}; expected a list of values")
    if name == "teacher" and "last" in choices:
        raise UserError(f"{where}: the last run would be that of another trial; name the teacher's run folder")
    values = [typed(f"{where}: choices", name, choice) for choice in choices]
    by_label = {json.dumps(value) if isinstance(value, list) else value: value for value in values}
    if len(by_label) < len(values):
        raise UserError(f"{where}: choices has a value twice; keep one of them")
    return Choices(by_label)


def read_range(where: str, name: str, low: Any, high: Any, step: Any = None, log: Any = False) -> Range:
    low, high = number(f"{where}: low", name, low), number(f"{where}: high", name, high)
    if low >= high:
        raise UserError(f"{where}: low is {low} and high {high}; expected a lower low; one value belongs in the recipe")
    if not isinstance(log, bool):
        raise UserError(f"{where}: log is {log}; expected true or false")
    if log and (step is not None or low <= 0):
        raise UserError(f"{where}: log has low {low}, step {step}; expected a low above 0 and no step")
    if "." in name:
        if log:
            raise UserError(f"{where}: log would draw rates that are no whole 256ths; leave it out")
        step = SMALLEST_RATE if step is None else step
    return Range(low, high, None if step is None else read_step(f"{where}: step", name, low, high, step), log)


def read_step(where: str, name: str, low: float, high: float, step: Any) -> float:
    """A step by which `high` is reached from `low`, and each value between is one that the option could have."""
    step = number(where, name, step)
    steps = (high - low) / step if step > 0 else math.nan
    if not math.isclose(steps, round(steps) if steps > 0 else math.nan, rel_tol=1e-9):
        raise UserError(f"{where} is {step}; expected a part of high - low, {high - low:g}, that divides it")
    return step


def number(where: str, name: str, value: Any) -> Any:
    """An int where the option takes whole numbers, else a float."""
    read = typed(where, name, value)
    if isinstance(read, bool) or not isinstance(read, int | float):
        raise UserError(
            f"{where} is {json.dumps(value, default=str)}; expected a number; what has no order is given as choices"
        )
    return read


@cache
def training_parser() -> Any:
    """The training script's own parser, which raises where the script would exit."""
    return auto_parser(train, as_positional=True, parser_class=Parser, exit_on_error=False)


def typed(where: str, name: str, value: Any) -> Any:
    """`value` as the training script reads it for the option `name`. Raises UserError where it would refuse it."""
    option, _, place = name.partition(".")
    given = value
    if place:
        given = [0.0 for _ in inspect.signature(train).parameters[option].default]
        given[int(place)] = value
    try:
        parsed = training_parser().parse_object({option: given})[option]
    except ArgumentError as error:
        reason = " ".join(str(error).partition("\n")[2].split()) or str(error)
        raise UserError(f"{where} is {json.dumps(value, default=str)}: {reason}") from error
    # As plain values: see `parse` of cli.py.
    plain = json.loads(json.dumps(parsed))
    return plain[int(place)] if place else plain
