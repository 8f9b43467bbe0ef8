"""A search space is checked against the training script's own options, and suggests nothing that they refuse."""

import inspect
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from fmnist_lightning.cli import parse
from fmnist_lightning.errors import UserError
from fmnist_lightning.training.train import train
from fmnist_lightning.tune.space import NOT_SEARCHED, Choices, Range, Space, read_space, suggest_options, trial_of

ROOT = Path(__file__).parents[2]


def written(folder: Path, content: Any) -> Path:
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def test_each_option_can_be_searched_or_has_a_reason_against_it(tmp_path: Path) -> None:
    assert NOT_SEARCHED.keys() < inspect.signature(train).parameters.keys()
    for option, reason in NOT_SEARCHED.items():
        with pytest.raises(UserError, match=f"{option} can't be searched: {reason}"):
            read_space(written(tmp_path, {option: {"choices": [1]}}))


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ([], "holds no search space"),
        ({}, "holds no search space"),
        ({"learning_rate": {"low": 1, "high": 2}}, "learning_rate is no option of scripts/train.py"),
        ({"dropout.3": {"low": 0, "high": 0.5}}, "dropout.3 is no option"),
        ({"lr.0": {"low": 0.1, "high": 0.5}}, "lr.0 is no option"),
        ({"lr": 0.1}, "lr is 0.1; expected {low"),
        ({"lr": {}}, "lr has nothing; expected {low"),
        ({"lr": {"low": 0.1}}, "lr has low; expected {low"),
        ({"lr": {"low": 0.1, "high": 0.2, "stride": 1}}, "lr has high, low, stride; expected"),
        ({"lr": {"low": 0.1, "choices": [0.1]}}, "lr has choices, low; expected"),
        ({"lr": {"low": 0, "high": 0.2}}, "lr: low is 0: Not of type PositiveFinite"),
        ({"lr": {"low": "small", "high": 0.2}}, 'lr: low is "small": Not of type PositiveFinite'),
        ({"lr": {"low": 0.2, "high": 0.1}}, "lr: low is 0.2 and high 0.1; expected a lower low"),
        ({"lr": {"low": 0.1, "high": 0.1}}, "one value belongs in the recipe"),
        ({"lr": {"low": 0.1, "high": 0.2, "log": "yes"}}, "lr: log is yes; expected true or false"),
        ({"lr": {"low": 0.1, "high": 0.3, "log": True, "step": 0.1}}, "no step"),
        ({"lr": {"low": 0.1, "high": 0.3, "step": 0.15}}, "step is 0.15; expected a part of high - low, 0.2"),
        ({"lr": {"low": 0.1, "high": 0.3, "step": 0.4}}, "step is 0.4; expected a part"),
        ({"shift": {"low": 0, "high": 4, "step": 0}}, "step is 0; expected a part"),
        ({"erase": {"low": 0, "high": 0.5, "log": True}}, "expected a low above 0"),
        ({"batch_size": {"low": 1.5, "high": 8}}, "batch_size: low is 1.5: Not of type BatchSize"),
        ({"batch_size": {"low": True, "high": 8}}, "batch_size: low is true: Not of type BatchSize"),
        ({"patience": {"low": None, "high": 8}}, "patience: low is null; expected a number"),
        ({"flip": {"low": False, "high": True}}, "flip: low is false; expected a number"),
        ({"flip": {"choices": True}}, "flip: choices is true; expected a list"),
        ({"flip": {"choices": []}}, "flip: choices is []; expected a list"),
        ({"flip": {"choices": [True, "perhaps"]}}, 'flip: choices is "perhaps"'),
        ({"lr": {"choices": [0.1, "0.1"]}}, "lr: choices has a value twice"),
        ({"teacher": {"choices": [None, "last"]}}, "the last run would be that of another trial"),
        ({"model": {"choices": ["seed", "resnet"]}}, 'model: choices is "resnet"'),
        ({"dropout": {"choices": [[0.1, 0, 0]]}}, "dropout: choices is [0.1, 0, 0]: Not of type Rate"),
        ({"dropout": {"low": 0, "high": 0.5}}, "dropout: low is 0"),
        ({"dropout.0": {"low": 0, "high": 0.5, "step": 0.1}}, "dropout.0: step is 0.1: Not of type Rate"),
        ({"dropout.0": {"low": 0.125, "high": 0.5, "log": True}}, "no whole 256ths"),
        (
            {"dropout": {"choices": [[0, 0, 0]]}, "dropout.0": {"low": 0, "high": 0.5}},
            "dropout is given as a whole and by places",
        ),
    ],
)
def test_a_wrong_space_is_named(tmp_path: Path, space: Any, words: str) -> None:
    path = written(tmp_path, space)
    with pytest.raises(UserError) as refusal:
        read_space(path)
    assert str(refusal.value).startswith(str(path))
    assert words in str(refusal.value)


@pytest.mark.parametrize("content", [None, b"lr: [", b"lr: \xff"])
def test_a_space_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "space.yaml"
    if content:
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path} can't be read"):
        read_space(path)


@pytest.mark.parametrize(
    "twice", ["lr: {low: 0.1, high: 0.2}\nlr: {choices: [1]}", "lr: {low: 0.1, low: 0.2, high: 1}"]
)
def test_what_is_there_twice_is_named(tmp_path: Path, twice: str) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(twice)
    with pytest.raises(
        UserError, match=f"(?s){path} can't be read: (lr|low) is there twice: keep one of the two.*line"
    ):
        read_space(path)


def test_values_have_the_options_types(tmp_path: Path) -> None:
    # PyYAML reads 1e-4 as text.
    space = read_space(
        written(
            tmp_path,
            {
                "lr": {"low": "1e-4", "high": 1, "log": True},
                "shift": {"low": 0.0, "high": 4, "step": 2},
                "dropout.0": {"low": 0, "high": 0.5},
                "dropout.1": {"low": 0, "high": 0.5, "step": 0.25},
                "ema": {"choices": [0, "0.9"]},
                "flip": {"choices": [False, True]},
            },
        )
    )
    expected: Space = {
        "lr": Range(1e-4, 1.0, None, log=True),
        "shift": Range(0, 4, 2, log=False),
        "dropout.0": Range(0.0, 0.5, 1 / 256, log=False),
        "dropout.1": Range(0.0, 0.5, 0.25, log=False),
        "ema": Choices({0.0: 0.0, 0.9: 0.9}),
        "flip": Choices({False: False, True: True}),
    }
    assert space == expected
    ends = [type(value) for values in space.values() if isinstance(values, Range) for value in values[:2]]
    assert ends == [float, float, int, int, float, float, float, float]


def test_lists_are_chosen_by_their_json(tmp_path: Path) -> None:
    space = read_space(written(tmp_path, {"dropout": {"choices": [[0, 0, 0.25], [0.25, 0.25, 0.5]]}}))
    trial = optuna.trial.FixedTrial({"dropout": "[0.25, 0.25, 0.5]"})
    assert suggest_options(trial, space, parse(train, []))["dropout"] == [0.25, 0.25, 0.5]


def test_a_recipe_is_the_trial_that_suggests_it_or_none(tmp_path: Path) -> None:
    base = {**parse(train, []), "dropout": [0.0, 0.0, 0.5]}
    recipe = {**base, "lr": 0.01, "batch_size": 64, "dropout": [0.0, 0.25, 0.5], "flip": True, "shift": 2}
    content: dict[str, Any] = {
        "lr": {"low": 0.001, "high": 0.01, "log": True},
        "batch_size": {"low": 32, "high": 128},
        "dropout.1": {"low": 0, "high": 0.5, "step": 0.125},
        "flip": {"choices": [False, True]},
        "shift": {"choices": [0, 2]},
        "patience": {"choices": [None, 3]},
    }
    space = read_space(written(tmp_path, content))
    parameters = trial_of(space, recipe)
    assert parameters == {"lr": 0.01, "batch_size": 64, "dropout.1": 0.25, "flip": True, "shift": 2, "patience": None}
    assert suggest_options(optuna.trial.FixedTrial(parameters), space, base) == recipe
    for name, value in (("lr", 0.02), ("batch_size", 16), ("dropout", [0.0, 0.0625, 0.5]), ("shift", 1)):
        assert trial_of(space, {**recipe, name: value}) is None
    lists = read_space(written(tmp_path, {"dropout": {"choices": [[0, 0, 0.25], [0, 0.25, 0.5]]}}))
    assert trial_of(lists, recipe) == {"dropout": "[0.0, 0.25, 0.5]"}


SPACE = """
lr: {low: 1e-4, high: 1e-2, log: true}
batch_size: {low: 32, high: 512, log: true}
max_epochs: {low: 5, high: 20, step: 5}
erase: {low: 0, high: 0.5}
label_smoothing: {low: 0, high: 0.2, step: 0.05}
dropout.1: {low: 0, high: 0.5}
dropout.2: {low: 0.25, high: 0.75, step: 0.25}
flip: {choices: [false, true]}
ema: {choices: [0, 0.9]}
model: {choices: [seed, compact]}
"""


EXAMPLE = (ROOT / "recipes" / "search" / "tuned.yaml").read_text()


@pytest.mark.parametrize("content", [SPACE, EXAMPLE], ids=["all", "example"])
def test_all_that_is_suggested_is_accepted_by_training(tmp_path: Path, content: str) -> None:
    (tmp_path / "space.yaml").write_text(content)
    space = read_space(tmp_path / "space.yaml")
    options = parse(train, [])
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn: dict[str, set[Any]] = {name: set() for name in space}
    for _ in range(60):
        trial = study.ask()
        suggestion = suggest_options(trial, space, options)
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(suggestion))
        assert parse(train, [f"--config={tmp_path / 'recipe.yaml'}"]) == suggestion
        for name in space:
            drawn[name].add(trial.params[name])
    assert all(len(values) > 1 for values in drawn.values())
    assert sorted(drawn["label_smoothing"]) == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    assert options["dropout"] == parse(train, [])["dropout"]
