"""Run folders get numbers of their own and are found again."""

import shlex
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fmnist_lightning.cli.parser import parse
from fmnist_lightning.errors import UserError
from fmnist_lightning.report.results import read_metrics
from fmnist_lightning.runs import folders
from fmnist_lightning.runs.folders import (
    find_checkpoint,
    find_run,
    lock_run,
    new_run,
    read_config,
    write_config,
)
from fmnist_lightning.runs.options import TestOptions


def test_new_run_gives_each_caller_the_next_number(tmp_path: Path) -> None:
    assert new_run(tmp_path).name == "version_0"
    (tmp_path / "version_10").mkdir()
    (tmp_path / "version_notes").mkdir()
    with ThreadPoolExecutor(16) as pool:
        folders = list(pool.map(new_run, [tmp_path] * 64))
    assert {folder.name for folder in folders} == {f"version_{number}" for number in range(11, 75)}


@pytest.mark.parametrize("name", ["s3://bucket/logs", "file:///logs", "file:/logs", "gs://x", "data:x", "hdfs+x:/y"])
def test_new_run_refuses_a_url(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--log_dir"):
        new_run(Path(name))
    assert not list(tmp_path.iterdir())
    assert new_run(Path("lr:1/a::b")).is_dir()  # the control


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


def test_find_run_names_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "logs" / "version_3").mkdir(parents=True)
    for run, message in (
        ("last", f"there is no {tmp_path}/lightning_logs .*train first"),
        ("logs/version_8", f"there is no {tmp_path}/logs/version_8; did you mean {tmp_path}/logs/version_3?"),
        ("logs/version_3", f"{tmp_path}/logs/version_3 .*config.yaml"),
        ("logs", f"{tmp_path}/logs .*version_3"),
    ):
        with pytest.raises(UserError, match=message):
            find_run(run, Path("lightning_logs"))
    with pytest.raises(UserError, match=f"{tmp_path}/logs holds none .*train first"):
        find_run("last", Path("logs"))


def test_find_checkpoint_says_whether_the_run_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path("logs", "version_0")
    write_config(run, {"ckpt": "best"})
    for name, ckpt in (("best.ckpt", None), ("last.ckpt", "last"), ("lost.ckpt", "lost.ckpt")):
        with pytest.raises(UserError, match=f"{tmp_path}/.*{name}"):
            find_checkpoint(run, ckpt)
    with pytest.raises(UserError, match="--resume logs/version_0"):
        find_checkpoint(run)
    with lock_run(run):
        for name, find in (("checkpoint", find_checkpoint), ("metrics", read_metrics)):
            with pytest.raises(UserError, match=f"{name}.*still training"):
                find(run)
    with pytest.raises(UserError, match=r"metrics.json.*test.* --run logs/version_0"):
        read_metrics(run)
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(UserError, match="--ckpt last"):
        find_checkpoint(run)
    assert find_checkpoint(run, "last").is_file()


@pytest.mark.parametrize("name", ["läufe #1 100% [a] ?x&y='q'", "-x", "~", "~root", "a\nb", "a;b|c`d`"])
def test_printed_path_comes_back_from_a_shell(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And from the parser, which takes no path for an option or for a home."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    words = shlex.split(folders.testing_command(Path(name)))
    assert Path(parse(TestOptions, words[words.index("--run") :]).run).resolve() == tmp_path / name
