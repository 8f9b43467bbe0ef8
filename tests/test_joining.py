"""join.py: one file of all parts, or a message and no file; never one that lacks rows, and none of the parts lost."""

from pathlib import Path

import pytest
from conftest import Program
from test_bulk_input import plan

from fmnist_lightning import shares
from fmnist_lightning.joining import join
from fmnist_lightning.shares import Share

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
