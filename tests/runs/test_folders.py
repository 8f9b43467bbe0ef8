"""Run folders get numbers of their own and are found again."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fmnist_lightning.errors import UserError
from fmnist_lightning.runs.folders import find_checkpoint, find_run, new_run, read_config, resume_command, write_config


def test_new_run_gives_each_caller_the_next_number(tmp_path: Path) -> None:
    assert new_run(tmp_path).name == "version_0"
    (tmp_path / "version_10").mkdir()
    (tmp_path / "version_notes").mkdir()
    with ThreadPoolExecutor(16) as pool:
        folders = list(pool.map(new_run, [tmp_path] * 64))
    assert {folder.name for folder in folders} == {f"version_{number}" for number in range(11, 75)}


def test_find_run_last_has_the_highest_number(tmp_path: Path) -> None:
    for number in (2, 9, 10):
        run = tmp_path / f"version_{number}"
        run.mkdir()
        write_config(run, {"seed": number})
    assert read_config(find_run("last", tmp_path)) == {"seed": 10}


def test_read_config_runs_no_code(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    (tmp_path / "config.yaml").write_text(f"seed: !!python/object/apply:os.system ['touch {proof}']")
    with pytest.raises(UserError, match=r"config\.yaml"):
        read_config(tmp_path)
    assert not proof.exists()


def test_find_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train first"):
        find_run("last", tmp_path)
    with pytest.raises(UserError, match=r"config\.yaml"):
        find_run(str(tmp_path), tmp_path)
    with pytest.raises(UserError, match=r"best\.ckpt"):
        find_checkpoint(tmp_path, "best")


def test_resume_command_quotes_a_space() -> None:
    assert "'my logs/version_0'" in resume_command(Path("my logs/version_0"))
