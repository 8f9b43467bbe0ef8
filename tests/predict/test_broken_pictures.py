"""What is no whole picture of something is refused by name and reason, before it can do harm."""

import io
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from fmnist_lightning.predict.pictures import (
    MAX_PIXELS,
    NOTHING_FOUND,
    PictureError,
    check_pixels,
    load_picture,
    prepare,
    read_picture,
)

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 28 28\n%%EndComments\n%%EOF\n"


def boot(kind: str) -> bytes:
    """A picture's file of a few thousand bytes, which is whole."""
    image = np.random.default_rng(0).integers(0, 100, (60, 50), np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.pad(image, 9, constant_values=255)).save(file, kind)
    read_picture(file)
    return file.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header tells of so many pixels."""
    parts = [
        (b"IHDR", struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ]
    chunks = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("size", [(1, 1), (28, 28), (40, 90)])
@pytest.mark.parametrize("colour", ["white", "black", "teal"])
def test_nothing_but_background_is_refused(size: tuple[int, int], colour: str) -> None:
    with pytest.raises(PictureError, match=NOTHING_FOUND):
        prepare(Image.new("RGB", size, colour))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"to whom it may concern\n", "is no picture, or damaged, .* save it as one of PNG, JPEG, "),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is no picture"),
        (EPS, "is no picture, or damaged, or of a kind that is not read here"),
        (boot("PNG")[:8], "is no picture"),
        (boot("PNG")[:600], "is cut short or damaged"),
        (boot("JPEG")[:600], "is cut short or damaged .image file is truncated"),
        (png_that_claims(400, 400), "is cut short or damaged"),
        (png_that_claims(10_000, 10_000), "has 10,000 x 10,000 pixels; at most 89,478,485 in all are read: make it"),
        (png_that_claims(100_000, 100_000), "has too many pixels; at most 89,478,485 are read"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_is_no_whole_picture_is_refused_by_name_and_reason(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "boot.png").write_bytes(content)
    with pytest.raises(PictureError, match=rf"boot\.png: {words}"):
        load_picture(tmp_path / "boot.png")


def test_pillow_itself_would_take_postscript() -> None:
    with Image.open(io.BytesIO(EPS)) as image:
        assert image.format == "EPS"


def test_a_bomb_is_refused_where_warnings_are_errors_too() -> None:
    with pytest.raises(PictureError, match="has too many pixels"):
        read_picture(io.BytesIO(png_that_claims(10_000, 10_000)))


def test_the_last_size_that_is_read_is_the_limit() -> None:
    check_pixels(SimpleNamespace(size=(1, MAX_PIXELS)))
    with pytest.raises(PictureError, match="has 1 x 89,478,486 pixels"):
        check_pixels(SimpleNamespace(size=(1, MAX_PIXELS + 1)))


def test_no_pixels_and_unknown_modes_are_refused() -> None:
    with pytest.raises(PictureError, match="has no pixels"):
        prepare(Image.new("L", (0, 5)))
    with pytest.raises(PictureError, match="has the colour mode La, which can't be converted: save it as RGB"):
        prepare(Image.new("La", (5, 5)))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gone.png", r"gone\.png: does not exist"),
        ("link.png", r"link\.png: is a link to .*nowhere, which does not exist"),
        ("loop.png", r"loop\.png: can't be read \(.*symbolic links\)"),
        ("", r"can't be read \(Is a directory\)"),
        ("a\0b.png", r"is no name of a file \(embedded null byte\)"),
    ],
)
def test_a_file_that_cannot_be_opened_is_named(name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    with pytest.raises(PictureError, match=words):
        load_picture(f"{tmp_path}/{name}")
