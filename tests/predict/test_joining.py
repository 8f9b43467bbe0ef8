"""join.py: one file of all parts, or a message and no file; never one that lacks rows, and none of the parts lost."""

from pathlib import Path

import pytest
from conftest import Program
from test_bulk_input import plan

from fmnist_lightning.predict import shards as shares
from fmnist_lightning.predict.joining import join
from fmnist_lightning.predict.shards import Share

ROWS = {"json": b'{"file": "%s.png", "label": 1}\n', "csv": b"%s.png,1,\n"}
HEADERS = {"json": b"", "csv": b"file,label,error\n"}


@pytest.fixture(params=ROWS)
def parts(request: pytest.FixtureRequest, tmp_path: Path) -> list[Path]:
    """Two, of three files."""
    folder, kind = tmp_path / "parts", request.param
    folder.mkdir()
    (folder / shares.PLAN).write_text(plan(files=3, format=kind))
    paths = [folder / Share(number, 2).part(kind) for number in (1, 2)]
    for path, names in zip(paths, ([b"a"], [b"b", b"c"]), strict=True):
        path.write_bytes(HEADERS[kind] + b"".join(ROWS[kind] % name for name in names))
    return paths


def test_whole_parts_are_joined_in_the_same_folder_too(program: Program, parts: list[Path]) -> None:
    status, output = program(join, "--folder", parts[0].parent, "--file", parts[0].with_name("joined"))
    assert (status, output) == (0, f"{parts[0].with_name('joined')}: 3 rows of 3 files\n")
    kind = parts[0].suffix[1:]
    rows = [ROWS[kind] % name for name in (b"a", b"b", b"c")]
    assert parts[0].with_name("joined").read_bytes() == b"".join([HEADERS[kind], *rows])


def test_what_is_joined_is_not_written_over(program: Program, parts: list[Path], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(parts[0].parent)
    before = {path: path.read_bytes() for path in parts[0].parent.iterdir()}
    for name in (shares.PLAN, parts[0].name, parts[1].name):
        for file in (parts[0].parent / name, tmp_path / "link" / ".." / "parts" / name, tmp_path / "link" / name):
            status, output = program(join, "--folder", parts[0].parent, "--file", file)
            assert (status, f"--file {file} is one of the files that are joined" in output) == (1, True), output
    assert {path: path.read_bytes() for path in parts[0].parent.iterdir()} == before


@pytest.mark.parametrize("damaged", [0, 1])
@pytest.mark.parametrize("cut", [1, 5])
def test_a_part_that_ends_too_soon_is_not_joined(
    program: Program, parts: list[Path], tmp_path: Path, damaged: int, cut: int
) -> None:
    parts[damaged].write_bytes(parts[damaged].read_bytes()[:-cut])
    assert_not_joined(program, parts[damaged], "ends within a row", tmp_path / "joined")


@pytest.mark.parametrize("damaged", [0, 1])
def test_a_part_without_a_header_or_a_row_is_not_joined(
    program: Program, parts: list[Path], tmp_path: Path, damaged: int
) -> None:
    lacks_rows = f"has {damaged} rows; expected one for each of {damaged + 1} files at least"
    lines = parts[damaged].read_bytes().splitlines(keepends=True)
    parts[damaged].write_bytes(b"".join(lines[:-1]))
    assert_not_joined(program, parts[damaged], lacks_rows, tmp_path / "joined")
    parts[damaged].write_bytes(b"")
    reason = "does not begin with the header" if parts[0].suffix == ".csv" else "has 0 rows"
    assert_not_joined(program, parts[damaged], reason, tmp_path / "joined")
    parts[damaged].write_bytes(b"".join(lines[:-1]) + b'"short"\n')
    assert_not_joined(program, parts[damaged], "is damaged in row", tmp_path / "joined")


def test_parts_of_other_columns_are_not_joined(program: Program, parts: list[Path], tmp_path: Path) -> None:
    parts[1].write_bytes(b"file,error\nb.png,\nc.png,\n")
    reason = "does not begin with the header" if parts[0].suffix == ".csv" else "is damaged in row 1"
    assert_not_joined(program, parts[1], reason, tmp_path / "joined")


def assert_not_joined(program: Program, part: Path, reason: str, file: Path) -> None:
    """The part is named with a cure, and nothing is written."""
    status, output = program(join, "--folder", part.parent, "--file", file)
    assert (status, f"{part} {reason}" in output, "delete it, and" in output) == (1, True, True), output
    assert not list(file.parent.glob("*joined*"))


@pytest.mark.timeout(30)
def test_a_stray_quote_before_very_many_rows_is_found_at_once(program: Program, tmp_path: Path) -> None:
    """It makes one row of all that follow; counting its quotes anew for each line took minutes."""
    part = tmp_path / "parts" / Share(1, 1).part("csv")
    part.parent.mkdir()
    (part.parent / shares.PLAN).write_text(plan(files=99_999, shares=1))
    part.write_bytes(HEADERS["csv"] + b'"' + ROWS["csv"] % b"a" * 99_999)
    assert_not_joined(program, part, "ends within a row", tmp_path / "joined")
