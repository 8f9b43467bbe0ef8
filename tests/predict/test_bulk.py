"""predict.py --output: each file once, whatever is killed; a part for each process; one file of them in the end."""

import csv
import json
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Program, pack
from PIL import Image
from several import ROOT, has_ended, ranks_of, run_ranks, started, wait_for

from fmnist_lightning.errors import UserError
from fmnist_lightning.predict import bulk
from fmnist_lightning.predict import inputs as sources
from fmnist_lightning.predict import shards as shares
from fmnist_lightning.predict.joining import join
from fmnist_lightning.predict.predict import predict
from fmnist_lightning.predict.shards import Share, parse_share

KINDS = ["json", "csv"]
IDX = "t10k-images-idx3-ubyte"
NAMES = ["a.png", "b,c.png", 'quo"te.png', "two\nlines.png", "\udcff.png", "broken.png", "u\u2028v\x0cw\x85.png"]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Seven files, one of them damaged, with all that a name may hold, and an IDX file of five images."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        picture = np.full((40, 40), 255, np.uint8)
        picture[10:30, 10 : 20 + number] = 99
        Image.fromarray(picture).save(folder / "new.png")
        (folder / "new.png").rename(folder / name)
    (folder / "broken.png").write_bytes(b"not a picture")
    (folder / IDX).write_bytes(idx_file(0, 0, 0, 0, 0))
    return folder


def idx_file(*images: int) -> bytes:
    """28 x 28 images, each of one brightness."""
    header = bytes([0, 0, 8, 3]) + np.array((len(images), 28, 28), ">i4").tobytes()
    return header + b"".join(bytes([image]) * 28 * 28 for image in images)


def options(pictures: Path, folder: Path, kind: str = "json", *more: object) -> list[object]:
    return [pictures, "--output", folder, "--format", kind, "--batch_size", 2, "--accelerator", "cpu", *more]


def rows(path: Path, kind: str) -> list[dict[str, str]]:
    if kind == "json":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def same_rows(first: bytes, second: bytes) -> bool:
    """Whether all is equal but the last digit of probabilities, which a batch of another size may change."""
    probability = re.compile(rb"0\.\d{4,6}")
    mine, other = (np.array([float(one) for one in probability.findall(text)]) for text in (first, second))
    return probability.sub(b"", first) == probability.sub(b"", second) and np.allclose(mine, other, atol=2e-6)


@pytest.fixture
def whole(program: Program, pictures: Path, tmp_path: Path) -> Callable[[str], bytes]:
    """The one part of a prediction by one process."""

    def predicted(kind: str) -> bytes:
        folder = tmp_path / f"whole_{kind}"
        if not folder.exists():
            status, output = program(predict, *options(pictures, folder, kind))
            assert status == 1, output
            assert "1 of the pictures could not be read" in output
        return (folder / Share(1, 1).part(kind)).read_bytes()

    return predicted


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_has_a_row_for_each_image_and_each_fault(
    pictures: Path, whole: Callable[[str], bytes], tmp_path: Path, kind: str
) -> None:
    whole(kind)
    told = rows(tmp_path / f"whole_{kind}" / Share(1, 1).part(kind), kind)
    assert len(told) == 7 + 5
    assert [row["file"] for row in told if row.get("error")] == [str(pictures / "broken.png")]
    assert [row["file"] for row in told if "idx" in row["file"]] == [f"{pictures / IDX}[{index}]" for index in range(5)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world_size", [2, 3, 9])
def test_shares_joined_are_what_one_process_writes(
    program: Program, pictures: Path, tmp_path: Path, whole: Callable[[str], bytes], world_size: int, kind: str
) -> None:
    """Also where there are more processes than files."""
    for number in range(1, world_size + 1):
        program(predict, *options(pictures, tmp_path / "parts", kind, "--share", f"{number}/{world_size}"))
    status, output = program(join, "--folder", tmp_path / "parts", "--file", tmp_path / "joined")
    assert status == 0, output
    assert same_rows((tmp_path / "joined").read_bytes(), whole(kind))
    assert "12 rows of 8 files" in output
    assert "broken.png: " in output


@pytest.mark.parametrize("kind", KINDS)
def test_a_process_that_was_killed_after_any_byte_goes_on(
    program: Program,
    pictures: Path,
    tmp_path: Path,
    whole: Callable[[str], bytes],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    """Each cut of the file that a kill may leave; no image is classed twice."""
    classed: list[int] = []
    rows_of = bulk.rows_of
    monkeypatch.setattr(bulk, "rows_of", lambda chosen, *rest: classed.append(len(chosen)) or rows_of(chosen, *rest))
    content, folder = whole(kind), tmp_path / f"whole_{kind}"
    part = folder / Share(1, 1).part(kind)
    read = shares.rows_in
    for size in range(0, len(content), 127):
        part.unlink()
        partial = part.with_name(part.name + shares.PARTIAL)
        partial.write_bytes(content[:size])
        before = len(list(read(partial, kind)))
        classed.clear()
        assert program(predict, *options(pictures, folder, kind))[0] == 1
        assert same_rows(part.read_bytes(), content), size
        assert sum(classed) + before in (11, 12), size  # the broken file is among those before, or not


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "does not exist"),
        (idx_file(1, 2, 3)[:-1], "holds 2,367 bytes"),
        (pack(idx_file(1, 2, 3)[:1000]), "ends in image 1"),
        (idx_file(1), "holds only 1"),
        (b"GIF89a", "holds no IDX data"),
    ],
    ids=["gone", "cut", "packed and cut", "shorter", "another kind"],
)
def test_an_idx_file_that_changed_after_a_kill_loses_no_row_behind_it(
    program: Program, pictures: Path, tmp_path: Path, kind: str, content: bytes | None, reason: str
) -> None:
    """Its fault and the pictures behind it were once taken for images that were done."""
    names = [pictures / "a.png", pictures / IDX, pictures / "b,c.png"]
    command = [predict, *names, *options(pictures / 'quo"te.png', tmp_path / "parts", kind)]
    assert program(*command)[0] == 0
    part = tmp_path / "parts" / Share(1, 1).part(kind)
    before = rows(part, kind)
    lines = part.read_bytes().splitlines(keepends=True)
    part.rename(partial := part.with_name(part.name + shares.PARTIAL))
    partial.write_bytes(b"".join(lines[:-5]))  # of five images two are done, and nothing behind them
    names[1].unlink()
    if content is not None:
        names[1].write_bytes(content)
    status, output = program(*command)
    assert (status, f"{IDX}: has changed since 2 of its images were done: {reason}" in output) == (1, True), output
    told = [row["file"] for row in rows(part, kind)]
    assert told == [row["file"] for row in [*before[:3], {"file": str(names[1])}, *before[-2:]]]


def test_only_images_that_are_still_there_are_taken_for_done(pictures: Path) -> None:
    """A damaged file tells its damage as if nobody had been killed; a picture is none of an IDX file's images."""
    (pictures / IDX).write_bytes(pack(idx_file(1, 2, 3)[:-1]))
    names = [str(pictures / IDX), str(pictures / "broken.png")]
    whole = list(sources.read_all(names))
    for done in range(3):
        rest = list(sources.read_behind(iter(names), done))
        assert [result.name for result in rest] == [f"{names[0]}[0]", f"{names[0]}[1]", *names][done:]
        assert rest[-2:] == whole[-2:]
    [fault] = sources.read_behind(iter([str(pictures / "a.png")]), 1)
    assert fault == (str(pictures / "a.png"), "has changed since 1 of its images were done: is one picture")


def test_an_idx_file_without_images_has_a_row_too(program: Program, pictures: Path, tmp_path: Path) -> None:
    (pictures / IDX).write_bytes(idx_file())
    status, output = program(predict, *options(pictures, tmp_path / "parts"))
    assert (status, f"{IDX}: holds no images" in output) == (1, True), output


def test_shares_are_the_list_and_differ_by_one_at_most() -> None:
    for files in (0, 1, 7, 100):
        for total in (1, 2, 3, 11):
            bounds = [Share(number, total).of(files) for number in range(1, total + 1)]
            assert [index for start, end in bounds for index in range(start, end)] == list(range(files))
            assert max(end - start for start, end in bounds) - min(end - start for start, end in bounds) <= 1
    assert parse_share("2/3") == Share(2, 3)
    for wrong in ("2", "0/3", "4/3", "a/b", "1/2/3", ""):
        with pytest.raises(UserError, match="is no share"):
            parse_share(wrong)


def test_ranks_take_shares_by_what_their_launcher_says(
    pictures: Path, tmp_path: Path, whole: Callable[[str], bytes]
) -> None:
    """A file that can't be read ends none of them: its row says so, and joining names it."""
    statuses, outputs = run_ranks(tmp_path, predict, options(pictures, tmp_path / "parts", "csv"), world_size=3)
    assert statuses == [0, 0, 0], outputs
    parts = sorted((tmp_path / "parts").glob("part-*"))
    contents = [part.read_bytes() for part in parts]
    header = contents[0].splitlines(keepends=True)[0]
    assert same_rows(contents[0] + b"".join(content.removeprefix(header) for content in contents[1:]), whole("csv"))


def test_a_killed_process_is_started_again_and_each_file_has_its_row(tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    Image.fromarray(np.arange(10_000, dtype=np.uint8).reshape(100, 100)).save(folder / "0000.png")
    for number in range(1, 4000):
        os.link(folder / "0000.png", folder / f"{number:04d}.png")
    words = [sys.executable, ROOT / "scripts" / "predict.py", folder, "--output", tmp_path / "parts"]
    with started(*words, "--format", "csv", "--devices", 3, "--batch_size", 20, "--accelerator", "cpu") as program:
        [begun, *_] = wait_for(
            lambda: [path for path in tmp_path.glob("parts/*.partial") if path.stat().st_size > 2000]
        )
        victim = ranks_of(program.pid)[int(begun.name[5:10]) - 1]
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda: victim not in (ranks := ranks_of(program.pid)) and len(ranks) == 3)
        survivors, size = ranks_of(program.pid), begun.stat().st_size
        wait_for(lambda: begun.stat().st_size > size)
        program.kill()  # and then the one that has started them
        output, _ = program.communicate(timeout=100)
        wait_for(lambda: all(map(has_ended, survivors)))
    assert begun.exists()  # so it did not end by itself
    assert "was killed by SIGKILL, and the others were ended; all are started again" in output
    with started(*words, "--format", "csv", "--devices", 3, "--accelerator", "cpu") as program:
        output, _ = program.communicate(timeout=100)
    assert program.returncode == 0, output
    files = [row["file"] for part in sorted((tmp_path / "parts").glob("*.csv")) for row in rows(part, "csv")]
    assert files == [str(folder / f"{number:04d}.png") for number in range(4000)]
