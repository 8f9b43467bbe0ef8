"""predict --output and join: each file once, whatever is killed, and nothing lost, doubled or mixed up."""

import csv
import json
import os
import re
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Program, pack
from PIL import Image
from several import ROOT, started, torchrun_environment, wait_for

from fmnist_lightning.errors import UserError
from fmnist_lightning.predict import bulk, shards
from fmnist_lightning.predict.classifier import PictureClassifier
from fmnist_lightning.predict.joining import join
from fmnist_lightning.predict.predict import predict
from fmnist_lightning.predict.shards import PLAN, Shard
from fmnist_lightning.runs.files import locked
from fmnist_lightning.runs.options import PredictOptions

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


def options(pictures: Path | str, folder: Path, kind: str = "json", *more: object) -> list[object]:
    return [pictures, "--output", folder, "--format", kind, "--batch_size", 2, "--accelerator", "cpu", *more]


def names_in(path: Path) -> list[str]:
    """The names in the rows of a file."""
    if path.suffix == ".json":
        return [json.loads(line)["file"] for line in path.read_text().splitlines()]
    with path.open(newline="") as file:
        return [row["file"] for row in csv.DictReader(file)]


def same_rows(first: bytes, second: bytes) -> bool:
    """Whether all is equal except the last digit of probabilities, which depends on the batch."""
    probability = re.compile(rb"0\.\d{4,6}")
    mine, other = (np.array([float(one) for one in probability.findall(text)]) for text in (first, second))
    return probability.sub(b"", first) == probability.sub(b"", second) and np.allclose(mine, other, atol=2e-6)


def whole(program: Program, pictures: Path, kind: str) -> Path:
    """The one part of a prediction by one process."""
    folder = pictures.parent / f"whole_{kind}"
    status, output = program(predict, *options(pictures, folder, kind))
    assert (status, "cannot read 1 of the pictures" in output) == (1, True), output
    return folder / Shard(1, 1).part(kind)


def unfinished(part: Path, content: bytes) -> Path:
    """Turn a complete part into one that a kill has left with this content."""
    part.unlink(missing_ok=True)
    partial = part.with_name(part.name + shards.PARTIAL)
    partial.write_bytes(content)
    return partial


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("total", [2, 9])
def test_joined_shards_equal_one_process(
    program: Program, pictures: Path, tmp_path: Path, total: int, kind: str
) -> None:
    """Also if there are more shards than files."""
    for number in range(1, total + 1):
        program(predict, *options(pictures, tmp_path / "parts", kind, "--shard", f"{number}/{total}"))
    joined = tmp_path / f"joined.{kind}"
    status, output = program(join, "--folder", tmp_path / "parts", "--file", joined)
    assert status == 0, output
    assert same_rows(joined.read_bytes(), whole(program, pictures, kind).read_bytes())
    assert "12 rows of 8 files" in output
    assert "broken.png: " in output
    names = names_in(joined)
    assert len(names) == 7 + 5
    assert [name for name in names if IDX in name] == [f"{pictures / IDX}[{index}]" for index in range(5)]


@pytest.mark.parametrize("kind", KINDS)
def test_process_killed_after_any_byte_resumes(
    program: Program, pictures: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """No image is classified twice."""
    part = whole(program, pictures, kind)
    content = part.read_bytes()
    classified: list[int] = []
    call = PictureClassifier.__call__
    monkeypatch.setattr(PictureClassifier, "__call__", lambda *given: classified.append(len(given[1])) or call(*given))
    for size in range(0, len(content), 301):
        before = len(list(shards.rows_in(unfinished(part, content[:size]), kind)))
        classified.clear()
        assert program(predict, *options(pictures, part.parent, kind))[0] == 1
        assert same_rows(part.read_bytes(), content), size
        assert sum(classified) + before in (11, 12), size  # the broken file is among those before, or not


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        (idx_file(1, 2, 3)[:-1], "2,367 bytes"),
        (pack(idx_file(1, 2, 3)[:1000]), "image 1"),
        (idx_file(1), "holds only 1"),
        (b"GIF89a", "header is"),
    ],
    ids=["gone", "cut", "packed and cut", "shorter", "another kind"],
)
def test_idx_file_changed_after_a_kill_loses_no_row(
    program: Program, pictures: Path, tmp_path: Path, content: bytes | None, reason: str
) -> None:
    """Its fault and the pictures after it were once taken for images that were done."""
    first, changed, last = pictures / "a.png", pictures / IDX, pictures / "b,c.png"
    command = [predict, first, changed, *options(last, tmp_path / "parts")]
    assert program(*command)[0] == 0
    part = tmp_path / "parts" / Shard(1, 1).part("json")
    before = names_in(part)
    unfinished(part, b"".join(part.read_bytes().splitlines(keepends=True)[:3]))  # two of the five images are done
    changed.unlink()
    if content is not None:
        changed.write_bytes(content)
    status, output = program(*command)
    assert (status, "has changed since 2" in output, reason in output) == (1, True, True), output
    assert names_in(part) == [*before[:3], str(changed), str(last)]


def test_output_is_no_input_when_the_command_is_repeated(
    program: Program, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pattern also matches the folder in which the output is made; test_inputs.py has more patterns."""
    monkeypatch.chdir(pictures)
    command = (predict, "*", *options("a.png", Path("new/out")))
    part = Path("new/out") / Shard(1, 1).part("json")
    assert program(*command)[0] == 1
    names, content = names_in(part), part.read_bytes()
    assert b"new/" not in content
    unfinished(part, b"".join(content.splitlines(keepends=True)[:1]))
    assert program(*command)[0] == 1
    assert names_in(part) == names  # a probability's last digit depends on the number of pictures in its batch


def test_ranks_take_their_shards(
    program: Program, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that can't be read ends no rank."""
    expected = whole(program, pictures, "json").read_bytes()
    for rank in (1, 0):
        for name, value in torchrun_environment(rank, 2, port=1).items():
            monkeypatch.setenv(name, value)
        status, output = program(predict, *options(pictures, tmp_path / "parts"))
        assert status == 0, output
    assert same_rows(b"".join(part.read_bytes() for part in sorted((tmp_path / "parts").glob("part-*"))), expected)
    assert "--shard" in program(predict, *options(pictures, tmp_path / "parts", "json", "--shard", "1/2"))[1]


def test_killed_process_resumes_with_a_row_for_each_file(program: Program, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    Image.fromarray(np.arange(10_000, dtype=np.uint8).reshape(100, 100)).save(folder / "0000.png")
    for number in range(1, 1000):
        os.link(folder / "0000.png", folder / f"{number:04d}.png")
    words = [folder, "--output", tmp_path / "parts", "--format", "csv", "--batch_size", 10, "--accelerator", "cpu"]
    part = tmp_path / "parts" / Shard(1, 1).part("csv")
    partial = part.with_name(part.name + shards.PARTIAL)
    with started(sys.executable, ROOT / "scripts" / "predict.py", *words) as process:
        wait_for(lambda: partial.exists() and partial.stat().st_size > 1000)
        process.kill()
        process.wait(100)
    assert partial.exists()  # it was not finished
    assert program(predict, *words, "--batch_size", 256)[0] == 0
    assert names_in(part) == [str(folder / f"{number:04d}.png") for number in range(1000)]


def test_killed_ranks_are_restarted_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(processes: int, **_: object) -> None:
        launched.append(processes)
        if statuses:
            raise UserError("rank 1 of 3 failed", statuses.pop())

    monkeypatch.setattr(bulk, "launch", launch)
    for failures, starts, ends in (([137] * 2, 3, True), ([137] * 3, 3, False), ([1], 1, False)):
        launched: list[int] = []
        statuses = list(failures)
        with nullcontext() if ends else pytest.raises(UserError):
            bulk.launch_until_done(3)
        assert launched == [3] * starts


def test_launching_process_reports_faults_of_all_parts(
    program: Program, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def launch(processes: int, **_: object) -> None:
        chosen = PredictOptions([str(pictures)], output=str(tmp_path / "parts"), format="csv", accelerator="cpu")
        for number in range(1, processes + 1):
            bulk.write_shard(chosen, tmp_path / "parts", Shard(number, processes))

    monkeypatch.setattr(bulk, "launch", launch)
    status, output = program(predict, *options(pictures, tmp_path / "parts", "csv", "--devices", 2))
    assert (status, "broken.png" in output, "2 of 2 parts of 8 files" in output) == (1, True, True), output


def assert_refused(program: Program, words: list[object], reason: str) -> None:
    status, output = program(predict, *words)
    assert (status, reason in output) == (1, True), output


def test_second_process_and_other_files_are_refused(program: Program, pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    with locked(folder / f".{Shard(1, 1).part('json')}.lock", ""):
        assert_refused(program, options(pictures, folder), "another process")
    (folder / PLAN).rename(folder / "letter.txt")
    assert_refused(program, options(pictures, folder), "other files")
    assert [path.name for path in folder.glob("[!.]*")] == ["letter.txt"]


def test_resuming_with_other_options_or_files_is_refused(program: Program, pictures: Path, tmp_path: Path) -> None:
    command = options(pictures, tmp_path / "parts")
    assert program(predict, *command)[0] == 1
    for changed, message in (
        (["--top_k", 3], "top_k 1, now 3"),
        (["--shard", "1/2"], "shards 1, now 2"),
        (["--tta", "true"], "tta False, now True"),
        (["--invert", "never"], "invert auto, now never"),
    ):
        assert_refused(program, [*command, *changed], message)
    (pictures / "new.png").write_bytes(b"")
    assert_refused(program, command, "files 8, now 9")


def test_file_added_during_prediction_is_noticed(
    program: Program, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else shards that were started before and after would differ."""

    def late(*arguments: Any) -> Any:
        (pictures / "0.png").write_bytes(b"new")
        return classified(*arguments)

    classified = bulk.classified
    monkeypatch.setattr(bulk, "classified", late)
    assert_refused(program, options(pictures, tmp_path / "parts"), "files have changed")
    assert not list((tmp_path / "parts").glob("part-*.json"))


def test_options_that_do_not_go_with_output_are_refused(program: Program, pictures: Path, tmp_path: Path) -> None:
    command = options(pictures, tmp_path / "parts")
    for changed, word in (
        (["--format", "table"], "json or csv"),
        (["--save_inputs", "x"], "--save_inputs"),
        (["--shard", "1/2", "--devices", 2], "--shard 1/2"),
        *((["--shard", wrong], f"--shard {wrong}") for wrong in ("2", "0/3", "3/2", "a/b", "1/2/3")),
    ):
        assert_refused(program, [*command, *changed], word)
    assert_refused(program, ["-", *command], "names of files")
    assert not (tmp_path / "parts").exists()


def test_damaged_part_is_not_resumed(program: Program, pictures: Path) -> None:
    part = whole(program, pictures, "json")
    lines = part.read_bytes().splitlines(keepends=True)
    for content in (lines[1], b"[]\n", b"".join(lines) + lines[0]):
        partial = unfinished(part, content)
        assert_refused(program, options(pictures, part.parent), partial.name)


def plan(**changed: object) -> str:
    """A plan of two parts without rows."""
    return json.dumps({"files": 0, "list": "e3b0c442", "shards": 2, "format": "csv", **changed})


def test_damaged_plan_is_named(program: Program, pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    damaged = [plan(shards="2"), plan(shards=0), plan(files=2.0), plan(list=None), plan(format="xml")]
    for content in ("{}", "[", "[]", *damaged):
        (folder / PLAN).write_text(content)
        assert_not_joined(program, folder, f"{PLAN}: it is damaged")
        assert_refused(program, options(pictures, folder), f"{PLAN}: it is damaged")


ROWS = {"json": b'{"file": "%s.png", "label": 1}\n', "csv": b"%s.png,1,\n"}
HEADERS = {"json": b"", "csv": b"file,label,error\n"}


@pytest.fixture(params=ROWS)
def parts(request: pytest.FixtureRequest, tmp_path: Path) -> list[Path]:
    """Two parts of three files."""
    folder, kind = tmp_path / "parts", request.param
    folder.mkdir()
    (folder / PLAN).write_text(plan(files=3, format=kind))
    paths = [folder / Shard(number, 2).part(kind) for number in (1, 2)]
    for path, names in zip(paths, ([b"a"], [b"b", b"c"]), strict=True):
        path.write_bytes(HEADERS[kind] + b"".join(ROWS[kind] % name for name in names))
    return paths


def assert_not_joined(program: Program, folder: Path, word: str) -> None:
    status, output = program(join, "--folder", folder, "--file", folder.parent / "joined")
    assert (status, word in output) == (1, True), output
    assert not list(folder.parent.glob("*joined*"))


def test_join_does_not_overwrite_parts(program: Program, parts: list[Path], tmp_path: Path) -> None:
    folder = parts[0].parent
    (tmp_path / "link").symlink_to(folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for name in (PLAN, parts[0].name, parts[1].name):
        for file in (folder / name, tmp_path / "link" / name):
            status, output = program(join, "--folder", folder, "--file", file)
            assert (status, f"--file {file}" in output) == (1, True), output
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_join_refuses_missing_parts(program: Program, parts: list[Path]) -> None:
    parts[1].unlink()
    assert_not_joined(program, parts[0].parent, f"1 of 2 parts are missing, the first of them {parts[1].name}")
    parts[0].with_name(PLAN).unlink()
    assert_not_joined(program, parts[0].parent, f"{PLAN} is missing")


@pytest.mark.parametrize("damaged", [0, 1])
def test_join_refuses_damaged_parts(program: Program, parts: list[Path], damaged: int) -> None:
    part, is_csv = parts[damaged], parts[0].suffix == ".csv"
    content = part.read_bytes()
    without_last_row = b"".join(content.splitlines(keepends=True)[:-1])
    for damage, reason in (
        (content[:-1], "ends within a row"),
        (content[:-5], "ends within a row"),
        (without_last_row, f"has {damaged} rows for {damaged + 1} files"),
        (b"", "does not begin with the header" if is_csv else "has 0 rows"),
        (without_last_row + b'"short"\n', f"row {damaged + 1} is damaged"),
    ):
        part.write_bytes(damage)
        assert_not_joined(program, part.parent, f"{part}: ")
        assert_not_joined(program, part.parent, reason)
    parts[1].write_bytes(b"file,error\nb.png,\nc.png,\n")  # other columns
    assert_not_joined(program, part.parent, f"{part}: ")


@pytest.mark.timeout(30)
def test_join_finds_a_stray_quote_in_linear_time(program: Program, tmp_path: Path) -> None:
    """It makes one row of all that follow. Counting its quotes anew for each line took minutes."""
    part = tmp_path / "parts" / Shard(1, 1).part("csv")
    part.parent.mkdir()
    (part.parent / PLAN).write_text(plan(files=99_999, shards=1))
    part.write_bytes(HEADERS["csv"] + b'"' + ROWS["csv"] % b"a" * 99_999)
    assert_not_joined(program, part.parent, "ends within a row")
