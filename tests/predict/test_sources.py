"""What a user names becomes files, then images, in order, a few at a time; a fault doesn't stop the rest."""

import io
import os
import stat
import struct
import threading
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import pack
from PIL import Image

from fmnist_lightning.predict import inputs as sources
from fmnist_lightning.predict.inputs import Fault, Picture, Result, expand, read_all
from fmnist_lightning.predict.pictures import Grey

IMAGES = np.random.default_rng(0).integers(0, 100, (3, 28, 28), np.uint8)  # no corner is bright


def png(index: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(IMAGES[index]).save(file, "PNG")
    return file.getvalue()


def idx(images: Grey = IMAGES, *, count: int | None = None, magic: int = 0x803) -> bytes:
    """An IDX file; another `count` makes its header lie."""
    height, width = images.shape[1:]
    return struct.pack(">4I", magic, len(images) if count is None else count, height, width) + images.tobytes()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, empty, so that names are short."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def names(results: Iterable[Result]) -> list[str]:
    return [result.name for result in results]


def assert_reads(results: Iterable[Result], expected: list[tuple[str, int]]) -> None:
    """Each result is a picture of that name and that of IMAGES."""
    found = list(results)
    assert names(found) == [name for name, _ in expected]
    for result, (name, index) in zip(found, expected, strict=True):
        assert isinstance(result, Picture), result
        assert (result.image == IMAGES[index]).all(), name


def fault_of(name: str) -> str:
    """The reason why a file gives nothing but one fault."""
    [fault] = read_all([name])
    assert isinstance(fault, Fault)
    assert fault.name == name
    return fault.reason


@pytest.mark.parametrize("name", ["-", "boot.png", "gone.png", "gone", "notes.txt"])
def test_a_name_that_is_no_folder_and_no_pattern_means_itself(folder: Path, name: str) -> None:
    touch("boot.png", "notes.txt")
    assert list(expand(name)) == [name]


def test_a_folder_means_its_pictures_sorted_then_those_of_its_folders_without_what_is_hidden(folder: Path) -> None:
    touch("shop/b.JPG", "shop/a.png", "shop/.a.png", "shop/notes.txt", "shop/.cache/c.png", "shop/z/y/d.webp")
    touch(
        "shop/c/e.tif", "shop/t10k-images-idx3-ubyte", "shop/t10k-labels-idx1-ubyte", "shop/t10k-images.idx3-ubyte.gz"
    )
    expected = ["a.png", "b.JPG", "t10k-images-idx3-ubyte", "t10k-images.idx3-ubyte.gz", "c/e.tif", "z/y/d.webp"]
    assert list(expand("shop")) == [f"shop/{name}" for name in expected]


def test_a_folder_without_pictures_is_a_fault(folder: Path) -> None:
    touch("shop/notes.txt", "shop/.a.png")
    [fault] = expand("shop")
    assert fault.name == "shop"
    assert "is a folder without pictures (PNG, JPEG," in fault.reason


def test_a_folder_that_may_not_be_listed_is_a_fault_and_the_others_go_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str) -> Iterator[os.DirEntry[str]]:
        if path == os.path.join("shop", "b"):  # noqa: PTH118
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    touch("shop/a/1.png", "shop/b/2.png", "shop/c/3.png")
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", refuse)
    assert list(expand("shop")) == [
        "shop/a/1.png",
        "shop/c/3.png",
        Fault("shop/b", "can't be read (Permission denied)"),
    ]


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
def test_a_pattern_means_its_matches_sorted(folder: Path, pattern: str, expected: list[str | Fault]) -> None:
    touch("shop/b.png", "shop/a.png", "shop/c/e/f.png", "shop/c/d.png", "shop/.hidden.png")
    assert list(expand(pattern)) == expected


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(folder: Path) -> None:
    touch("a[1].png", "a1.png")
    assert list(expand("a[1].png")) == ["a[1].png"]
    Path("a[1].png").unlink()
    assert list(expand("a[1].png")) == ["a1.png"]


def test_impossible_names_are_faults() -> None:
    assert list(expand("x" * 300)) == [Fault("x" * 300, "can't be read (File name too long)")]
    assert list(expand("a\0/*")) == [Fault("a\0/*", "is no name of a file (embedded null byte)")]
    assert fault_of("a\0.png") == "is no name of a file (embedded null byte)"


def test_a_pipe_in_a_folder_is_left_out_and_blocks_nothing(folder: Path) -> None:
    touch("shop/a.png")
    os.mkfifo("shop/b.png")
    assert stat.S_ISFIFO(os.stat("shop/b.png").st_mode)  # noqa: PTH116
    assert list(expand("shop")) == ["shop/a.png"]


@pytest.mark.parametrize("content", [png(1), idx(IMAGES[1:2])])
def test_a_pipe_that_was_named_is_read(folder: Path, content: bytes) -> None:
    os.mkfifo("pipe")
    writer = threading.Thread(target=Path("pipe").write_bytes, args=(content,))
    writer.start()
    [picture] = read_all(["pipe"])
    writer.join()
    assert isinstance(picture, Picture)
    assert (picture.image == IMAGES[1]).all()


@pytest.mark.parametrize(
    ("content", "name"), [(png(1), "-"), (idx(IMAGES[1:2]), "-[0]"), (pack(idx(IMAGES[1:2])), "-[0]")]
)
def test_standard_input_is_read_to_its_end(content: bytes, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    assert_reads(read_all(expand("-")), [(name, 1)])


def test_standard_input_that_is_empty_closed_or_endless_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_STREAM", 1000)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO()))
    assert fault_of("-") == "is empty"
    with Path("/dev/zero").open("rb") as endless:
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=endless))
        assert fault_of("-") == "is longer than 1,000 bytes: save it as a file"
    monkeypatch.setattr("sys.stdin", None)  # as Python has it after `<&-`
    assert fault_of("-") == "is closed"


@pytest.mark.parametrize("packing", [bytes, pack])
@pytest.mark.parametrize("name", ["t10k-images-idx3-ubyte", "images"])
def test_idx_files_are_known_by_content_and_come_as_they_are(
    folder: Path, name: str, packing: Callable[[bytes], bytes]
) -> None:
    Path(name).write_bytes(packing(idx(255 - IMAGES)))  # with bright corners
    found = list(read_all([name]))
    assert names(found) == [f"{name}[0]", f"{name}[1]", f"{name}[2]"]
    assert (np.stack([result.image for result in found]) == 255 - IMAGES).all()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (idx()[:-1], "holds 2,367 bytes; 3 images, as its header says, take 2,368"),
        (idx() + b"\0", "holds 2,369 bytes; 3 images, as its header says, take 2,368"),
        (
            idx(count=2**32 - 1),
            "holds 2,368 bytes; 4,294,967,295 images, as its header says, take 3,367,254,359,296",
        ),
        (idx()[:15], "is truncated: it ends after 15 of the 16 bytes"),
        (idx(magic=0x801), "holds no IDX data of 3 axes: it begins with 00 00 08 01, not 00 00 08 03"),
        (png(0), "holds no IDX data of 3 axes: it begins with 89 50 4e 47, not 00 00 08 03"),
        (b"", "is truncated: it ends after 0 of the 16 bytes"),
        (idx(IMAGES[:, :14]), "holds images of 14 x 28, not 28 x 28"),
        (pack(png(0)), "holds no IDX data of 3 axes: it begins with 89 50 4e 47, not 00 00 08 03"),
        (pack(idx())[:5], "is truncated or damaged (Compressed file ended before the end-of-stream marker"),
        (pack(idx(count=10**9)), "would unpack to 784,000,000,016 bytes, more than 200 times its"),
    ],
)
def test_an_idx_file_that_is_not_what_it_says_gives_a_fault_alone(folder: Path, content: bytes, reason: str) -> None:
    Path("t10k-images-idx3-ubyte").write_bytes(content)
    assert fault_of("t10k-images-idx3-ubyte").startswith(reason)


@pytest.mark.parametrize(
    ("content", "images", "reason"),
    [
        (pack(idx()[:-1]), 2, "is truncated: it ends in image 2 of 3"),
        (pack(idx() + b"\0"), 3, "holds more than the 3 images of its header"),
        (pack(idx()) + b"more", 3, "is truncated or damaged (Not a gzipped file (b'mo'))"),
        (pack(idx())[:1200], 1, "is truncated or damaged (Compressed file ended before"),
        (pack(idx())[:-8] + bytes(8), 3, "is truncated or damaged (CRC check failed"),
    ],
)
def test_a_packed_file_that_ends_badly_gives_its_images_and_a_fault(
    folder: Path, content: bytes, images: int, reason: str
) -> None:
    Path("packed").write_bytes(content)
    *found, fault = read_all(["packed"])
    assert_reads(found, [(f"packed[{index}]", index) for index in range(images)])
    assert isinstance(fault, Fault)
    assert (fault.name, fault.reason[: len(reason)]) == ("packed", reason)
    assert fault.reason.endswith("; the images before may be wrong too") is ("damaged" in reason)


def test_damaged_files_are_named_and_the_others_go_on_in_order(folder: Path) -> None:
    for name, content in (("a", png(0)), ("b", png(1)[:500]), ("c", b""), ("e", idx()), ("f", png(2))):
        Path(name).write_bytes(content)
    Path("d").symlink_to("nowhere")
    Path("loop").symlink_to("loop")
    Path("folder").mkdir()
    results = list(read_all(["f", "b", "c", "d", "loop", "folder", Fault("x*", "matches no file"), "gone", "e", "a"]))
    assert_reads([results[0], *results[8:]], [("f", 2), *((f"e[{index}]", index) for index in range(3)), ("a", 0)])
    reasons = {fault.name: fault.reason for fault in results[1:8] if isinstance(fault, Fault)}
    assert reasons.pop("b").startswith("is cut short or damaged")
    assert reasons.pop("loop").endswith("symbolic links)")
    assert reasons == {
        "c": "is empty",
        "d": "is a link to nowhere, which does not exist",
        "folder": "can't be read (Is a directory)",
        "x*": "matches no file",
        "gone": "does not exist",
    }


def test_pictures_are_inverted_as_asked_and_idx_images_never(folder: Path) -> None:
    Path("a.png").write_bytes(png(0))
    Path("b").write_bytes(idx(IMAGES[1:2]))
    picture, image = read_all(["a.png", "b"], "always")
    assert (picture.image == 255 - IMAGES[0]).all()
    assert (image.image == IMAGES[1]).all()


@pytest.mark.parametrize("workers", [1, 3])
def test_reading_is_at_most_four_files_a_worker_ahead(folder: Path, workers: int) -> None:
    Path("a.png").write_bytes(png(0))
    endless = iter(lambda: "a.png", None)
    counted: list[str] = []
    results = read_all((counted.append(name) or name for name in endless), workers=workers)
    assert not counted  # before anybody asks
    for asked in range(1, 10):
        next(results)
        assert len(counted) == 4 * workers + asked
    results.close()


def test_a_large_idx_file_takes_the_memory_of_an_image(folder: Path) -> None:
    Path("large").write_bytes(pack(idx(np.tile(IMAGES, (5000, 1, 1)))))  # 12 MB unpacked
    tracemalloc.start()
    try:
        total = sum(1 for _ in read_all(["large"]))
        assert total == 15_000
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
        kept = list(islice(read_all(["large"]), 15_000))
        assert tracemalloc.get_traced_memory()[1] > 10_000_000
    finally:
        tracemalloc.stop()
    assert len(kept) == 15_000


def test_a_slow_file_keeps_its_place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wait_for_the_second(name: str, invert: str) -> list[Result]:
        if name == "b":
            second_is_done.set()
        else:
            assert second_is_done.wait(10)
        return [Fault(name, invert)]

    second_is_done = threading.Event()
    monkeypatch.setattr(sources, "read", wait_for_the_second)
    assert names(read_all(["a", "b"], workers=2)) == ["a", "b"]
