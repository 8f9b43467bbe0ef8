"""A record is a finished run of just its recipe, from a clean commit; what all records come to is held here too."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fmnist_lightning.errors import UserError
from fmnist_lightning.metrics import METRIC_NAMES
from fmnist_lightning.models.pretrained import load_pretrained, weights_digest
from fmnist_lightning.report.findings import NEEDED
from fmnist_lightning.runs.folders import write_config
from tools.records import add_record, read_records
from tools.results_tables import results_table

ROOT = Path(__file__).parents[2]


def test_each_record_is_a_whole_test_set_of_a_clean_commit() -> None:
    records = [record for runs in read_records(ROOT / "results").values() for record in runs]
    assert records
    for record in records:
        assert record["dataset"] == "fashion_mnist"
        assert record["n"] == 10000
        assert record["git"]["dirty"] is False
        assert len(record["git"]["commit"]) == 40


def test_the_seed_recipe_reproduces_the_original_on_five_seeds() -> None:
    runs = read_records(ROOT / "results")["seed"]
    assert [run["seed"] for run in runs] == [0, 1, 2, 3, 4]
    assert np.mean([run["accuracy"] for run in runs]) >= 0.9139
    assert np.mean([run["auroc"] for run in runs]) >= 0.9948


def test_the_distilled_recipe_was_taught_by_the_net_that_is_packaged_now() -> None:
    packaged = weights_digest(load_pretrained("packaged").net)
    runs = read_records(ROOT / "results")["tuned_distilled"]
    assert [run["seed"] for run in runs] == [0, 1, 2, 3, 4]
    assert {run["teacher"]["sha256"] for run in runs} == {packaged}


def test_the_fast_recipe_reaches_the_originals_accuracy_in_half_a_minute_on_ten_seeds() -> None:
    runs = read_records(ROOT / "results")["fast"]
    assert [run["seed"] for run in runs] == list(range(10))
    assert np.mean([run["accuracy"] for run in runs]) >= 0.9139
    assert np.mean([run["training_seconds"] for run in runs]) <= 30


def test_bf16_costs_no_accuracy_on_five_seeds() -> None:
    """Within two standard errors of a difference of two means."""
    records = read_records(ROOT / "results")
    means, errors = [], []
    for recipe, arithmetic in (("seed", "32-true"), ("seed_bf16", "bf16-mixed")):
        assert {run["arithmetic"] for run in records[recipe]} == {arithmetic}
        accuracies = [run["accuracy"] for run in records[recipe]]
        assert len(accuracies) == 5
        means.append(np.mean(accuracies))
        errors.append(np.var(accuracies, ddof=1) / 5)
    assert means[1] >= means[0] - 2 * sum(errors) ** 0.5


RECORD: dict[str, Any] = {
    **dict.fromkeys(NEEDED, 0),
    **dict.fromkeys(METRIC_NAMES, 0.5),
    "dataset": "fashion_mnist",
    "n": 10000,
    "checkpoint": "best",
    "epochs": 3,
    "seed": 7,
    "arithmetic": "32-true",
    "git": {"commit": "a" * 40, "dirty": False},
    "tested_with": {"git": {"commit": "a" * 40, "dirty": False}},
}


def add(folder: Path, more: str = "", options: dict[str, Any] | None = None, **changes: object) -> Path:
    """Make a run of the recipe `tiny`, whose options and metrics have these changes, and keep it as a record."""
    run, recipe = folder / "run", folder / "tiny.yaml"
    run.mkdir(exist_ok=True)
    recipe.write_text(f"lr: 0.002\nmax_epochs: 3\n{more}")
    resolved = {"precision": "32-true", **yaml.safe_load(recipe.read_text())}
    write_config(run, {**resolved, "seed": 7, **(options or {})})
    (run / "metrics.json").write_text(json.dumps(RECORD | changes))
    return add_record(run, recipe, folder / "results")


def test_a_run_becomes_a_record_and_a_row(tmp_path: Path) -> None:
    assert add(tmp_path) == tmp_path / "results" / "tiny" / "seed_7.json"
    assert "| `recipes/tiny.yaml` | 50.00 |" in results_table(read_records(tmp_path / "results"))


def test_mirror_images_averaged_have_a_row_of_their_own(tmp_path: Path) -> None:
    assert add(tmp_path, tta=True) == tmp_path / "results" / "tiny_tta" / "seed_7.json"
    assert "| `recipes/tiny.yaml`, mirror images averaged | 50.00 |" in results_table(
        read_records(tmp_path / "results")
    )


def test_a_row_says_who_taught(tmp_path: Path) -> None:
    add(tmp_path, "teacher: packaged\n", teacher={"model": "compact", "share": 0.9})
    assert "| `recipes/tiny.yaml`, taught by `compact` | 50.00 |" in results_table(read_records(tmp_path / "results"))


def test_records_of_a_recipe_have_one_teacher(tmp_path: Path) -> None:
    def taught(seed: int, digest: str) -> Path:
        teacher = {"model": "fine", "sha256": digest, "share": 0.9, "temperature": 4.0}
        return add(tmp_path, "teacher: packaged\n", seed=seed, teacher=teacher)

    first, second = taught(0, "a" * 64), taught(1, "a" * 64)
    with pytest.raises(UserError, match=rf"by fine b{{12}}.*, and {second} by fine a{{12}}\.\.\."):
        taught(0, "b" * 64)
    assert json.loads(first.read_text())["teacher"]["sha256"] == "a" * 64
    second.unlink()
    taught(0, "b" * 64)  # in place of the only record
    assert json.loads(first.read_text())["teacher"]["sha256"] == "b" * 64


def test_a_recipe_without_validation_is_recorded_by_its_last_checkpoint(tmp_path: Path) -> None:
    assert add(tmp_path, "ckpt: last\n", checkpoint="last").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dataset": "drawn"}, "dataset is drawn"),
        ({"n": 200}, "n is 200"),
        ({"checkpoint": "last"}, "checkpoint is last"),
        ({"git": {"commit": "a" * 40, "dirty": True}}, "trained it was no clean commit"),
        ({"git": {"commit": None, "dirty": None}}, "trained it was no clean commit"),
        ({"tested_with": {"git": {"commit": "a" * 40, "dirty": True}}}, "tested it was no clean commit"),
        ({"tested_with": {"git": {"commit": None, "dirty": None}}}, "tested it was no clean commit"),
        ({"options": {"precision": "bf16-mixed"}}, "arithmetic is 32-true, not bf16-mixed"),
        ({"earlier_environments": [{"device": "another"}]}, "different code or machines"),
        ({"epochs": 2}, "epochs is 2, not 3"),
        ({"options": {"lr": 0.01}}, "lr was 0.01, not 0.002"),
        ({"options": {"teacher": "packaged"}}, "teacher was packaged, not None"),
        ({"more": "mixup: 0.2\n", "options": {"mixup": 0.0}}, "mixup was 0.0, not 0.2"),
        ({"more": "precision: 32-true\n", "options": {"precision": "bf16-mixed"}}, "precision was bf16-mixed, not 32"),
    ],
)
def test_a_run_of_something_else_is_no_record(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        add(tmp_path, **changes)
    assert not (tmp_path / "results").exists()


def test_a_run_of_before_an_option_was_there_is_a_record_of_a_recipe_without_it(tmp_path: Path) -> None:
    assert add(tmp_path, "mixup: 0.0\n", options={"data_dir": "elsewhere"}).exists()
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("mixup: 0.0\n", ""))
    assert add_record(tmp_path / "run", tmp_path / "tiny.yaml", tmp_path / "again").exists()


def test_a_run_that_patience_ended_is_a_record(tmp_path: Path) -> None:
    assert add(tmp_path, "patience: 1\n", epochs=2).exists()


def test_a_run_can_be_tested_by_a_later_commit(tmp_path: Path) -> None:
    assert add(tmp_path, tested_with={"git": {"commit": "b" * 40, "dirty": False}}).exists()


def test_a_recipe_that_is_not_there_is_named(tmp_path: Path) -> None:
    add(tmp_path)
    with pytest.raises(UserError, match=f"--recipe: {tmp_path / 'nope.yaml'} can't be read"):
        add_record(tmp_path / "run", tmp_path / "nope.yaml", tmp_path / "results")


def test_what_is_no_tested_run_is_no_record(tmp_path: Path) -> None:
    add(tmp_path)
    metrics = tmp_path / "run" / "metrics.json"
    for content, words in (("{", "can't be read"), ('{"dataset": "drawn"}', "is not what the test loop writes")):
        metrics.write_text(content)
        with pytest.raises(UserError, match=f"{metrics} {words}.*; test the run anew"):
            add_record(tmp_path / "run", tmp_path / "tiny.yaml", tmp_path / "results")
    metrics.unlink()
    with pytest.raises(UserError, match=f"{metrics} does not exist; test the run anew"):
        add_record(tmp_path / "run", tmp_path / "tiny.yaml", tmp_path / "results")
    for no_run in (tmp_path, tmp_path / "gone"):
        with pytest.raises(UserError, match=f"{no_run} (holds no run|is not a folder)"):
            add_record(no_run, tmp_path / "tiny.yaml", tmp_path / "results")


@pytest.mark.parametrize(("content", "words"), [("{", "can't be read"), ("{}", "is not what the test loop writes")])
def test_a_damaged_record_is_named(tmp_path: Path, content: str, words: str) -> None:
    add(tmp_path).write_text(content)
    with pytest.raises(UserError, match=f"{tmp_path / 'results' / 'tiny' / 'seed_7.json'} {words}.*git restore"):
        read_records(tmp_path / "results")


def test_a_folder_without_records_is_no_recipe(tmp_path: Path) -> None:
    add(tmp_path)
    (tmp_path / "results" / "empty").mkdir()
    (tmp_path / "results" / "goals.yaml").touch()
    assert list(read_records(tmp_path / "results")) == ["tiny"]
