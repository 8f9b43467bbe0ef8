"""Any picture of a garment becomes 28 x 28 pixels, light on dark; what is no picture is refused."""

import io
import itertools
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps, PngImagePlugin

from fmnist_lightning.data.pictures import PictureError
from fmnist_lightning.data.sets.fashion_mnist import FASHION_MNIST
from fmnist_lightning.predict import pictures
from fmnist_lightning.predict.pictures import (
    Gray,
    corners_of,
    find_box,
    fit,
    frame,
    inside_of_bars,
    load_picture,
    prepare,
    read_picture,
)

# By EXIF's number: from how a camera stores a picture to how it is meant.
TURNS: dict[int, Callable[[Gray], Gray]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.T,
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].T,
    8: lambda stored: np.rot90(stored),
}
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 28 28\n%%EndComments\n%%EOF\n"


def photo() -> Gray:
    """A dark garment of 84 x 60 pixels on white, off center, that looks different from each side."""
    picture = np.full((134, 105), 255, np.uint8)
    picture[20:104, 15:75] = np.arange(84)[:, None] + np.arange(60)
    return picture


PHOTO = Image.fromarray(photo())


def rectangle(height: int, width: int, scale: int = 3) -> Gray:
    """Black on white, off center."""
    picture = np.full((height * scale + 40, width * scale + 25), 255, np.uint8)
    picture[10 : 10 + height * scale, 20 : 20 + width * scale] = 0
    return picture


def prepared(pixels: Gray, **options: Any) -> Gray:
    return prepare(Image.fromarray(np.ascontiguousarray(pixels)), **options)[0]


def read_garment(file: io.BytesIO) -> Gray:
    return read_picture(file, FASHION_MNIST).pixels[0]


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def with_palette() -> Image.Image:
    """PHOTO with palette colors in the opposite order of their brightness."""
    image = ImageOps.invert(PHOTO).convert("P")
    image.putpalette([255 - index for index in range(256) for _ in range(3)])
    return image


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims this many pixels."""
    header = struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    chunks = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    ("kind", "image"),
    [
        *[("PNG", PHOTO), ("BMP", PHOTO), ("PPM", PHOTO)],
        *[("PNG", PHOTO.convert("RGB")), ("PNG", PHOTO.convert("RGBA")), ("PNG", PHOTO.convert("LA"))],
        *[("TIFF", PHOTO.convert("CMYK")), ("PNG", with_palette()), ("GIF", with_palette())],
        ("PNG", Image.fromarray(photo().astype(np.uint16) * 257)),
        ("PPM", Image.fromarray(photo().astype(np.int32) * 257)),
        ("TIFF", Image.fromarray(photo().astype(np.float32) / 255)),
    ],
)
def test_color_modes_give_the_same_pixels(kind: str, image: Image.Image) -> None:
    assert (read_garment(saved(image, kind)) == prepared(photo())).all()


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_transparent_palette_entry_is_background(kind: str) -> None:
    image = with_palette()
    image.putpalette([0, 255, 0, *image.getpalette()[3:]])  # entry 0, which was white, becomes green
    assert not (read_garment(saved(image, kind)) == prepared(photo())).all()
    assert (read_garment(saved(image, kind, transparency=0)) == prepared(photo())).all()


@pytest.mark.parametrize(("invert", "backing"), [("auto", 255), ("always", 255), ("never", 0)])
def test_transparent_is_white_or_black_for_never(invert: str, backing: int) -> None:
    opaque = photo() < 255
    pixels = np.full((*opaque.shape, 4), 99, np.uint8)  # a color that nobody sees
    pixels[opaque] = np.array([1, 1, 1, 0]) * photo()[opaque, None] + [50, 50, 50, 255]
    pixels[~opaque, 3] = 0
    expected = np.where(opaque, photo() + np.uint8(50), np.uint8(backing))
    assert (prepared(pixels, invert=invert) == prepared(expected, invert=invert)).all()


def test_garment_is_found_by_opacity_or_color_alone() -> None:
    mask = rectangle(28, 20)[..., None] == 0
    colored = np.where(mask, [255, 0, 0], [0, 130, 0]).astype(np.uint8)
    cut_out = np.where(mask, [128, 128, 128, 255], [128, 128, 128, 0]).astype(np.uint8)
    for picture in (colored, cut_out):
        assert (prepared(picture)[:, 4:24] > 100).all()
        assert not prepared(picture)[:, [*range(4), *range(24, 28)]].any()
        with pytest.raises(PictureError):
            prepare(Image.fromarray(picture).convert("RGB").convert("L"))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_picture_is_turned_by_its_exif_orientation(kind: str) -> None:
    for orientation, turn in TURNS.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        file = saved(PHOTO, kind, exif=exif)
        assert (read_garment(file) == prepared(turn(photo()))).all(), orientation
    assert len({prepared(turn(photo())).tobytes() for turn in TURNS.values()}) == 8


# The width as text, which should be a number, and orientation 6.
TEXT_FOR_WIDTH = struct.pack(">2sHIH HHI4s HHIHH I", b"MM", 42, 8, 2, 0x100, 2, 2, b"7", 0x112, 3, 1, 6, 0, 0)


@pytest.mark.parametrize(("exif", "orientation"), [(b"XX*\0", 1), (b"II*\0\x08\0\0", 1), (TEXT_FOR_WIDTH, 6)])
def test_damaged_exif_prevents_nothing(exif: bytes, orientation: int) -> None:
    file = saved(PHOTO, exif=exif)
    with pytest.raises((SyntaxError, struct.error)), Image.open(file) as image:
        ImageOps.exif_transpose(image)
    assert (read_garment(file) == prepared(TURNS[orientation](photo()))).all()


def test_picture_of_28_pixels_comes_back_unchanged() -> None:
    image = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
    image[:2] = 0  # the upper corners
    assert (read_garment(saved(Image.fromarray(image))) == image).all()
    assert (prepared(255 - image) == image).all()


@pytest.mark.parametrize("size", [(27, 28), (28, 29)])
def test_picture_of_any_other_size_is_trimmed(size: tuple[int, int]) -> None:
    picture = np.zeros(size, np.uint8)
    picture[9:19, 9:19] = 255
    assert np.count_nonzero(prepared(picture) > 127) > 500
    assert np.count_nonzero(prepared(np.resize(picture, (28, 28)))) == 100


def test_longest_edge_is_28_and_odd_margin_is_upper_left() -> None:
    for height, width in ((28, 28), (28, 27), (27, 28), (28, 20), (11, 28), (28, 1), (1, 28)):
        expected = np.zeros((28, 28), np.uint8)
        above, left = -(-(28 - height) // 2), -(-(28 - width) // 2)
        expected[above : above + height, left : left + width] = 255
        assert ((prepared(rectangle(height, width)) > 127) * 255 == expected).all(), (height, width)


def test_fit_only_moves_and_sharpens_28_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    gray = np.random.default_rng(0).integers(0, 256, (50, 50), np.uint8)
    expected = np.zeros((28, 28), np.uint8)
    expected[:, 5:] = gray[3:31, 4:27]
    expected = np.roll(expected, -2, axis=1)  # of five columns, three on the left and two on the right
    assert not (fit(gray[3:31, 4:27], 28) == expected).all()
    monkeypatch.setattr(pictures, "SHARPENING", ImageFilter.UnsharpMask(percent=0))
    assert (fit(gray[3:31, 4:27], 28) == expected).all()


def test_invert_auto_always_and_never() -> None:
    white, black = rectangle(28, 20), 255 - rectangle(28, 20)
    light_on_dark = prepared(white)
    assert light_on_dark[14, [0, 14]].tolist() == [0, 255]
    for picture, invert in ((black, "auto"), (white, "always"), (black, "never")):
        assert (prepared(picture, invert=invert) == light_on_dark).all()
    gray = np.where(white == 0, np.uint8(200), np.uint8(120))
    for picture, invert, level in ((gray, "auto", 151), (gray, "never", 200), (gray, "always", 55)):
        found = prepared(picture, invert=invert)
        assert found[14, [0, 14]].tolist() == [0, level], invert
    for picture, invert in ((black, "always"), (white, "never")):
        assert prepare(Image.fromarray(picture), invert)[1] == f"too dark with --invert {invert}"


@pytest.mark.parametrize("ground", [(235, 235, 235), (250, 235, 215), (40, 40, 60)])
def test_background_nearly_white_or_black_becomes_black(ground: tuple[int, int, int]) -> None:
    garment = (0, 0, 0) if ground[0] > 127 else (255, 255, 255)
    picture = np.where(rectangle(28, 20)[..., None] == 0, garment, ground).astype(np.uint8)
    assert (prepared(picture) == prepared(rectangle(28, 20))).all()


def test_corners_of_matches_a_loop() -> None:
    pixels = np.random.default_rng(0).integers(100, 110, (60, 90, 3), np.uint8)
    found = [pixels[row, column] for row in (0, 1, 58, 59) for column in (0, 1, 88, 89)]
    color = [sum(sorted(map(float, channel))[7:9]) / 2 for channel in zip(*found, strict=True)]
    assert corners_of(pixels, 28).tolist() == color


@pytest.mark.parametrize("channels", [1, 3])
def test_noise_is_not_taken_for_the_garment(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clean = np.pad(rectangle(28, 20, scale=12), 20, constant_values=255)[..., None]
    noise = np.random.default_rng(0).normal(0, 8, (*clean.shape[:2], channels))
    noisy = Image.fromarray((clean * 0.7 + 35 + noise).astype(np.uint8).squeeze()).convert("RGB")
    boxes: list[pictures.Box] = []

    def watched(*arguments: Any) -> tuple[pictures.Box, float]:
        found = find_box(*arguments)
        boxes.append(found[0])
        return found

    monkeypatch.setattr(pictures, "find_box", watched)
    prepare(noisy)
    monkeypatch.setattr(pictures, "DEVIATIONS", 0)
    prepare(noisy)
    exact = (40, 30, 40 + 240, 30 + 336)
    assert [np.abs(np.subtract(box, exact)).max() > 1 for box in boxes] == [False, True]


def test_large_jpeg_is_decoded_at_lower_resolution(monkeypatch: pytest.MonkeyPatch) -> None:
    def watched(image: Image.Image, invert: pictures.Invert, size: int) -> tuple[Gray, str]:
        sizes.append(image.size)
        return prepare(image, invert, size)

    sizes: list[tuple[int, int]] = []
    monkeypatch.setattr(pictures, "prepare", watched)
    large = PHOTO.resize((1050, 1340))
    found = read_garment(saved(large, "JPEG", quality=95))
    assert sizes == [(525, 670)]  # at least 512 each
    assert np.abs(found.astype(int) - prepare(large)[0]).mean() < 2


def test_background_alone_is_refused() -> None:
    for size, color in itertools.product([(1, 1), (28, 28), (40, 90)], ["white", "black", "teal"]):
        with pytest.raises(PictureError, match="nothing that differs"):
            prepare(Image.new("RGB", size, color))


@pytest.mark.parametrize("deviation", [1, 4, 10])
def test_noise_alone_is_refused(deviation: float) -> None:
    for seed in range(5):
        wall = np.random.default_rng(seed).normal(200, deviation, (300, 300)).astype(np.uint8)
        with pytest.raises(PictureError, match="nothing that differs"):
            prepare(Image.fromarray(wall))


PNG = saved(PHOTO).getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"to whom it may concern\n", r"is no picture.* PNG, JPEG, "),
        (EPS, "is no picture"),
        (PNG[:8], "is no picture"),
        (PNG[: len(PNG) // 2], "can't be decoded"),
        (saved(PHOTO, "JPEG").read(1000), "can't be decoded"),
        (png_that_claims(400, 400), "can't be decoded"),
        (png_that_claims(10_000, 10_000), "has 10,000 x 10,000 pixels"),
        (png_that_claims(100_000, 100_000), "can't be decoded .*bomb"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_load_picture_refuses_what_is_no_whole_picture(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "boot.png").write_bytes(content)
    with pytest.raises(PictureError, match=rf"boot\.png: it {reason}"):
        load_picture(tmp_path / "boot.png", FASHION_MNIST)


@pytest.mark.parametrize("size", [20, 28, 40])
def test_garment_takes_the_size_of_the_images(size: int) -> None:
    info = replace(FASHION_MNIST, image_shape=(1, size, size))
    [image] = frame(PHOTO, info).pixels
    assert image.shape == (size, size)
    assert np.ptp(np.flatnonzero(image.any(axis=1))) + 1 == size  # the longest edge
    assert (frame(Image.fromarray(image), info).pixels == image).all()


@pytest.mark.parametrize("shape", [(3, 28, 28), (1, 28, 20)])
def test_garment_for_other_images_than_gray_squares_is_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(PictureError, match=f"{shape[0]} x {shape[1]} x {shape[2]} values"):
        frame(PHOTO, replace(FASHION_MNIST, image_shape=shape))


def with_chunk(name: bytes, body: bytes) -> io.BytesIO:
    """PNG with one more chunk after its header."""
    chunk = struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return io.BytesIO(PNG[:33] + chunk + PNG[33:])


@pytest.mark.parametrize(
    ("name", "head"), [(b"zTXt", b"Raw\0\0"), (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0"), (b"iCCP", b"press\0\0")]
)
def test_large_texts_and_profiles_are_read(name: bytes, head: bytes) -> None:
    file = with_chunk(name, head + zlib.compress(bytes(3_000_000)))
    assert (read_garment(file) == prepared(photo())).all()
    bomb = with_chunk(name, head + zlib.compress(bytes(PngImagePlugin.MAX_TEXT_CHUNK + 1)))
    with pytest.raises(PictureError, match="too large"):
        read_garment(bomb)


def test_camera_file_of_several_pictures_is_read() -> None:
    file = saved(PHOTO, "MPO", save_all=True, append_images=[Image.new("L", PHOTO.size)], quality=95)
    assert np.abs(read_garment(file).astype(int) - prepared(photo())).mean() < 2


def test_transparent_value_of_16_bit_gray_is_background() -> None:
    values = photo().astype(np.uint16) * 257
    values[photo() == 255] = 30_000
    file = saved(Image.fromarray(values), transparency=30_000)
    assert (read_garment(file) == prepared(photo())).all()


# What a garment and its background may be, in gray.
PAIRS = [(250, 240), (252, 190), (5, 20), (5, 100), (60, 128), (200, 128), (255, 30), (0, 230)]


@pytest.mark.parametrize(("garment", "ground"), PAIRS)
def test_garment_is_light_on_black_on_any_gray(garment: int, ground: int) -> None:
    picture = np.where(rectangle(28, 20) == 0, garment, ground).astype(np.uint8)
    found = prepared(picture)
    assert found[:, 4:24].min() > 100
    assert not found[:, [*range(4), *range(24, 28)]].any()


def test_color_of_equal_brightness_is_seen() -> None:
    picture = np.where(rectangle(28, 20)[..., None] == 0, [255, 0, 0], [76, 76, 76]).astype(np.uint8)
    assert prepared(picture)[14, [0, 14]].tolist() == [0, 179]
    assert np.ptp(np.asarray(Image.fromarray(picture).convert("L"))) == 0


@pytest.mark.parametrize("garment", [255, 0])
def test_light_and_dark_cut_outs_are_light_on_black(garment: int) -> None:
    opaque = rectangle(28, 20) == 0
    for hidden in (0, 255):
        gray = np.where(opaque, garment, hidden).astype(np.uint8)
        found = prepared(np.dstack([gray, gray, gray, opaque * np.uint8(255)]))
        assert (found == prepared(rectangle(28, 20))).all()
        inverse = np.where(opaque, hidden, 255 - garment).astype(np.uint8)  # the garment is a hole
        assert (prepared(np.dstack([inverse] * 3 + [~opaque * np.uint8(255)])) == found).all()


def framed(ground: int, bars: tuple[int, int, int, int], color: int) -> Gray:
    """A garment on gray, with bars above, below, on the left and on the right."""
    picture = np.where(np.pad(rectangle(28, 20), 9, constant_values=255) == 0, 60, ground).astype(np.uint8)
    return np.pad(picture, (bars[:2], bars[2:]), constant_values=color)


@pytest.mark.parametrize("color", [0, 255])
@pytest.mark.parametrize(
    "bars",
    [(1, 1, 1, 1), (12, 12, 12, 12), (30, 30, 30, 30), (40, 40, 0, 0), (0, 0, 50, 30), (16, 0, 0, 0), (0, 9, 0, 0)],
)
def test_frames_and_bars_are_trimmed(bars: tuple[int, int, int, int], color: int) -> None:
    expected = prepared(framed(190, (0, 0, 0, 0), 0))
    assert prepare(Image.fromarray(framed(190, bars, color))) == (pytest.approx(expected), "")


def test_words_in_a_bar_are_trimmed_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = prepared(framed(255, (0, 0, 0, 0), 0))
    picture = framed(255, (30, 0, 0, 0), 32)
    picture[8:22, 10:40:3] = 255
    assert (prepared(picture) == expected).all()
    monkeypatch.setattr(pictures, "inside_of_bars", lambda *_: None)
    assert not (prepared(picture) == expected).all()


def test_bag_with_straight_edges_is_no_frame() -> None:
    picture = rectangle(28, 20)
    picture[30:60, 35:60] = 40  # a label
    assert inside_of_bars(Image.fromarray(picture).convert("RGB"), 28) is None


def scene(factor: Any) -> Gray:
    """A dark garment in the middle of a light wall."""
    picture = np.full((200, 200), 230.0) * factor
    picture[50:150, 70:130] = 40
    return picture.astype(np.uint8)


Y, X = np.meshgrid(*[np.linspace(-1, 1, 200)] * 2, indexing="ij")
UNEVEN = {
    "gradient": 0.8 + 0.2 * Y,
    "diagonal": 0.8 + 0.1 * Y + 0.1 * X,
    "dark corners": 1 - 0.25 * (X**2 + Y**2),
    "floor": np.where(Y > 0.3, 0.6, 1),
    "wall of two colors": np.where(X > 0.1, 0.6, 1),
}


@pytest.mark.parametrize("name", UNEVEN)
def test_uneven_background_becomes_black(name: str) -> None:
    found, note = prepare(Image.fromarray(scene(UNEVEN[name])))
    assert note == ""
    assert found[:, 7:21].min() > 150
    assert found[:, [*range(5), *range(23, 28)]].max() < 20


NOISE = np.random.default_rng(0).normal(0, 1, (20, 20)).repeat(10, axis=0).repeat(10, axis=1)
BUSY = {
    "checks": np.where((np.arange(200) // 20 + np.arange(200)[:, None] // 20) % 2, 0.6, 1),
    "patches": (0.7 + 0.2 * NOISE).clip(0, 1.1),
    "slanted floor": np.where(Y - 0.3 * X > 0.3, 0.6, 1),
}


@pytest.mark.parametrize("name", BUSY)
def test_busy_background_is_noted(name: str) -> None:
    assert prepare(Image.fromarray(scene(BUSY[name])))[1] == pictures.NOT_PLAIN
    fine = np.random.default_rng(0).normal(1, 0.03, (200, 200))  # the control: a camera's noise
    assert prepare(Image.fromarray(scene(fine)))[1] == ""
