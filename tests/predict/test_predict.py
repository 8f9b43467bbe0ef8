"""The predict command: a row for each picture, a message for each fault, and nothing that a file name could forge."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Program, run_command
from PIL import Image

from fmnist_lightning.data.sets.drawn import draw
from fmnist_lightning.data.sets.fashion_mnist import CLASSES, FASHION_MNIST
from fmnist_lightning.models.pretrained import Pretrained, load_pretrained, to_safetensors
from fmnist_lightning.predict import inputs
from fmnist_lightning.predict.classifier import load_classifier
from fmnist_lightning.predict.pictures import Framed, load_picture
from fmnist_lightning.predict.predict import predict
from fmnist_lightning.predict.rows import RowFormat

ROOT = Path(__file__).parents[2]
CPU = ("--accelerator", "cpu")
GARMENTS = torch.cat([draw(name, 1, torch.Generator().manual_seed(0)) for name in CLASSES]).numpy()  # (10, 28, 28)
IDX = bytes([0, 0, 8, 3]) + np.array(GARMENTS.shape, ">i4").tobytes() + GARMENTS.tobytes()


@pytest.fixture(autouse=True)
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with six pictures in four folders."""
    (tmp_path / "shop").mkdir()
    monkeypatch.chdir(tmp_path / "shop")
    for label, name in enumerate(["b.png", "a.jpg", "men/c.webp", "men/a.jpg", "women/new/d.png", "women/e.bmp"]):
        put(name, label)
    return tmp_path / "shop"


def put(name: str, label: int, kind: str | None = None) -> None:
    """Write a dark garment on white."""
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(255 - GARMENTS[label]).resize((80, 96)).save(name, kind)


def start(*arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(ROOT / "scripts" / "predict.py"), *map(str, arguments), *CPU]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def run_csv(program: Program, *arguments: object) -> tuple[int, list[dict[str, str]], list[str]]:
    """The exit status, the rows, and what followed each `error: `."""
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


def test_rows_match_the_python_interface(program: Program, shop: Path) -> None:
    names = ["men/a.jpg", "men/c.webp", "b.png", "a.jpg"]
    rows = run_json(program, "men", "*.png", "a.jpg", "--top_k", 3)
    for row, name, top in zip(rows, names, load_classifier(device="cpu")(names).top(3), strict=True):
        found = [(each["label"], each["class"], pytest.approx(each["probability"], abs=2e-6)) for each in row["top"]]
        assert [(label, CLASSES[label], prob) for label, prob in top] == found
        assert row == {"file": name, **row["top"][0], "top": row["top"], "dataset": "fashion_mnist"}


def test_row_formats_are_exact() -> None:
    boot = {"label": 9, "class": "Ankle boot", "probability": 0.875}
    top = [boot, {"label": 0, "class": "T-shirt/top", "probability": 0.123457}]
    row = {"file": "a, b.png", **boot, "top": top, "dataset": "fashion_mnist"}
    formats = {kind: RowFormat(kind, 2, FASHION_MNIST) for kind in ("table", "csv", "json")}
    written = {kind: rows.header() + rows.line(row) for kind, rows in formats.items()}
    assert written["table"] == (
        "class       probability  class       probability  picture\n"
        "Ankle boot       87.50%  T-shirt/top      12.35%  a, b.png\n"
    )
    assert written["csv"] == (
        "file,label,class,probability,label_2,class_2,probability_2,dataset,note\n"
        '"a, b.png",9,Ankle boot,0.875,0,T-shirt/top,0.123457,fashion_mnist,\n'
    )
    assert written["json"] == json.dumps(row) + "\n"


def test_doubtful_rows_have_a_note(program: Program) -> None:
    checks = np.kron(np.indices((8, 8)).sum(axis=0) % 2, np.full((20, 20), 200))
    Image.fromarray(checks.astype(np.uint8)).save("checks.png")
    names = ("checks.png", "b.png")
    assert [row.get("note") for row in run_json(program, *names)] == ["background is not plain", None]
    assert [row["note"] for row in run_csv(program, *names)[1]] == ["background is not plain", ""]
    *_, doubtful, sure = program(predict, *names, *CPU)[1].splitlines()
    assert doubtful.endswith("  checks.png (background is not plain)")
    assert sure.endswith("  b.png")
    assert str(load_classifier(device="cpu")("checks.png")).endswith("% (background is not plain)")


def test_standard_output_has_only_rows(
    program: Program, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = [row["label"] for row in run_json(program, "a.jpg", "b.png")]
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(Path("a.jpg").read_bytes())))
    assert run_command(monkeypatch, predict, "-", "nowhere.png", "b.png", "--format", "json", *CPU) == 1
    out, err = capsys.readouterr()
    found = [json.loads(line) for line in out.splitlines()]
    assert [(row["file"], row["label"]) for row in found] == list(zip(["-", "b.png"], expected, strict=True))
    assert [line.partition(":")[0] for line in err.splitlines()] == ["error", "error"]
    assert "nowhere.png" in err


def test_saved_inputs_are_what_the_model_saw(program: Program, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "inputs"
    arguments = ("--invert", "never", "--save_inputs", folder, "--batch_size", 2)
    rows = run_csv(program, "a.jpg", "nowhere.png", "men/a.jpg", "women/new/d.png", *arguments)[1]
    saved = [folder / name for name in ("000000_a.png", "000001_a.png", "000002_d.png")]
    assert sorted(folder.iterdir()) == saved
    images = [np.asarray(Image.open(path)) for path in saved]
    assert np.array_equal(images, [load_picture(row["file"], FASHION_MNIST, "never").pixels[0] for row in rows])
    assert not np.array_equal(images, [load_picture(row["file"], FASHION_MNIST).pixels[0] for row in rows])
    assert [row["class"] for row in rows] == load_classifier(device="cpu")(np.stack(images)).names


def test_each_bad_name_has_a_message_and_the_rest_its_rows(program: Program) -> None:
    Path("cut.png").write_bytes(Path("b.png").read_bytes()[:200])
    Path("bare").mkdir()
    Image.new("L", (90, 90), "white").save("blank.png")
    names = ["cut.png", "a.jpg", "bare", "blank.png", "b.png", "nowhere.png", "no*.gif", "men/c.webp"]
    status, rows, errors = run_csv(program, *names, "--batch_size", 2)
    assert (status, errors.pop()) == (1, "cannot read 5 of 8 pictures")
    assert [row["file"] for row in rows] == ["a.jpg", "b.png", "men/c.webp"]
    bad = {"cut.png": "decoded", "bare": "folder without pictures", "blank.png": "background"}
    bad |= {"nowhere.png": "No such file", "no*.gif": "matches no file"}
    for error, (name, reason) in zip(errors, bad.items(), strict=True):
        assert error.startswith(f"cannot read {name}: it ")
        assert reason in error


@pytest.mark.parametrize("words", [("--save_inputs", "b.png/x"), ("--weights", "packagd"), ("--devices", "2")])
def test_wrong_option_is_named(program: Program, words: tuple[str, str]) -> None:
    status, output = program(predict, "a.jpg", *words)
    assert (status, words[0] in output or words[1] in output) == (1, True), output


TRICKS = ["\x1b[2J\x1b]0;owned\x07.png", "a\nTrouser 100.00%  b.png", "a\rb.png", 'a",b.png', "\u202egnp.exe.png"]


def test_tricky_names_are_escaped_in_tables_and_kept_in_files(program: Program) -> None:
    for trick in TRICKS:
        put(f"odd/{trick}", 9)
        Path("odd", f"empty{trick}").touch()
    lines = program(predict, "odd", *CPU)[1].removesuffix("\n").split("\n")
    assert [line[:6] for line in lines if line.startswith("error")] == ["error:"] * (len(TRICKS) + 1)
    assert len(lines) == 1 + 2 * len(TRICKS) + 1
    assert all(line.isprintable() for line in lines)
    expected = sorted(f"odd/{trick}" for trick in TRICKS)
    assert [row["file"] for row in run_csv(program, "odd")[1]] == expected
    assert [row["file"] for row in run_json(program, "odd")] == expected


def test_name_that_the_encoding_lacks_is_escaped(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    put(name, 3)
    assert files(program, name) == [r"caf\udce9.png"]
    assert [row["file"] for row in run_json(program, name)] == [name]
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert run_command(monkeypatch, predict, name, *CPU) == 0
    assert b"  caf\\udce9.png\n" in raw.getvalue()


@pytest.mark.parametrize("name", ["[1]", "null", "true", "1.5", "~", "{a: b}", "a, b", "@c", "a=b", "*"])
def test_name_that_looks_like_a_value_is_a_name(program: Program, name: str) -> None:
    put(name, 8, "PNG")
    assert files(program, name) == [name]


def test_reader_that_has_enough_ends_the_program_quietly() -> None:
    count = 3000  # rows are more than a pipe holds, 64 KiB
    Path("many").write_bytes(IDX[:4] + np.array([count, 28, 28], ">i4").tobytes() + GARMENTS.tobytes() * (count // 10))
    with start("many") as process:
        assert process.stdout
        assert process.stderr
        line = process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert line.split() == [b"class", b"probability", b"picture"]
    assert process.returncode == 0


def test_ctrl_c_ends_a_program_that_waits_for_a_pipe() -> None:
    os.mkfifo("pipe")
    process = start("b.png", "pipe", "--format", "csv")
    try:
        assert process.stdout
        assert process.stdout.readline().startswith(b"file,")  # the header, before anything is read
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    finally:
        process.kill()
        process.communicate()


def test_model_of_drawn_images_says_so_in_every_row(program: Program) -> None:
    net, card = load_pretrained()
    Path("drawn.safetensors").write_bytes(to_safetensors(Pretrained(net, {**card, "dataset": "drawn"})))
    for kind in ("table", "json", "csv"):
        words = ("men", "--format", kind, *CPU)
        output = program(predict, *words, "--weights", "drawn.safetensors")[1].lower()
        assert ["drawn" in line for line in output.splitlines()[-3:]] == [True] * 3
        assert "\nwarning: " in output
        assert "drawn" not in program(predict, *words)[1].lower()


@pytest.mark.parametrize(
    ("images", "folder", "first", "second"),
    [
        (["men", "."], "men/seen", False, False),  # in a folder that is read
        (["."], ".", False, False),
        (["men"], "link", False, False),  # a link to men
        (["men/*.jpg"], "men", False, False),  # holds a picture that is read
        (["link/*.jpg"], "./women/../men/", False, False),
        (["b.png"], ".", False, False),
        (["*/*.*"], "seen", True, False),  # which matches its pictures
        (["**/*.png"], "new/seen", True, False),
        (["*"], "new/seen", True, False),  # which matches its parent
        (["*.png"], "seen", True, True),
        (["men/*.jpg"], "men/seen", True, True),
        (["men"], "seen", True, True),
    ],
)
def test_saved_inputs_are_never_read(
    program: Program, shop: Path, images: list[str], folder: str, first: bool, second: bool
) -> None:
    """A command that would read them is refused before it writes, the first time or when it is repeated."""
    (shop / "link").symlink_to("men")
    for succeeds in (first, second):
        before = sorted(shop.rglob("*"))
        status, output = program(predict, *images, "--save_inputs", folder, *CPU)
        assert (status, "another folder" in output) == ((0, False) if succeeds else (1, True)), output
        assert "00000" not in output
        assert succeeds or sorted(shop.rglob("*")) == before


def test_memory_does_not_grow_with_the_number_of_pictures(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    living: weakref.WeakValueDictionary[int, np.ndarray] = weakref.WeakValueDictionary()
    alive: list[int] = []  # pictures whenever one is read
    counting = threading.Lock()  # else two reading threads may take one number

    def read_picture(*_: object) -> Framed:
        with counting:
            image = living[len(alive)] = GARMENTS[:1].copy()
            alive.append(len(living))
        return Framed(image, "")

    monkeypatch.setattr(inputs, "open_seekable", lambda name: io.BytesIO(b"picture"))
    monkeypatch.setattr(inputs, "read_picture", read_picture)
    names = [f"{number}.png" for number in range(500)]
    assert files(program, *names, "--batch_size", 20) == names
    assert len(alive) == 500
    assert max(alive) <= 2 * 20 + 5 * 4 + 2  # two batches, and what four threads read ahead
    alive.clear()
    assert len(list(inputs.read_all(names, FASHION_MNIST))) == max(alive) == 500  # the control: a list keeps all


def test_progress_bar_counts_files_and_spares_the_rows(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[predict.__module__], "DELAY", 0)
    command = (predict, *["b.png"] * 29, "nowhere.png", *CPU)
    Path("x-images-idx3-ubyte").write_bytes(IDX)
    for messages, rows, shown in ((True, False, True), (True, True, False), (False, False, False)):
        monkeypatch.setattr(sys.stderr, "isatty", lambda answer=messages: answer)
        monkeypatch.setattr(sys.stdout, "isatty", lambda answer=rows: answer)
        status, output = program(*command)
        assert status == 1
        assert all(line.endswith("  b.png") for line in output.split("\n")[1:30])
        assert ("30/30" in output) == shown
        assert re.search(r"[\r\n]error: cannot read nowhere\.png: .*\n", output)
        # A number that is not known in advance.
        assert ("10 pictures" in program(predict, "x-images-idx3-ubyte", *CPU)[1]) == shown
