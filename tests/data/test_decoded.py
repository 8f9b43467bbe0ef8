"""The cache of decoded pictures never hides a change, and is made again if it is damaged."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fmnist_lightning.data import decoded
from fmnist_lightning.data.decoded import Decoded, decode, load_decoded
from fmnist_lightning.data.pictures import read_crop
from fmnist_lightning.data.source import DataError

SHAPE = (3, 8, 8)
COUNT = 40


def write(path: Path, shade: int) -> None:
    """A picture whose size in bytes doesn't depend on the shade."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), shade, np.uint8)).save(path, "BMP")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(COUNT):
        write(tmp_path / "ab"[index % 2] / f"{index}.bmp", index)
    return tmp_path


def names_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.bmp"))


def load(folder: Path) -> Decoded:
    return load_decoded(folder, names_in(folder), SHAPE, folder / "cache" / "all.safetensors")[0]


def same(first: Decoded, second: Decoded) -> bool:
    tensors = zip(first[:2], second[:2], strict=True)
    return all(torch.equal(*pair) for pair in tensors) and first.faults == second.faults


def is_cached(folder: Path) -> bool:
    """Whether a load decodes nothing; its result is right in any case."""
    with pytest.MonkeyPatch.context() as patch:
        called = []
        patch.setattr(decoded, "decode", lambda *arguments: called.append(1) or decode(*arguments))
        assert same(load(folder), decode(folder, names_in(folder), SHAPE))
    return not called


def test_decoding_in_parallel_keeps_order_and_pixels(folder: Path) -> None:
    (folder / "a" / "0.bmp").write_bytes(b"broken")
    (folder / "b" / "1.bmp").unlink()
    (folder / "b" / "1.bmp").mkdir()
    names = names_in(folder)
    found = decode(folder, names, SHAPE)
    readable = [name for name in names if name not in ("a/0.bmp", "b/1.bmp")]
    assert list(found.faults) == ["a/0.bmp", "b/1.bmp"]
    assert [names[position] for position in found.positions] == readable
    for image, name in zip(found.images, readable, strict=True):
        with (folder / name).open("rb") as file:
            assert torch.equal(image, torch.from_numpy(read_crop(file, SHAPE)))


def changed(folder: Path) -> None:
    write(folder / "a" / "0.bmp", 99)


def changed_with_time_restored(folder: Path) -> None:
    before = (folder / "a" / "0.bmp").stat()
    write(folder / "a" / "0.bmp", 99)
    os.utime(folder / "a" / "0.bmp", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (folder / "a" / "0.bmp").stat().st_mtime_ns == before.st_mtime_ns


def exchanged(folder: Path) -> None:
    (folder / "a" / "0.bmp").rename(folder / "x")
    (folder / "a" / "2.bmp").rename(folder / "a" / "0.bmp")
    (folder / "x").rename(folder / "a" / "2.bmp")


def replaced_by_a_link(folder: Path) -> None:
    (folder / "a" / "0.bmp").unlink()
    (folder / "a" / "0.bmp").symlink_to(folder / "b" / "1.bmp")


CHANGES: list[Callable[[Path], object]] = [
    changed,
    changed_with_time_restored,
    exchanged,
    replaced_by_a_link,
    lambda folder: write(folder / "a" / "new.bmp", 1),
    lambda folder: (folder / "a" / "0.bmp").unlink(),
    lambda folder: (folder / "a" / "0.bmp").rename(folder / "b" / "0.bmp"),
    lambda folder: (folder / "a").rename(folder / "c"),
    lambda folder: (folder / "a" / "0.bmp").write_bytes(b"broken"),
]


@pytest.mark.parametrize("change", CHANGES)
def test_cache_never_hides_a_change(folder: Path, change: Callable[[Path], object]) -> None:
    assert not is_cached(folder)
    assert is_cached(folder)  # the control
    change(folder)
    assert not is_cached(folder)
    assert is_cached(folder)


class SlowClock:
    """A file system whose times advance every two seconds, as FAT's do; `sleep` advances the clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1001.0
        self.changes: dict[str, float] = {}
        self.real_stat = Path.stat
        monkeypatch.setattr(decoded, "time", SimpleNamespace(time=lambda: self.now, sleep=self.sleep))
        monkeypatch.setattr(decoded.Path, "stat", lambda path, **_: self.stat(path))

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def write(self, path: Path, shade: int) -> None:
        write(path, shade)
        self.changes[str(path)] = self.now // 2 * 2

    def stat(self, path: Path) -> Any:
        found = self.real_stat(path)
        seconds = self.changes.get(str(path), 0)
        times = {"st_mtime_ns": int(seconds * 1e9), "st_ctime_ns": int(seconds * 1e9), "st_ctime": seconds}
        return SimpleNamespace(st_size=found.st_size, st_mode=found.st_mode, st_ino=found.st_ino, **times)


@pytest.mark.parametrize("tick", [2.0, -1.0])
def test_cache_sees_a_change_in_the_same_tick(folder: Path, monkeypatch: pytest.MonkeyPatch, tick: float) -> None:
    clock = SlowClock(monkeypatch)
    monkeypatch.setattr(decoded, "TICK_SECONDS", tick)
    path = folder / "a" / "0.bmp"
    clock.write(path, 10)
    before = load(folder)
    clock.write(path, 20)
    hidden = same(load(folder), before)
    assert hidden is (tick < 0)  # the control: without the wait, the change would be hidden


def test_cache_notices_exchanged_folders_of_one_moment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SlowClock(monkeypatch)  # all files have one time and one size
    for label, name in enumerate("ab"):
        for path in (folder / name).iterdir():
            path.unlink()
        write(folder / name / "0.bmp", label)
    assert load(folder).images[:, 0, 0, 0].tolist() == [0, 1]
    for source, target in ("ax", "ba", "xb"):
        (folder / source).rename(folder / target)
    assert load(folder).images[:, 0, 0, 0].tolist() == [1, 0]


def test_files_newer_than_the_clock_are_not_cached(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = SlowClock(monkeypatch)
    clock.changes[str(folder / "a" / "0.bmp")] = 5000
    load(folder)
    assert "the clock is behind" in capsys.readouterr().err
    assert not list(folder.rglob("*.safetensors"))


def test_unreadable_file_that_becomes_readable_is_read(folder: Path) -> None:
    """As after a repair of a folder's rights, which leaves the times of its files."""

    def closed(path: Path, shape: tuple[int, int, int]) -> Any:
        return "is closed" if path.name == "0.bmp" else original(path, shape)

    original = decoded.read
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoded, "read", closed)
        assert load(folder).faults == {"a/0.bmp": "is closed"}
        assert load(folder).faults == {"a/0.bmp": "is closed"}
    assert load(folder).faults == {}


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def of_another_format(path: Path) -> None:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(load_file(path), path, {**metadata, "key": "of a newer format"})


DAMAGES: list[Callable[[Path], object]] = [
    flip_a_byte,
    of_another_format,
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(path.read_bytes()[:-9]),
    lambda path: path.write_bytes(bytes(500)),
    lambda path: save_file(load_file(path), path),
    lambda path: path.unlink(),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_cache_is_made_again(folder: Path, damage: Callable[[Path], object]) -> None:
    load(folder)
    assert is_cached(folder)  # the control
    damage(folder / "cache" / "all.safetensors")
    assert not is_cached(folder)
    assert is_cached(folder)
    assert [path.name for path in (folder / "cache").iterdir()] == ["all.safetensors"]


def test_warnings_of_pillow_are_silent(folder: Path) -> None:
    Image.new("1", (10_000, 10_000)).save(folder / "a" / "0.bmp")
    for silent in (False, True):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if silent:
                assert "10,000 x 10,000" in load(folder).faults["a/0.bmp"]
            else:  # the control
                decode(folder, names_in(folder), SHAPE)
        assert bool(caught) != silent


def test_newer_format_number_makes_another_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(folder)
    monkeypatch.setattr(decoded, "FORMAT", decoded.FORMAT + 1)
    assert not is_cached(folder)


def test_files_that_change_while_they_are_read_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def harmed(*arguments: Any) -> Decoded:
        found = decode(*arguments)
        write(folder / "a" / "0.bmp", 99)
        return found

    monkeypatch.setattr(decoded, "decode", harmed)
    with pytest.raises(DataError, match=str(folder)):
        load(folder)
    assert not list(folder.rglob("*.safetensors"))
