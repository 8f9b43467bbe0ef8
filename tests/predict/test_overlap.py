"""predict.py refuses to write what the same command reads, by a pattern too, and nothing else."""

import glob
from pathlib import Path

import pytest
from conftest import Program
from PIL import Image

from fmnist_lightning.predict import classifier as inference
from fmnist_lightning.predict.overlap import fits
from fmnist_lightning.predict.predict import predict

FILES = ["a.png", ".b.png", "w/a.png", "w/sea.jpg", "w/.hidden/c.png", "w/shop/d.png", "w/shop/new/e.png", "v/[1].png"]
PATTERNS = [
    "*",
    "*.png",
    ".*",
    "*/*",
    "w/*",
    "w/*.png",
    "w/?.png",
    "w/s*",
    "w/[!a]*",
    "*/a.png",
    "**",
    "**/*",
    "**/*.png",
    "w/**",
    "w/**/*.png",
    "w/**/shop/*",
    "w/**/new",
    "w/.*/*",
    "w/**/.hidden/*.png",
    "**/shop/**",
    "**/**/*.png",
    "w/*/new/*",
    "v/[[]1].png",
    "?/*[!g]",
    "*/*/*",
    "*/*/*/*",
    "w/**x/*",
    "**/.*",
    "nowhere/*",
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with small pictures; a net that is asked for is an error."""
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 2)).save(tmp_path / name)
    (tmp_path / "link").symlink_to("w")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(inference, "load_classifier", load)
    return tmp_path


def load(*_: object, **__: object) -> None:
    raise OSError("NET")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_path_fits_where_glob_finds_it(folder: Path, pattern: str) -> None:
    paths = [path.relative_to(folder) for path in folder.rglob("*") if "link" not in path.parts]
    found = {Path(name) for name in glob.glob(pattern, recursive=True) if not name.startswith("link")}  # noqa: PTH207
    assert {path for path in paths if fits(path.parts, Path(pattern).parts)} == found - {Path()}


@pytest.mark.parametrize(
    ("pattern", "save_inputs", "read"),
    [
        ("w/*.png", "w", True),
        ("w/*.png", "./v/../w/", True),
        ("w/*.png", "link", True),
        ("link/*.png", "w", True),
        ("*/*.png", "link", True),
        ("w/*a.png", "w", True),
        ("w/0*", "w", True),
        ("w/*", "w/seen", True),
        ("w/s*", "w/shop/seen", True),
        ("*", "new/seen", True),
        ("w/**/*.png", "w/seen", True),
        ("w/*/*.png", "w/seen", True),
        ("w/**", "w", True),
        ("w/*.png", "w/seen", False),
        ("w/*.png", "v", False),
        ("w/*.png", ".", False),
        ("w/*.jpg", "w", False),
        ("w/**/*.jpg", "w/seen", False),
        ("w/a*.png", "w", False),
        ("w/?.png", "w", False),
        ("w/sh*", "w/seen", False),
        ("w/*/", "w", False),
        ("w/*/*.png", "w", False),
        ("w/*", "w/.seen", False),
        ("w/*", "wide", False),
        ("v/[1].png", "v", False),
    ],
)
def test_saved_inputs_do_not_go_where_a_pattern_reads(
    program: Program, folder: Path, pattern: str, save_inputs: str, read: bool
) -> None:
    for name in (pattern, f"{folder}/{pattern}"):
        status, output = program(predict, "a.png", name, "--save_inputs", save_inputs)
        message = f"--save_inputs {save_inputs} would be read too, by {name}: name another folder" if read else "NET"
        assert (status, output) == (1, f"error: {message}\n")


@pytest.mark.parametrize(
    ("pattern", "output", "read"),
    [
        ("w/*", "w/out", True),
        ("w/*", "w/new/out", True),
        ("w/o?t", "w/out", True),
        ("w/**", "w/out", True),
        ("**/*.json", "w/out", True),
        ("w/out/.*", "w/out", True),
        ("w/*.png", "w/out", False),
        ("w/**/*.png", "w/out", False),
        ("w/**/*.csv", "w/out", False),
        ("w/s*", "w/out", False),
        ("w/*", "out", False),
    ],
)
def test_rows_do_not_go_where_a_pattern_reads(
    program: Program, folder: Path, pattern: str, output: str, read: bool
) -> None:
    status, told = program(predict, "a.png", pattern, "--output", output, "--format", "json")
    message = f"--output {output} would be read too, by {pattern}: name another folder" if read else "NET"
    assert (status, told) == (1, f"error: {message}\n")
    assert not Path(output).exists()
