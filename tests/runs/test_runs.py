"""Run folders get numbers of their own and are found again."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fmnist_lightning.errors import UserError
from fmnist_lightning.runs.folders import find_checkpoint, find_run, new_run, read_config, resume_command, write_config


def test_runs_count_on_from_the_highest_number(tmp_path: Path) -> None:
    assert new_run(tmp_path).name == "version_0"
    (tmp_path / "version_10").mkdir()
    (tmp_path / "version_notes").mkdir()
    assert new_run(tmp_path).name == "version_11"


def test_runs_started_at_once_get_a_folder_each(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        folders = list(pool.map(new_run, [tmp_path] * 64))
    assert len(set(folders)) == 64


def test_last_is_the_highest_number_not_the_last_in_the_alphabet(tmp_path: Path) -> None:
    for number in (2, 9, 10):
        run = tmp_path / f"version_{number}"
        run.mkdir()
        write_config(run, {"seed": number})
    assert read_config(find_run("last", tmp_path)) == {"seed": 10}


def test_a_config_comes_back_as_it_was_written(tmp_path: Path) -> None:
    options = {"lr": 1e-3, "patience": None, "data_dir": "a: b", "fast_dev_run": False}
    write_config(tmp_path, options)
    assert read_config(tmp_path) == options


def test_a_config_cannot_run_code(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: !!python/object/apply:os.system ['touch proof']")
    with pytest.raises(UserError, match="cannot read"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("run", "words"),
    [("last", "cannot find a run"), ("nowhere", "is not a folder"), (".", r"config\.yaml is missing")],
)
def test_a_missing_run_is_named_with_its_cure(tmp_path: Path, run: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        find_run(run if run == "last" else str(tmp_path / run), tmp_path)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"best\.ckpt: there is no such file"):
        find_checkpoint(tmp_path, "best")


def test_the_resume_command_survives_a_space_in_the_path() -> None:
    assert "'my logs/version_0'" in resume_command(Path("my logs/version_0"))
