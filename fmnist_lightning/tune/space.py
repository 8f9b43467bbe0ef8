"""What a search tries: which options of a training, from which values.

A YAML file of it maps options to the arguments of Optuna's distributions: {low, high, log, step} or {choices}.
"""

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial
from sqlalchemy import URL

from fmnist_lightning.cli.parser import parse_values
from fmnist_lightning.cli.recipes import read_yaml
from fmnist_lightning.data.source import DataInfo
from fmnist_lightning.errors import UserError
from fmnist_lightning.models.nets import MODELS
from fmnist_lightning.runs.options import AugmentationOptions, ModuleOptions, TrainOptions, TuneOptions, as_yaml, names

DROPOUT_PLACES = tuple(f"dropout.{place}" for place in range(3))
# Not the data, since all trials are judged on the same images; not the seed, since a lucky one is no better recipe.
SEARCHED = (
    *names(ModuleOptions),
    *DROPOUT_PLACES,
    *names(AugmentationOptions),
    *("batch_size", "max_epochs", "patience", "ema", "teacher", "teacher_share", "temperature"),
)
EXPECTED = "expected {low: ..., high: ...} with `log: true` or `step: ...` if wanted, or {choices: [...]}"

Space = dict[str, BaseDistribution]


@dataclass(frozen=True)
class Plan:
    """What a search does."""

    options: TuneOptions
    recipe: TrainOptions
    info: DataInfo
    held: set[str]  # the options that the best recipe holds
    space: Space
    url: URL  # of the database
    command: str  # resumes the search; shows no password

    @property
    def folder(self) -> Path:
        return Path(self.options.study)


def read_space(path: Path) -> Space:
    """The space in a YAML file. Raises UserError if an option can't be searched, or a value is not one of it."""
    content = read_yaml(path, "name a search space such as those in recipes/search/")
    if unknown := [name for name in content if name not in SEARCHED]:
        raise UserError(
            f"cannot search {', '.join(unknown)} in {path}: a search can change only {', '.join(SEARCHED)} (remove it)"
        )
    if "dropout" in content and any(place in content for place in DROPOUT_PLACES):
        raise UserError(f"cannot use {path}: it names dropout as a whole and by place (keep one of the two)")
    return {name: read_distribution(f"{path}, {name}", name, values) for name, values in content.items()}


def read_distribution(where: str, name: str, values: Any) -> BaseDistribution:
    try:
        # Optuna only warns of a range that is no multiple of its step.
        with warnings.catch_warnings(action="error"):
            given = dict(values)
            if "choices" in given:
                given["choices"] = [label(typed(where, name, choice)) for choice in given["choices"]]
                if name == "teacher" and "last" in given["choices"]:
                    raise ValueError("the last run would be another trial's, so name the teacher's run folder")
                return CategoricalDistribution(**given)
            log = given.pop("log", False)
            numbers = {key: typed(where, name, value) for key, value in given.items()}
            types = {type(number) for number in numbers.values()}
            if not isinstance(log, bool) or types not in ({int}, {float}):
                raise ValueError("a range needs numbers, and log is true or false")
            return IntDistribution(log=log, **numbers) if types == {int} else FloatDistribution(log=log, **numbers)
    except (TypeError, ValueError, UserWarning) as error:
        raise UserError(f"cannot use {where}: {error} ({EXPECTED})") from error


def typed(where: str, name: str, value: Any) -> Any:
    """`value` as a training reads it for the option `name`. Raises UserError if the option has no such value."""
    return value_of(changed(TrainOptions(), {name: value}, where), name)


def changed(options: TrainOptions, values: Mapping[str, Any], source: str | Path) -> TrainOptions:
    """`options` with `values`, by the names in a space. Raises UserError that names `source` if one can't be used."""
    content = as_yaml(options)
    model = values.get("model", options.model)  # its rates are those of the places without a value
    for name, value in values.items():
        option, _, place = name.partition(".")
        if place:
            content[option] = content[option] or [*own_rates(model)]
            content[option][int(place)] = value
        else:
            content[option] = value
    return parse_values(TrainOptions, content, source)


def value_of(options: TrainOptions, name: str) -> Any:
    option, _, place = name.partition(".")
    value = getattr(options, option)
    if option == "dropout":
        value = value or own_rates(options.model)
    return value[int(place)] if place else value


def own_rates(model: str) -> tuple[float, ...]:
    """The dropout rates that a model has by default. Raises UserError if it has none, as those of timm."""
    parameters = signature(MODELS[model]).parameters if model in MODELS else {}
    rates = getattr(parameters.get("dropout"), "default", None)
    if not isinstance(rates, tuple | list):
        raise UserError(f"cannot search dropout of the model {model}: it has no rates (remove it from the space)")
    return tuple(rates)


def label(value: Any) -> Any:
    """The name of a choice in a study, whose database holds no lists: JSON, which a training reads as the list."""
    return json.dumps(value) if isinstance(value, tuple) else value


def suggest(trial: Trial, space: Space) -> dict[str, Any]:
    """Let the study's sampler choose a value for each option in the space."""
    suggest_by: dict[type[BaseDistribution], Callable[..., Any]] = {
        CategoricalDistribution: trial.suggest_categorical,
        IntDistribution: trial.suggest_int,
        FloatDistribution: trial.suggest_float,
    }
    return {name: suggest_by[type(values)](name, **vars(values)) for name, values in space.items()}
