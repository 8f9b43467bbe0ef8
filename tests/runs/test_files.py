"""A file is whole or not there."""

from pathlib import Path

import pytest
import torch

from fmnist_lightning.errors import UserError
from fmnist_lightning.runs import files
from fmnist_lightning.runs.checkpoints import FORMAT, read_checkpoint
from fmnist_lightning.runs.files import atomic_write, write_text
from fmnist_lightning.training.resume import AtomicCheckpointIO


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    write_text(path, "good")

    def interrupted_write() -> None:
        with atomic_write(path) as file:
            file.write(b"hal")
            raise RuntimeError("power went out")

    with pytest.raises(RuntimeError, match="power"):
        interrupted_write()
    assert path.read_text() == "good"
    assert list(tmp_path.iterdir()) == [path]


def test_the_content_is_flushed_before_the_name_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, events = tmp_path / "file", []
    monkeypatch.setattr(files.os, "fsync", lambda _: events.append(("flush", path.exists())))
    write_text(path, "text")
    assert events == [("flush", False), ("flush", True)]


def test_a_file_is_as_readable_as_any_other(tmp_path: Path) -> None:
    write_text(tmp_path / "ours", "text")
    (tmp_path / "plain").write_text("text")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_failed_save_keeps_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    good = {"state_dict": {}, "hyper_parameters": {}}
    AtomicCheckpointIO().save_checkpoint(good, path)

    def disk_full(_: object, file: object) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", disk_full)
    with pytest.raises(OSError, match="No space left"):
        AtomicCheckpointIO().save_checkpoint({"state_dict": {"new": 1}}, path)
    assert read_checkpoint(path) == {**good, "format": FORMAT}
    assert list(tmp_path.iterdir()) == [path]


class Payload:
    """A pickle that would write a file when it is read."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return (Path.write_text, (self.target, "code ran"))


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    target = tmp_path / "proof"
    torch.save({"state_dict": {}, "hyper_parameters": Payload(target)}, tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match="as a checkpoint"):
        read_checkpoint(tmp_path / "evil.ckpt")
    assert not target.exists()
    torch.load(tmp_path / "evil.ckpt", weights_only=False)  # the negative control: the payload does work
    assert target.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "No such file"), (b"", "damaged"), (b"PK\x03\x04 and then nothing", "damaged"), (b"text", "damaged")],
)
def test_an_unreadable_checkpoint_is_named(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "best.ckpt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)


def test_a_file_of_something_else_is_no_checkpoint(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="no checkpoint of this project"):
        read_checkpoint(tmp_path / "other.pt")
