"""A search space has the options and types of a training, and suggests nothing that a training refuses."""

from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from fmnist_lightning.errors import UserError
from fmnist_lightning.models.nets import MODELS
from fmnist_lightning.runs.options import TrainOptions
from fmnist_lightning.tune.space import changed, own_rates, read_space, suggest, value_of

EXAMPLE = Path(__file__).parents[2] / "recipes" / "search" / "tuned.yaml"
ALL_KINDS = """
lr: {low: 1e-4, high: 1e-2, log: true}
batch_size: {low: 32, high: 512, log: true}
max_epochs: {low: 5, high: 20, step: 5}
erase: {low: 0, high: 0.5}
dropout.1: {low: 0.01, high: 0.5, log: true}
dropout.2: {low: 0.25, high: 0.75, step: 0.25}
flip: {choices: [false, true]}
ema: {choices: [0, 0.9]}
model: {choices: [seed, compact]}
"""


def write_space(folder: Path, content: Any) -> Path:
    path = folder / "space.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.mark.parametrize(
    ("space", "word"),
    [
        ("lr: [", ""),
        ({"lr": 0.1}, "lr"),
        ({"lr": {"low": 0.1}}, "high"),
        ({"lr": {"low": 0.1, "high": 0.2, "stride": 1}}, "stride"),
        ({"lr": {"low": 0, "high": 0.2}}, "lr is 0"),
        ({"lr": {"low": 0.2, "high": 0.1}}, "low <= high"),
        ({"lr": {"low": 0.1, "high": 0.3, "step": 0.15}}, "step=0.15"),
        ({"batch_size": {"low": True, "high": 8}}, "batch_size is true"),
        ({"flip": {"low": False, "high": True}}, "numbers"),
        ({"flip": {"choices": []}}, "choices"),
        ({"teacher": {"choices": [None, "last"]}}, "last"),
        ({"dropout": {"choices": [[0.1, 0, 1.5]]}}, "dropout"),
        ({"dropout": {"choices": [[0, 0, 0]]}, "dropout.0": {"low": 0, "high": 0.5}}, "dropout"),
    ],
)
def test_space_names_the_mistake(tmp_path: Path, space: Any, word: str) -> None:
    with pytest.raises(UserError, match=rf"space\.yaml.*{word}"):
        read_space(write_space(tmp_path, space))


def test_space_refuses_what_no_search_can_change(tmp_path: Path) -> None:
    for option in ("dataset", "val_fraction", "seed", "test", "ckpt", "precision", "log_dir", "resume", "dropout.3"):
        with pytest.raises(UserError, match=f"cannot search {option} "):
            read_space(write_space(tmp_path, {option: {"choices": [1]}}))


def test_space_has_the_types_of_the_options(tmp_path: Path) -> None:
    content = {
        "lr": {"low": "1e-4", "high": 1, "log": True},  # PyYAML reads 1e-4 as text
        "shift": {"low": 0.0, "high": 4, "step": 2},
        "dropout.1": {"low": 0, "high": 0.5},
        "ema": {"choices": [0, "0.9"]},
        "dropout": {"choices": [[0, 0, 0.25]]},
    }
    lists = {"dropout": content.pop("dropout")}
    assert read_space(write_space(tmp_path, content)) == {
        "lr": FloatDistribution(1e-4, 1.0, log=True),
        "shift": IntDistribution(0, 4, step=2),
        "dropout.1": FloatDistribution(0.0, 0.5),
        "ema": CategoricalDistribution([0.0, 0.9]),
    }
    # A study's database holds no lists.
    assert read_space(write_space(tmp_path, lists)) == {"dropout": CategoricalDistribution(["[0.0, 0.0, 0.25]"])}


def test_changed_sets_places_and_lists() -> None:
    values = {"lr": 0.5, "dropout.1": 0.125, "flip": True}
    assert changed(TrainOptions(), values, "here") == TrainOptions(lr=0.5, dropout=(0.25, 0.125, 0.5), flip=True)
    assert changed(TrainOptions(), {"dropout": "[0.0, 0.0, 0.25]"}, "here").dropout == (0.0, 0.0, 0.25)
    with pytest.raises(UserError, match="cannot use here"):
        changed(TrainOptions(), {"mixup": 0.001}, "here")


@pytest.mark.parametrize(
    ("values", "rates"),
    [
        ({"model": "notebook"}, (0.5, 0.125, 0.0)),
        ({"model": "fine"}, (0.25, 0.125, 0.5)),  # a partial
        ({"model": "notebook", "dropout": (0.0, 0.0, 0.25)}, (0.0, 0.125, 0.25)),
    ],
)
def test_changed_keeps_the_models_other_dropout_rates(values: Any, rates: tuple[float, ...]) -> None:
    place = {"dropout.1": 0.125}
    assert changed(TrainOptions(**values), place, "here").dropout == rates
    # Also if the model itself is searched, whatever the order of the options.
    model = {"model": values["model"]}
    for chosen in (place | model, model | place):
        assert changed(TrainOptions(**{**values, "model": "advanced"}), chosen, "here").dropout == rates


def test_own_rates_names_a_model_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "own", lambda image_shape, num_classes: None)
    monkeypatch.setitem(MODELS, "undecided", lambda image_shape, num_classes, dropout=None: None)
    for model in ("own", "undecided", "timm:resnet18"):
        with pytest.raises(UserError, match=f"dropout of the model {model}"):
            own_rates(model)
    assert own_rates("notebook") == (0.5, 0.5, 0.0)


@pytest.mark.parametrize("content", [ALL_KINDS, EXAMPLE.read_text()], ids=["all kinds", "example"])
def test_suggestions_are_options_of_a_training(tmp_path: Path, content: str) -> None:
    space = read_space(write_space(tmp_path, content))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trials = []
    for _ in range(8):
        values = suggest(study.ask(), space)
        trials.append(values)
        options = changed(TrainOptions(), values, "trial")
        assert {name: value_of(options, name) for name in space} == values
    assert all(len({values[name] for values in trials}) > 1 for name in space)
