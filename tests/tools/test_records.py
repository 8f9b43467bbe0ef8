"""A record is a finished run of exactly its recipe, from a clean commit; the claims about all records are here too."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fmnist_lightning.errors import UserError
from fmnist_lightning.metrics import METRIC_NAMES
from fmnist_lightning.models.pretrained import load_pretrained, weights_digest
from fmnist_lightning.runs.folders import write_config
from fmnist_lightning.runs.options import TrainOptions, as_yaml
from tools.observe import ROOT
from tools.records import RECORDED, add_record, read_records
from tools.results_tables import results_table


def test_records_are_full_tests_from_clean_commits() -> None:
    for record in itertools.chain(*read_records(ROOT / "results").values()):
        assert (record["dataset"], record["n"], record["git"]["dirty"]) == ("fashion_mnist", 10000, False)
        assert len(record["git"]["commit"]) == 40


@pytest.mark.parametrize(("recipe", "seeds", "seconds"), [("seed", 5, None), ("fast", 10, 30)])
def test_recipe_reproduces_the_original(recipe: str, seeds: int, seconds: float | None) -> None:
    runs = read_records(ROOT / "results")[recipe]
    assert [run["seed"] for run in runs] == list(range(seeds))
    assert np.mean([run["accuracy"] for run in runs]) >= 0.9139
    if seconds:
        assert np.mean([run["training_seconds"] for run in runs]) <= seconds
    else:
        assert np.mean([run["auroc"] for run in runs]) >= 0.9948


def test_distilled_recipe_had_the_packaged_teacher() -> None:
    runs = read_records(ROOT / "results")["tuned_distilled"]
    assert [run["seed"] for run in runs] == [0, 1, 2, 3, 4]
    assert {run["teacher"]["sha256"] for run in runs} == {weights_digest(load_pretrained("packaged").net)}


def test_bf16_costs_no_accuracy_on_five_seeds() -> None:
    """Within two standard errors of a difference of two means."""
    records = read_records(ROOT / "results")
    means, errors = [], []
    for recipe, precision in (("seed", "32-true"), ("seed_bf16", "bf16-mixed")):
        assert {run["arithmetic"] for run in records[recipe]} == {precision}
        accuracies = [run["accuracy"] for run in records[recipe]]
        assert len(accuracies) == 5
        means.append(np.mean(accuracies))
        errors.append(np.var(accuracies, ddof=1) / 5)
    assert means[1] >= means[0] - 2 * sum(errors) ** 0.5


GIT, LATER = {"commit": "a" * 40, "dirty": False}, {"commit": "b" * 40, "dirty": False}
RECORD: dict[str, Any] = {
    **dict.fromkeys(RECORDED, 0),
    **dict.fromkeys(METRIC_NAMES, 0.5),
    "dataset": "fashion_mnist",
    "n": 10000,
    "checkpoint": "best",
    "epochs": 3,
    "seed": 7,
    "arithmetic": "32-true",
    "git": GIT,
    "tested_with": {"git": GIT},
}


def add(folder: Path, more: str = "", options: dict[str, Any] | None = None, **changes: object) -> Path:
    """Make a run of the recipe `tiny`, change its options and metrics, and keep it as a record."""
    run, recipe = folder / "run", folder / "tiny.yaml"
    run.mkdir(exist_ok=True)
    recipe.write_text(f"lr: 0.002\nmax_epochs: 3\n{more}")
    resolved = {"precision": "32-true", **yaml.safe_load(recipe.read_text()), "seed": 7, **(options or {})}
    write_config(run, {**as_yaml(TrainOptions()), **resolved})
    (run / "metrics.json").write_text(json.dumps(RECORD | changes))
    return add_record(run, recipe, folder / "results")


@pytest.mark.parametrize(
    ("more", "changes", "folder", "row"),
    [
        ("", {}, "tiny", "`recipes/tiny.yaml`"),
        ("ckpt: last\n", {"checkpoint": "last"}, "tiny", "`recipes/tiny.yaml`"),  # a recipe without validation
        ("patience: 1\n", {"epochs": 2}, "tiny", "`recipes/tiny.yaml`"),
        ("", {"tested_with": {"git": LATER}}, "tiny", "`recipes/tiny.yaml`"),
        ("", {"tta": True}, "tiny_tta", "`recipes/tiny.yaml`, test-time augmentation"),
        ("teacher: packaged\n", {"teacher": {"model": "fine"}}, "tiny", "`recipes/tiny.yaml`, distilled from `fine`"),
    ],
)
def test_run_becomes_a_record_and_a_row(
    tmp_path: Path, more: str, changes: dict[str, Any], folder: str, row: str
) -> None:
    assert add(tmp_path, more, **changes) == tmp_path / "results" / folder / "seed_7.json"
    assert f"| {row} | 50.00 |" in results_table(read_records(tmp_path / "results"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dataset": "drawn"}, "dataset is drawn"),
        ({"n": 200}, "n is 200"),
        ({"checkpoint": "last"}, "checkpoint is last"),
        ({"git": {**GIT, "dirty": True}}, "not trained from a clean commit"),
        ({"git": {"commit": None, "dirty": None}}, "not trained from a clean commit"),
        ({"tested_with": {"git": {**GIT, "dirty": True}}}, "not tested from a clean commit"),
        ({"options": {"precision": "bf16-mixed"}}, "arithmetic is 32-true, not bf16-mixed"),
        ({"earlier_environments": [{"device": "another"}]}, "different code or machines"),
        ({"epochs": 2}, "epochs is 2, not 3"),
        ({"options": {"lr": 0.01}}, "lr is 0.01, not 0.002"),
        ({"options": {"teacher": "packaged"}}, "teacher is packaged, not None"),
        ({"more": "mixup: 0.2\n", "options": {"mixup": 0.0}}, "mixup is 0.0, not 0.2"),
        ({"more": "precision: 32-true\n", "options": {"precision": "bf16-mixed"}}, "precision is bf16-mixed, not 32"),
    ],
)
def test_add_record_refuses(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        add(tmp_path, **changes)
    assert not (tmp_path / "results").exists()


def test_records_of_a_recipe_have_one_teacher(tmp_path: Path) -> None:
    def distilled(seed: int, digest: str) -> Path:
        teacher = {"model": "fine", "sha256": digest, "share": 0.9, "temperature": 4.0}
        return add(tmp_path, "teacher: packaged\n", seed=seed, teacher=teacher)

    first, second = distilled(0, "a" * 64), distilled(1, "a" * 64)
    with pytest.raises(UserError, match=str(second)):
        distilled(0, "b" * 64)
    assert json.loads(first.read_text())["teacher"]["sha256"] == "a" * 64
    second.unlink()
    distilled(0, "b" * 64)  # replaces the only record


@pytest.mark.parametrize("content", ["{", "{}"])
def test_read_records_names_a_damaged_one(tmp_path: Path, content: str) -> None:
    record = add(tmp_path)
    (tmp_path / "results" / "empty").mkdir()  # no recipe
    assert list(read_records(tmp_path / "results")) == ["tiny"]
    record.write_text(content)
    with pytest.raises(UserError, match=rf"{record}.*git restore"):
        read_records(tmp_path / "results")
