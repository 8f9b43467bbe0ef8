"""predict.py --output and join.py refuse by name what would lose a row, double one, or mix two predictions."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Program
from test_bulk import options, pictures, whole

from fmnist_lightning.errors import UserError
from fmnist_lightning.predict import bulk
from fmnist_lightning.predict import shards as shares
from fmnist_lightning.predict.joining import join
from fmnist_lightning.predict.predict import predict
from fmnist_lightning.predict.shards import Share

__all__ = ["pictures", "whole"]  # fixtures


def test_another_process_on_the_same_share_is_refused(program: Program, pictures: Path, tmp_path: Path) -> None:
    part = shares.Part(tmp_path / "parts", Share(1, 1), "json", "")
    part.path.parent.mkdir()
    with part.locked():
        status, output = program(predict, *options(pictures, tmp_path / "parts"))
    assert status == 1
    assert "another process writes" in output


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--top_k", 3], "top_k 1, now 3"),
        (["--share", "1/2"], "shares 1, now 2"),
        (["--tta", "true"], "tta False, now True"),
        (["--invert", "never"], "invert auto, now never"),
    ],
)
def test_what_would_make_other_rows_is_refused(
    program: Program, pictures: Path, tmp_path: Path, changed: list[object], message: str
) -> None:
    assert program(predict, *options(pictures, tmp_path / "parts"))[0] == 1
    status, output = program(predict, *options(pictures, tmp_path / "parts", "json", *changed))
    assert (status, message in output) == (1, True), output


def test_a_list_that_has_changed_is_refused(program: Program, pictures: Path, tmp_path: Path) -> None:
    assert program(predict, *options(pictures, tmp_path / "parts"))[0] == 1
    (pictures / "new.png").write_bytes(b"")
    status, output = program(predict, *options(pictures, tmp_path / "parts"))
    assert (status, "files 8, now 9" in output) == (1, True), output


def test_a_file_that_comes_meanwhile_is_noticed(
    program: Program, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a share would do it and leave out its last one, which the next share does not have."""

    def late(*arguments: object) -> object:
        (pictures / "0.png").write_bytes(b"new")
        return rows_of(*arguments)

    rows_of = bulk.rows_of
    monkeypatch.setattr(bulk, "rows_of", late)
    status, output = program(predict, *options(pictures, tmp_path / "parts"))
    assert (status, "the files have changed since" in output) == (1, True), output
    assert not list((tmp_path / "parts").glob("part-*.json"))


def test_parts_that_are_missing_are_not_joined(program: Program, pictures: Path, tmp_path: Path) -> None:
    program(predict, *options(pictures, tmp_path / "parts", "csv", "--share", "2/3"))
    status, output = program(join, "--folder", tmp_path / "parts", "--file", tmp_path / "joined")
    assert status == 1
    assert "2 of 3 parts are still to be written, the first of them part-00001-of-00003.csv" in output
    assert not (tmp_path / "joined").exists()
    status, output = program(join, "--folder", tmp_path, "--file", tmp_path / "joined")
    assert (status, "plan.json is missing" in output) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "table"], "--output needs --format json or csv, not table"),
        (["--save_inputs", "x"], "--save_inputs does not go with --output"),
        (["--share", "1/2", "--devices", 2], "take either it or --devices 2"),
        (["--share", "3/2"], "--share 3/2 is no share"),
    ],
)
def test_what_does_not_go_together_is_refused(
    program: Program, pictures: Path, tmp_path: Path, arguments: list[object], message: str
) -> None:
    status, output = program(predict, *options(pictures, tmp_path / "parts"), *arguments)
    assert (status, message in output) == (1, True), output


def test_output_among_the_pictures_and_pipes_are_refused(program: Program, pictures: Path) -> None:
    assert "lies in" in program(predict, *options(pictures, pictures / "parts"))[1]
    assert "standard input can't be shared" in program(predict, "-", "--output", "x", "--format", "csv")[1]
    assert "need --output FOLDER" in program(predict, pictures, "--devices", 2)[1]


def test_a_folder_of_something_else_is_left_alone(program: Program, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    status, output = program(predict, *options(pictures, tmp_path / "mine"))
    assert (status, "holds something else" in output) == (1, True)
    assert [path.name for path in (tmp_path / "mine").glob("[!.]*")] == ["letter.txt"]


def test_a_damaged_part_is_named(
    program: Program, pictures: Path, tmp_path: Path, whole: Callable[[str], bytes]
) -> None:
    part = tmp_path / "whole_json" / Share(1, 1).part("json")
    lines = whole("json").splitlines(keepends=True)
    partial = part.with_name(part.name + shares.PARTIAL)
    for content, message in (
        (lines[1], "has .* where the list has"),
        (b"[]\n", "is damaged in row 1"),
        (b"".join(lines) + lines[0], "behind the end of its share"),
    ):
        part.unlink(missing_ok=True)
        partial.write_bytes(content)
        with pytest.raises(UserError, match=message):
            bulk.write_share(bulk_options(pictures, tmp_path / "whole_json"), Share(1, 1), None)


def bulk_options(pictures: Path, folder: Path) -> bulk.BulkOptions:
    return bulk.BulkOptions(
        [str(pictures)], "packaged", "json", 1, 2, "auto", None, False, str(folder), 1, None, "cpu", "lightning_logs"
    )


def plan(**changed: object) -> str:
    """One of two parts without rows, but for what has changed."""
    return json.dumps({"files": 0, "list": "e3b0c442", "shares": 2, "format": "csv", **changed})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "is no plan of a prediction: expected files, format, list, shares"),
        ("[", "can't be read"),
        ("[]", "is no plan of a prediction"),
        (plan(shares="2"), 'is no plan of a prediction: it has shares "2"'),
        (plan(shares=0), "is no plan of a prediction: it has shares 0"),
        (plan(shares=True), "is no plan of a prediction: it has shares true"),
        (plan(files=-1), "is no plan of a prediction: it has files -1"),
        (plan(files=2.0, list=None), "is no plan of a prediction: it has files 2.0, list null"),
        (plan(format="xml"), 'is no plan of a prediction: it has format "xml"'),
        (plan(format=["csv"]), 'is no plan of a prediction: it has format ["csv"]'),
    ],
)
def test_a_plan_that_is_none_is_named(
    program: Program, pictures: Path, tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / shares.PLAN).write_text(content)
    for arguments in (
        (join, "--folder", tmp_path, "--file", tmp_path / "joined"),
        (predict, *options(pictures, tmp_path)),
    ):
        status, output = program(*arguments)
        assert (status, message in output) == (1, True), output
