"""Names become files, then images, in order, a few at a time; a fault does not stop the rest."""

import io
import os
import struct
import threading
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import pack
from PIL import Image

from fmnist_lightning.data.sets.fashion_mnist import FASHION_MNIST
from fmnist_lightning.data.source import DataInfo
from fmnist_lightning.predict import inputs
from fmnist_lightning.predict.inputs import Fault, Picture, Result, expand_all
from fmnist_lightning.predict.pictures import Gray

IMAGES = np.random.default_rng(0).integers(0, 100, (3, 28, 28), np.uint8)  # no corner is bright


def read_all(names: Iterable[str | Fault], **options: Any) -> Iterator[Result]:
    return inputs.read_all(names, FASHION_MNIST, **options)


def png(index: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(IMAGES[index]).save(file, "PNG")
    return file.getvalue()


def idx(images: Gray = IMAGES, *, count: int | None = None, magic: int = 0x803) -> bytes:
    """An IDX file; another `count` makes its header lie."""
    height, width = images.shape[1:]
    return struct.pack(">4I", magic, len(images) if count is None else count, height, width) + images.tobytes()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, empty, so that names are short."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def assert_reads(results: Iterable[Result], expected: list[tuple[str, int]]) -> None:
    """Each result is a picture of that name and that of IMAGES."""
    for result, (name, index) in zip(results, expected, strict=True):
        assert (result.name, type(result)) == (name, Picture)
        assert (result.image == IMAGES[index]).all(), name


def fault_of(name: str) -> str:
    """The reason why a file gives nothing but one fault."""
    [fault] = read_all([name])
    assert fault == Fault(name, fault.reason)
    return fault.reason


def test_expand_all_keeps_plain_names() -> None:
    touch("boot.png", "notes.txt", "a[1].png", "a1.png")
    names = ["-", "boot.png", "gone.png", "gone", "notes.txt", "a[1].png"]
    assert expand_all(names) == names
    Path("a[1].png").unlink()
    assert expand_all(["a[1].png"]) == ["a1.png"]  # else it is a pattern


def test_expand_all_sorts_a_folder_and_leaves_out_hidden_files() -> None:
    touch("shop/b.JPG", "shop/a.png", "shop/.a.png", "shop/notes.txt", "shop/.cache/c.png", "shop/z/y/d.webp")
    touch(*(f"shop/{name}" for name in ("c/e.tif", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")))
    touch("shop/t10k-images.idx3-ubyte.gz")
    expected = ["a.png", "b.JPG", "t10k-images-idx3-ubyte", "t10k-images.idx3-ubyte.gz", "c/e.tif", "z/y/d.webp"]
    assert expand_all(["shop"]) == [f"shop/{name}" for name in expected]
    touch("empty/notes.txt", "empty/.a.png")
    [fault] = expand_all(["empty"])
    assert "PNG, JPEG," in fault.reason


def test_unreadable_folder_is_a_fault_among_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> Iterator[os.DirEntry[str]]:
        if path == "shop/b":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    touch("shop/a/1.png", "shop/b/2.png", "shop/c/3.png")
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", refuse)
    *found, fault = expand_all(["shop"])
    assert found == ["shop/a/1.png", "shop/c/3.png"]
    assert fault == Fault("shop/b", "can't be opened (Permission denied)")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("shop/*.png", ["shop/a.png", "shop/b.png"]),
        ("shop/[ab].*", ["shop/a.png", "shop/b.png"]),
        ("s*", ["shop/a.png", "shop/b.png", "shop/c/d.png", "shop/c/e/f.png"]),  # a folder that matches
        ("**/*.png", ["shop/a.png", "shop/b.png", "shop/c/d.png", "shop/c/e/f.png"]),
        ("shop/**", ["shop/a.png", "shop/b.png", "shop/c/d.png", "shop/c/e/f.png"]),  # each once
        ("shop/c?", [Fault("shop/c?", "matches no file")]),
    ],
)
def test_expand_all_sorts_the_matches_of_a_pattern(pattern: str, expected: list[str | Fault]) -> None:
    touch("shop/b.png", "shop/a.png", "shop/c/e/f.png", "shop/c/d.png", "shop/.hidden.png")
    assert expand_all([pattern]) == expected


@pytest.mark.parametrize("output", ["w/out", "link", "./w/new/../out/"])
@pytest.mark.parametrize("pattern", ["w/*", "w/**", "w/o?t", "**/*.json", "w/out/.*", "link/*"])
def test_patterns_do_not_match_the_output(folder: Path, pattern: str, output: str) -> None:
    """Else a command that resumes would find other files than before."""
    touch("w/a.png", "w/new/b.png", "w/out/part.json", "w/out/c.png", "w/out/.lock")
    Path("link").symlink_to("w/out")
    found = expand_all([pattern, f"{folder}/{pattern}"], output)
    assert not [name for name in found if isinstance(name, str) and ("out" in name or "link" in name)]
    unlimited = [name for name in expand_all([pattern]) if isinstance(name, str)]
    assert [name for name in unlimited if "out" in name or "link" in name]
    assert expand_all(["w/out/c.png"], output) == ["w/out/c.png"]  # named, so it is read


def test_impossible_names_are_faults() -> None:
    for name, reason in (("x" * 300, "File name too long"), ("a\0.png", "null byte")):
        assert expand_all([name]) == [name]
        assert reason in fault_of(name)


def test_pipe_is_read_if_it_is_named() -> None:
    touch("shop/a.png")
    os.mkfifo("shop/b.png")
    assert expand_all(["shop", "shop/*.png"]) == ["shop/a.png", "shop/a.png"]
    assert expand_all(["shop/b*", "shop/b.png"]) == [Fault("shop/b*", "matches no file"), "shop/b.png"]
    for content, name in ((png(1), "shop/b.png"), (idx(IMAGES[1:2]), "shop/b.png[0]")):
        writer = threading.Thread(target=Path("shop/b.png").write_bytes, args=(content,))
        writer.start()
        assert_reads(read_all(["shop/b.png"]), [(name, 1)])
        writer.join()


@pytest.mark.parametrize(
    ("content", "name"), [(png(1), "-"), (idx(IMAGES[1:2]), "-[0]"), (pack(idx(IMAGES[1:2])), "-[0]")]
)
def test_standard_input_is_read_in_its_turn(monkeypatch: pytest.MonkeyPatch, content: bytes, name: str) -> None:
    Path("a.png").write_bytes(png(0))
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    assert_reads(read_all(["a.png", "-", "a.png"]), [("a.png", 0), (name, 1), ("a.png", 0)])


def test_standard_input_empty_closed_or_endless_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "MAX_STREAM", 1000)
    for stdin in (SimpleNamespace(buffer=io.BytesIO()), None):  # None after `<&-`
        monkeypatch.setattr("sys.stdin", stdin)
        assert fault_of("-") == "is empty"
    with Path("/dev/zero").open("rb") as endless:
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=endless))
        assert "longer than 1,000 bytes" in fault_of("-")


@pytest.mark.parametrize("packing", [bytes, pack])
@pytest.mark.parametrize("name", ["t10k-images-idx3-ubyte", "images"])
def test_idx_images_are_not_inverted(name: str, packing: Callable[[bytes], bytes]) -> None:
    Path("a.png").write_bytes(png(0))
    Path(name).write_bytes(packing(idx(255 - IMAGES)))  # with bright corners
    for invert, expected in (("auto", IMAGES[0]), ("always", 255 - IMAGES[0])):
        picture, *images = read_all(["a.png", name], invert=invert)
        assert (picture.image == expected).all()
        assert [image.name for image in images] == [f"{name}[0]", f"{name}[1]", f"{name}[2]"]
        assert (np.concatenate([image.image for image in images]) == 255 - IMAGES).all()


@pytest.mark.parametrize(
    ("content", "images", "reason"),
    [
        (idx()[:-1], 0, "2,367 bytes"),
        (idx(count=2**32 - 1), 0, "take 3,367,254,359,296"),
        (idx()[:15], 0, "header is 00 00 08 03"),
        (idx(magic=0x801), 0, "header is 00 00 08 01"),
        (idx(IMAGES[:, :14]), 0, "14 x 28"),
        (idx(IMAGES[:0]), 0, "0 images"),
        (pack(png(0)), 0, "header is 89 50 4e 47"),
        (pack(idx())[:5], 0, "truncated or damaged"),
        (pack(idx(count=10**9)), 0, "more than 200 times"),
        (pack(idx()[:-1]), 2, "image 2 of 3"),
        (pack(idx() + b"\0"), 3, "more than the 3 images"),
        (pack(idx()) + b"more", 3, "may be wrong"),
        (pack(idx())[:1200], 1, "may be wrong"),
        (pack(idx())[:-8] + bytes(8), 3, "CRC check failed"),
    ],
)
def test_damaged_idx_file_gives_whole_images_and_a_fault(content: bytes, images: int, reason: str) -> None:
    Path("x-images-idx3-ubyte").write_bytes(content)
    *found, fault = read_all(["x-images-idx3-ubyte"])
    assert_reads(found, [(f"x-images-idx3-ubyte[{index}]", index) for index in range(images)])
    assert (fault.name, reason in fault.reason) == ("x-images-idx3-ubyte", True), fault


def test_read_all_reports_faults_in_order() -> None:
    for name, content in (("a", png(0)), ("b", png(1)[:500]), ("c", b""), ("e", idx()), ("f", png(2))):
        Path(name).write_bytes(content)
    Path("loop").symlink_to("loop")
    Path("folder").mkdir()
    results = list(read_all(["f", "b", "c", "loop", "folder", Fault("x*", "matches no file"), "gone", "e", "a"]))
    assert_reads([results[0], *results[7:]], [("f", 2), *((f"e[{index}]", index) for index in range(3)), ("a", 0)])
    reasons = {"b": "truncated", "c": "empty", "loop": "symbolic links", "folder": "directory"}
    reasons |= {"x*": "no file", "gone": "No such file"}
    for fault, (name, reason) in zip(results[1:7], reasons.items(), strict=True):
        assert (fault.name, reason in fault.reason) == (name, True), fault


@pytest.mark.parametrize("workers", [1, 3])
def test_read_all_reads_four_files_per_worker_ahead(workers: int) -> None:
    Path("a.png").write_bytes(png(0))
    endless = iter(lambda: "a.png", None)
    counted: list[str] = []
    results = read_all((counted.append(name) or name for name in endless), workers=workers)
    assert not counted  # before anybody asks
    for asked in range(1, 10):
        next(results)
        assert len(counted) == 4 * workers + asked
    results.close()


def test_large_idx_file_takes_the_memory_of_one_image() -> None:
    Path("large").write_bytes(pack(idx(np.tile(IMAGES, (1000, 1, 1)))))  # 2.4 MB unpacked
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_all(["large"])) == 3000
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
        assert len(list(read_all(["large"]))) == 3000
        assert tracemalloc.get_traced_memory()[1] > 2_000_000
    finally:
        tracemalloc.stop()


def test_slow_file_keeps_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait_for_the_second(name: str, _: DataInfo, invert: str) -> list[Result]:
        if name == "b":
            second_is_done.set()
        else:
            assert second_is_done.wait(10)
        return [Fault(name, invert)]

    second_is_done = threading.Event()
    monkeypatch.setattr(inputs, "read", wait_for_the_second)
    assert [fault.name for fault in read_all(["a", "b"], workers=2)] == ["a", "b"]


def test_files_that_folders_leave_out_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    touch("phone/1.PNG", "phone/2.mpo", "phone/3.HEIC", "phone/x/4.heic", "phone/5.tga", "phone/scan", "shop/6.jpg")
    touch("phone/.nomedia", "phone/Thumbs.db", "phone/desktop.ini", "phone/.DS_Store", "t10k-labels-idx1-ubyte")
    left_out: dict[str, list[str]] = {}
    assert expand_all(["phone", "sho*"], left_out=left_out) == ["phone/1.PNG", "phone/2.mpo", "shop/6.jpg"]
    inputs.report_left_out(left_out)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("left out 4 files in phone: .heic 2, .tga 1, no suffix 1 (")
    for names in (["shop"], ["phone/1.PNG"]):
        left_out = {}
        expand_all(names, left_out=left_out)
        inputs.report_left_out(left_out)
    assert capsys.readouterr().err == ""


def test_count_of_left_out_files_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    touch(*(f"a/{number}.{number}" for number in range(10)), "b/x.\nerror: y")
    left_out: dict[str, list[str]] = {}
    expand_all(["a", "b"], left_out=left_out)
    inputs.report_left_out(left_out)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("left out 11 files in 2 folders: ")
    assert "5 other suffixes" in line
