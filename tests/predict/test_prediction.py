"""What a user sees of predict.py: a row a picture, a message a fault, and nothing that a file's name could forge."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Program, pack
from PIL import Image

from fmnist_lightning.cli import parse
from fmnist_lightning.data.drawn import draw
from fmnist_lightning.data.fashion_mnist import CLASSES
from fmnist_lightning.models.pretrained import Pretrained, load_pretrained, save_pretrained
from fmnist_lightning.predict.classifier import load_classifier
from fmnist_lightning.predict.pictures import load_picture
from fmnist_lightning.predict.predict import predict, say
from fmnist_lightning.predict.rows import FORMATS, Candidate, Row

ROOT = Path(__file__).parents[2]
CPU = ("--accelerator", "cpu")
GARMENTS = torch.cat([draw(name, 1, torch.Generator().manual_seed(0)) for name in CLASSES]).numpy()  # (10, 28, 28)
IDX_MAGIC = bytes([0, 0, 8, 3])
IDX = IDX_MAGIC + np.array(GARMENTS.shape, ">i4").tobytes() + GARMENTS.tobytes()


@pytest.fixture(autouse=True)
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with six pictures in three folders."""
    (tmp_path / "shop").mkdir()
    monkeypatch.chdir(tmp_path / "shop")
    for label, name in enumerate(["b.png", "a.jpg", "men/c.webp", "men/a.jpg", "women/new/d.png", "women/e.bmp"]):
        put(name, label)
    return tmp_path / "shop"


def put(name: str, label: int, kind: str | None = None) -> None:
    """Write a dark garment before white."""
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(255 - GARMENTS[label]).resize((80, 96)).save(name, kind)


def script(*arguments: object) -> list[str]:
    return [sys.executable, str(ROOT / "scripts" / "predict.py"), *map(str, arguments), *CPU]


def run_csv(program: Program, *arguments: object) -> tuple[int, list[dict[str, str]], list[str]]:
    """The exit status, the rows, and what followed `error: `."""
    status, output = program(predict, *arguments, "--format", "csv", *CPU)
    rows, *errors = re.split(r"^error: ", output, flags=re.MULTILINE)
    return status, list(csv.DictReader(io.StringIO(rows, newline=""))), [error.removesuffix("\n") for error in errors]


def run_json(program: Program, *arguments: object) -> list[dict[str, Any]]:
    output = program(predict, *arguments, "--format", "json", *CPU)[1]
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def files(program: Program, *arguments: object) -> list[str]:
    status, rows, errors = run_csv(program, *arguments)
    assert (status, errors) == (0, [])
    return [row["file"] for row in rows]


def test_files_folders_and_patterns_are_taken_in_order(program: Program, shop: Path) -> None:
    assert files(program, "b.png", "a.jpg", "b.png") == ["b.png", "a.jpg", "b.png"]
    assert files(program, "women", shop / "men")[:2] == ["women/e.bmp", "women/new/d.png"]
    assert files(program, "women", shop / "men")[2:] == [f"{shop}/men/a.jpg", f"{shop}/men/c.webp"]
    assert files(program, "*.png", "**/*.jpg", "m?n") == ["b.png", "a.jpg", "men/a.jpg", "men/a.jpg", "men/c.webp"]


@pytest.mark.parametrize("top_k", [1, 3, 10])
def test_each_row_is_what_the_python_interface_says(program: Program, top_k: int) -> None:
    names = ["a.jpg", "men/c.webp", "b.png"]
    rows = run_json(program, *names, "--top_k", top_k)
    for row, name, top in zip(rows, names, load_classifier(device="cpu")(names).top(top_k), strict=True):
        found = [(each["label"], each["class"], pytest.approx(each["probability"], abs=2e-6)) for each in row["top"]]
        assert [(label, CLASSES[label], prob) for label, prob in top] == found
        assert row == {"file": name, **row["top"][0], "top": row["top"], "dataset": "fashion_mnist"}


def test_the_three_formats_to_the_letter() -> None:
    row = Row("a, b.png", [Candidate(9, "Ankle boot", 0.875), Candidate(0, "T-shirt/top", 0.1234567)], "fashion_mnist")
    written = {kind: header(2) + line(row) for kind, (header, line) in FORMATS.items()}
    assert written["table"] == (
        "class       probability  class       probability  picture\n"
        "Ankle boot       87.50%  T-shirt/top      12.35%  a, b.png\n"
    )
    assert written["csv"] == (
        "file,label,class,probability,label_2,class_2,probability_2,dataset\n"
        '"a, b.png",9,Ankle boot,0.875,0,T-shirt/top,0.123457,fashion_mnist\n'
    )
    assert written["json"] == (
        '{"file": "a, b.png", "label": 9, "class": "Ankle boot", "probability": 0.875, "top": '
        '[{"label": 9, "class": "Ankle boot", "probability": 0.875}, '
        '{"label": 0, "class": "T-shirt/top", "probability": 0.123457}], "dataset": "fashion_mnist"}\n'
    )


@pytest.mark.parametrize("name", ["mine-images-idx3-ubyte", "t10k-images.idx3-ubyte.gz", "of no known name"])
def test_an_idx_file_is_data_image_by_image(program: Program, name: str) -> None:
    Path(name).write_bytes(pack(IDX) if name.endswith(".gz") else IDX)
    rows = run_json(program, name)
    assert [row["file"] for row in rows] == [f"{name}[{index}]" for index in range(10)]
    assert [row["class"] for row in rows] == load_classifier(device="cpu")(GARMENTS).names


def test_standard_input_is_a_picture_and_messages_stay_out_of_the_rows(program: Program) -> None:
    command = script("-", "nowhere.png", "b.png", "--format", "json")
    result = subprocess.run(command, input=Path("a.jpg").read_bytes(), capture_output=True)
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row.pop("file") for row in found] == ["-", "b.png"]
    assert [row["label"] for row in found] == [row["label"] for row in run_json(program, "a.jpg", "b.png")]
    expected = ["error: nowhere.png: does not exist", "error: 1 of 3 pictures could not be read"]
    assert result.stderr.decode().splitlines() == expected
    assert result.returncode == 1


@pytest.mark.parametrize("batch_size", [1, 2, 6])
def test_the_batch_size_changes_nothing(program: Program, batch_size: int) -> None:
    names = (".", "nowhere.png", "a.jpg")
    of_one_batch, found = (run_csv(program, *names, "--batch_size", size) for size in (256, batch_size))
    for one, other in zip(found[1], of_one_batch[1], strict=True):
        assert float(one.pop("probability")) == pytest.approx(float(other.pop("probability")), abs=2e-6)
    assert found == of_one_batch
    assert len(found[1]) == 7


@pytest.mark.parametrize("invert", ["auto", "always", "never"])
def test_saved_inputs_are_the_pixels_that_the_net_saw(program: Program, tmp_path: Path, invert: Any) -> None:
    names = ["a.jpg", "nowhere.png", "men/a.jpg", "women/new/d.png"]
    inputs = tmp_path / "new" / "inputs"
    rows = run_csv(program, *names, "--invert", invert, "--save_inputs", inputs, "--batch_size", 2)[1]
    saved = sorted(inputs.iterdir())
    assert [path.name for path in saved] == ["000000_a.png", "000001_a.png", "000002_d.png"]
    expected = [load_picture(row["file"], invert) for row in rows]
    for path, image in zip(saved, expected, strict=True):
        with Image.open(path) as picture:
            assert (picture.mode, picture.size) == ("L", (28, 28))
            assert (np.asarray(picture) == image).all()
    assert [row["class"] for row in rows] == load_classifier(device="cpu")(np.stack(expected)).names
    assert np.array_equal(expected, [load_picture(row["file"]) for row in rows]) is (invert != "never")


def test_each_bad_name_has_its_message_and_the_good_ones_go_on(program: Program) -> None:
    Path("cut.png").write_bytes(Path("b.png").read_bytes()[:200])
    Path("empty.png").touch()
    Path("text.jpg").write_text("no picture")
    Path("bare").mkdir()
    Image.new("L", (90, 90), "white").save("blank.png")
    Path("link.png").symlink_to("gone.png")
    Path("x-images-idx3-ubyte").write_bytes(IDX[:-1])
    reasons = {
        "cut.png": "is cut short or damaged",
        "empty.png": "is empty",
        "text.jpg": "is no picture, or damaged",
        "bare": "is a folder without pictures",
        "blank.png": "shows nothing but background",
        "link.png": "is a link to gone.png, which does not exist",
        "x-images-idx3-ubyte": "holds 7,855 bytes; its header tells of 10 images, which is 7,856",
        "nowhere.png": "does not exist",
        "no*.gif": "matches no file",
    }
    bad = iter(reasons)
    names = [name for good in ("a.jpg", "b.png", "men/c.webp") for name in (next(bad), good, next(bad), next(bad))]
    status, rows, errors = run_csv(program, *names, "--batch_size", 2)
    assert status == 1
    assert [row["file"] for row in rows] == ["a.jpg", "b.png", "men/c.webp"]
    assert errors.pop() == "9 of 12 pictures could not be read"
    for error, (name, reason) in zip(errors, reasons.items(), strict=True):
        assert error.startswith(f"{name}: {reason}")


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ([], 2, "images"),
        (["a.jpg", "--format", "xml"], 2, 'key "format"'),
        (["a.jpg", "--top_k", "0"], 2, 'key "top_k"'),
        (["a.jpg", "--top_k", "11"], 2, 'key "top_k"'),
        (["a.jpg", "--batch_size", "0"], 2, 'key "batch_size"'),
        (["a.jpg", "--invert", "maybe"], 2, 'key "invert"'),
        (["a.jpg", "--colour", "red"], 2, "--colour"),
        (["a.jpg", "--save_inputs", "b.png/inputs"], 1, "'b.png"),
        (["a.jpg", "--weights", "nowhere.safetensors"], 1, "error: nowhere.safetensors does not exist"),
        (["a.jpg", "--weights", "packagd"], 1, "error: packagd is no trained net: name packaged, last, a run folder"),
    ],
)
def test_an_option_that_cannot_be_followed_is_named_with_its_exit_status(
    program: Program, arguments: list[str], status: int, words: str
) -> None:
    found, output = program(predict, *arguments)
    assert found == status
    assert words in output


TRICKS = ["\x1b[2J\x1b]0;owned\x07.png", "a\nTrouser 100.00%  b.png", "a\rb.png", 'a",b.png', "\u202egnp.exe.png"]


@pytest.mark.parametrize("trick", TRICKS, ids=ascii)
def test_a_name_plays_no_tricks_on_the_terminal_and_comes_through_in_csv_and_json(program: Program, trick: str) -> None:
    put(f"odd/{trick}", 9)
    Path("odd", f"empty{trick}").touch()
    lines = program(predict, "odd", *CPU)[1].removesuffix("\n").split("\n")
    assert [line.split()[0] for line in lines[:1] + lines[2:]] == ["class", "error:", "error:"]
    assert all(line.isprintable() for line in lines)
    assert [row["file"] for row in run_csv(program, "odd")[1]] == [f"odd/{trick}"]
    assert [row["file"] for row in run_json(program, "odd")] == [f"odd/{trick}"]


def test_a_name_that_is_no_text_is_escaped_and_comes_through_in_json(program: Program) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    put(name, 3)
    assert r"  caf\udce9.png" in program(predict, name, *CPU)[1]
    assert files(program, name) == [r"caf\udce9.png"]
    assert [row["file"] for row in run_json(program, name)] == [name]


@pytest.mark.parametrize("name", ["[1]", "null", "true", "1.5", "~", "{a: b}", "a, b", "@c", "a=b", "*"])
def test_a_name_that_looks_like_a_value_is_a_name(program: Program, name: str) -> None:
    put(name, 8, "PNG")
    assert files(program, name) == [name]


def test_what_the_outputs_encoding_lacks_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="ascii"))
    say("caf\xe9.png\n")
    assert raw.getvalue() == b"caf\\xe9.png\n"


def test_a_reader_who_has_enough_ends_it_quietly() -> None:
    count = 3000
    header = IDX_MAGIC + np.array([count, 28, 28], ">i4").tobytes()
    Path("many").write_bytes(header + GARMENTS.tobytes() * (count // 10))
    with subprocess.Popen(script("many"), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        line = process.stdout.readline()
        process.stdout.close()  # with more to come than a pipe holds, 64 KiB
        assert process.stderr.read() == b""
    assert line.split() == [b"class", b"probability", b"picture"]
    assert process.returncode == 0


def test_what_the_stand_in_taught_says_so_in_every_row(program: Program) -> None:
    net, card = load_pretrained()
    weights = save_pretrained(Pretrained(net, {**card, "dataset": "drawn"}), Path("net.safetensors"))
    for kind in FORMATS:
        *rows, warning = program(predict, "men", "--format", kind, "--weights", weights, *CPU)[1].splitlines()
        assert warning == "WARNING: trained on the DRAWN STAND-IN, not Fashion-MNIST; it knows no photographs"
        assert ["drawn" in row.lower() for row in rows][-2:] == [True, True]
        assert "drawn" not in program(predict, "men", "--format", kind, *CPU)[1].lower()


@pytest.mark.parametrize(("folder", "words"), [("men/seen", "lies in men"), ("b.png", "is a file"), (".", "lies in .")])
def test_saved_inputs_do_not_go_where_pictures_are_read(program: Program, folder: str, words: str) -> None:
    before = sorted(Path().rglob("*"))
    status, output = program(predict, "men", ".", "--save_inputs", folder, *CPU)
    assert status == 1
    assert words in output
    assert sorted(Path().rglob("*")) == before


def test_a_flag_before_a_picture_takes_none_of_it() -> None:
    assert parse(predict, ["--tta", "shop", "b.png"]) == {**parse(predict, ["shop", "b.png"]), "tta": True}
    assert parse(predict, ["--tta", "false", "b.png"])["images"] == ["b.png"]


def test_help_names_every_option_and_waits_for_no_heavy_import(program: Program) -> None:
    status, output = program(predict, "--help")
    assert status == 0
    assert 'patterns such as "shop/**/*.jpg"' in " ".join(output.split())
    assert all(f"--{option}" in output for option in parse(predict, ["a.jpg"]) if option != "images")
    heavy = "import sys, fmnist_lightning.prediction; sys.exit(bool({'torch', 'numpy', 'PIL'} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", heavy], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
