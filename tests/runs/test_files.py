"""Files are written atomically; locks exclude each other; checkpoints are read without running code."""

import resource
from pathlib import Path

import pytest
import torch

from fmnist_lightning.errors import UserError, WriteError
from fmnist_lightning.runs import files
from fmnist_lightning.runs.checkpoints import FORMAT, read_checkpoint
from fmnist_lightning.runs.files import STAGED, atomic_write, locked, remove_staged, write_text


def test_atomic_write_keeps_the_old_file_if_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    write_text(path, "good")
    with pytest.raises(RuntimeError, match="power"), atomic_write(path) as file:  # noqa: PT012
        file.write(b"hal")
        raise RuntimeError("power went out")
    assert path.read_text() == "good"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["folder", "file/name", "missing/file/name", "n" * 300])
def test_write_that_the_system_refuses_names_its_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "missing").symlink_to(tmp_path)
    with pytest.raises(WriteError) as refused:
        write_text(tmp_path / name, "text")
    assert refused.value.path in (tmp_path / name, (tmp_path / name).parent)
    assert "name another" in str(refused.value)


@pytest.mark.parametrize("when", ["written", "flushed"])
def test_full_disk_names_the_file_and_keeps_the_old_one(tmp_path: Path, when: str) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(WriteError, match=r"file: File too large \(free space, or name another\)"):
            write_text(path, "x" * {"written": 100_000, "flushed": 2000}[when])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "old"


def test_error_of_a_file_that_is_read_is_no_write_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "joined"):
        (tmp_path / "part").open()


def test_write_text_flushes_file_then_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, plain, renamed = tmp_path / "file", tmp_path / "plain", []
    monkeypatch.setattr(files.os, "fsync", lambda _: renamed.append(path.exists()))
    write_text(path, "text")
    assert renamed == [False, True]
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode


def test_remove_staged_leaves_other_files(tmp_path: Path) -> None:
    names = (f".best.yaml.abc{STAGED}", f".config.yaml.abc{STAGED}", "best.yaml")
    for name in names:
        (tmp_path / name).touch()
    remove_staged(tmp_path, "best.yaml")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])


def test_locked_excludes_a_second_holder(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with locked(path, "taken"), pytest.raises(UserError, match="taken"), locked(path, "taken"):
        pass
    with locked(path, "taken"):  # the control
        pass


class Payload:
    """A pickle that writes a file when it is read."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return (Path.write_text, (self.target, "code ran"))


def test_read_checkpoint_runs_no_code(tmp_path: Path) -> None:
    target = tmp_path / "proof"
    torch.save({"state_dict": {}, "hyper_parameters": Payload(target)}, tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match="as a checkpoint"):
        read_checkpoint(tmp_path / "evil.ckpt")
    assert not target.exists()
    torch.load(tmp_path / "evil.ckpt", weights_only=False)  # the negative control
    assert target.exists()


def test_read_checkpoint_names_an_unusable_file(tmp_path: Path) -> None:
    path = tmp_path / "best.ckpt"
    with pytest.raises(UserError, match=str(path)):
        read_checkpoint(path)
    for damaged in (b"", b"PK\x03\x04 and then nothing", b"text"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=str(path)):
            read_checkpoint(path)
    newer = {"state_dict": {}, "hyper_parameters": {}, "format": FORMAT + 1}
    for content, words in (({"weights": 3}, "no checkpoint of this project"), (newer, f"format is {FORMAT + 1}")):
        torch.save(content, path)
        with pytest.raises(UserError, match=words):
            read_checkpoint(path)
