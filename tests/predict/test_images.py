"""Any picture becomes 28 x 28 pixels, light on dark, as the data set has it."""

import io
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps

from fmnist_lightning.predict import pictures as images
from fmnist_lightning.predict.pictures import (
    NOTHING_FOUND,
    Grey,
    PictureError,
    corners_of,
    find_box,
    fit,
    prepare,
    read_picture,
    scale_depth,
)

TURNS: dict[int, Callable[[Grey], Grey]] = {  # from how a camera stores a picture to how it is meant, by EXIF's number
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.T,
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].T,
    8: lambda stored: np.rot90(stored),
}


def photo(top: int = 20, left: int = 15, margin: int = 30) -> Grey:
    """A dark garment of 84 x 60 pixels before white, with a different look from each side."""
    picture = np.full((top + 84 + margin, left + 60 + margin), 255, np.uint8)
    picture[top : top + 84, left : left + 60] = np.arange(84)[:, None] + np.arange(60)
    return picture


def rectangle(height: int, width: int, scale: int = 3) -> Grey:
    """Black before white, not in the middle."""
    picture = np.full((height * scale + 40, width * scale + 25), 255, np.uint8)
    picture[10 : 10 + height * scale, 20 : 20 + width * scale] = 0
    return picture


def prepared(pixels: Grey, **options: Any) -> Grey:
    return prepare(Image.fromarray(np.ascontiguousarray(pixels)), **options)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def with_palette(grey: Grey) -> Image.Image:
    """Colours by number, in the opposite order of their brightness."""
    image = Image.fromarray(255 - grey).convert("P")
    image.putpalette([255 - index for index in range(256) for _ in range(3)])
    return image


@pytest.mark.parametrize(
    ("kind", "convert"),
    [
        ("PNG", Image.fromarray),
        ("BMP", Image.fromarray),
        ("PPM", Image.fromarray),
        ("PNG", lambda grey: Image.fromarray(grey).convert("RGB")),
        ("PNG", lambda grey: Image.fromarray(grey).convert("RGBA")),
        ("PNG", lambda grey: Image.fromarray(grey).convert("LA")),
        ("TIFF", lambda grey: Image.fromarray(grey).convert("CMYK")),
        ("PNG", with_palette),
        ("GIF", with_palette),
        ("PNG", lambda grey: Image.fromarray(grey.astype(np.uint16) * 257)),
        ("PPM", lambda grey: Image.fromarray(grey.astype(np.int32) * 257)),
        ("TIFF", lambda grey: Image.fromarray(grey.astype(np.float32) / 255)),
    ],
)
def test_each_colour_mode_gives_the_same_pixels(kind: str, convert: Callable[[Grey], Image.Image]) -> None:
    assert (read_picture(saved(convert(photo()), kind)) == prepared(photo())).all()


def test_a_picture_of_black_and_white_alone_is_read() -> None:
    binary = Image.fromarray(rectangle(28, 20)).convert("1")
    assert (read_picture(saved(binary)) == prepared(rectangle(28, 20))).all()


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_what_is_transparent_by_a_palette_is_background(kind: str) -> None:
    image = with_palette(photo())
    image.putpalette([0, 255, 0, *image.getpalette()[3:]])  # number 0, which was white, is green now
    assert not (read_picture(saved(image, kind)) == prepared(photo())).all()
    assert (read_picture(saved(image, kind, transparency=0)) == prepared(photo())).all()


@pytest.mark.parametrize(("invert", "backing"), [("auto", 255), ("always", 255), ("never", 0)])
def test_transparent_counts_as_white_and_for_never_as_black(invert: str, backing: int) -> None:
    opaque = photo() < 255
    pixels = np.full((*opaque.shape, 4), 99, np.uint8)  # some colour that nobody sees
    pixels[opaque] = np.array([1, 1, 1, 0]) * photo()[opaque, None] + [50, 50, 50, 255]
    pixels[~opaque, 3] = 0
    expected = np.where(opaque, photo() + np.uint8(50), np.uint8(backing))
    assert (prepared(pixels, invert=invert) == prepared(expected, invert=invert)).all()


def test_a_white_garment_that_was_cut_out_is_found() -> None:
    opacity = Image.fromarray(255 - rectangle(28, 20))
    white = Image.new("RGB", opacity.size, "white")
    assert find_box(white, opacity) == (20, 10, 80, 94)
    with pytest.raises(PictureError, match=NOTHING_FOUND):
        find_box(white, None)


def test_a_garment_as_bright_as_its_background_is_found_by_its_colour() -> None:
    picture = np.where(rectangle(28, 20)[..., None] == 0, [255, 0, 0], [0, 130, 0]).astype(np.uint8)
    colours = Image.fromarray(picture)
    assert find_box(colours, None) == (20, 10, 80, 94)
    with pytest.raises(PictureError, match=NOTHING_FOUND):
        find_box(colours.convert("L").convert("RGB"), None)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_depths_are_scaled_as_a_loop_does(dtype: type) -> None:
    values = [0, 128, 129, 257, 32768, 65407, 65535]
    factor = 65535 if dtype is np.float32 else 1
    scaled = scale_depth(np.array([[value / factor for value in values]], dtype))
    assert scaled.tolist() == [[0, 0, 1, 1, 128, 255, 255]]


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        *[([0, 1.01], np.float32), ([-0.01, 1], np.float32), ([0.5, np.nan], np.float32)],
        *[([0, 65536], np.int32), ([-1, 0], np.int32)],
    ],
)
def test_values_outside_a_depth_are_refused(values: list[float], dtype: type) -> None:
    with pytest.raises(PictureError, match=r"has grey values from .*; expected 0 to (1\.0|65535)$"):
        prepare(Image.fromarray(np.array([values], dtype)))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", TURNS)
def test_a_picture_is_turned_as_its_camera_says(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = saved(Image.fromarray(photo()), kind, exif=exif)
    assert (read_picture(file) == prepared(TURNS[orientation](photo()))).all()


def test_each_turn_looks_different() -> None:
    assert len({prepared(turn(photo())).tobytes() for turn in TURNS.values()}) == 8


@pytest.mark.parametrize("exif", [b"XX*\0", b"II*\0\x08\0\0"])
def test_broken_exif_is_survived(exif: bytes) -> None:
    file = saved(Image.fromarray(photo()), exif=exif)
    with pytest.raises((SyntaxError, struct.error)), Image.open(file) as image:
        image.getexif()
    assert (read_picture(file) == prepared(photo())).all()


def test_a_tag_of_the_wrong_type_does_not_keep_a_picture_from_being_turned() -> None:
    # Two tags: the width as text, which should be a number, and orientation 6.
    exif = struct.pack(">2sHIH HHI4s HHIHH I", b"MM", 42, 8, 2, 0x100, 2, 2, b"7", 0x112, 3, 1, 6, 0, 0)
    file = saved(Image.fromarray(photo()), exif=exif)
    with pytest.raises(struct.error), Image.open(file) as image:
        ImageOps.exif_transpose(image)
    assert (read_picture(file) == prepared(TURNS[6](photo()))).all()


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "TIFF"])
def test_an_animation_gives_its_first_frame(kind: str) -> None:
    first, second = (Image.fromarray(pixels) for pixels in (photo(), photo()[::-1].copy()))
    options = {"lossless": True} if kind == "WEBP" else {}
    file = saved(first, kind, save_all=True, append_images=[second], **options)
    assert Image.open(file).n_frames == 2
    assert (read_picture(file) == prepare(first)).all()
    assert not (prepare(first) == prepare(second)).all()


def test_an_image_of_the_data_sets_size_comes_back_byte_for_byte() -> None:
    image = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
    image[:2] = 0  # the corners above
    assert (read_picture(saved(Image.fromarray(image))) == image).all()
    assert (prepared(255 - image) == image).all()


@pytest.mark.parametrize("size", [(27, 28), (28, 29)])
def test_any_other_size_is_trimmed(size: tuple[int, int]) -> None:
    picture = np.zeros(size, np.uint8)
    picture[9:19, 9:19] = 255
    assert np.count_nonzero(prepared(picture) > 127) > 500
    assert np.count_nonzero(prepared(np.resize(picture, (28, 28)))) == 100


@pytest.mark.parametrize(("height", "width"), [(28, 28), (28, 27), (27, 28), (28, 20), (11, 28), (28, 1), (1, 28)])
def test_the_longest_edge_becomes_28_and_the_rest_is_centred_the_odd_half_above_and_left(
    height: int, width: int
) -> None:
    expected = np.zeros((28, 28), np.uint8)
    above, left = -(-(28 - height) // 2), -(-(28 - width) // 2)
    expected[above : above + height, left : left + width] = 255
    assert ((prepared(rectangle(height, width)) > 127) * 255 == expected).all()


def test_where_the_garment_stands_and_how_wide_its_margins_are_changes_nothing() -> None:
    assert (prepared(photo()) == prepared(photo(top=10, left=90, margin=12))).all()


def test_what_is_28_long_already_is_moved_and_sharpened_only(monkeypatch: pytest.MonkeyPatch) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (50, 50), np.uint8)
    expected = np.full((28, 28), 7, np.uint8)
    expected[:, 5:] = grey[3:31, 4:27]
    expected = np.roll(expected, -2, axis=1)  # 23 columns: 3 stay on the left, 2 on the right
    assert not (fit(grey, (4, 3, 27, 31), 7) == expected).all()
    monkeypatch.setattr(images, "SHARPENING", ImageFilter.UnsharpMask(percent=0))
    assert (fit(grey, (4, 3, 27, 31), 7) == expected).all()


def test_auto_inverts_bright_backgrounds_always_and_never_obey() -> None:
    white, black = rectangle(28, 20), 255 - rectangle(28, 20)
    light_on_dark = prepared(white)
    assert light_on_dark[14, [0, 14]].tolist() == [0, 255]
    for picture, invert in ((black, "auto"), (white, "always"), (black, "never")):
        assert (prepared(picture, invert=invert) == light_on_dark).all()
    for picture, invert in ((black, "always"), (white, "never")):
        dark_on_light = 255 - light_on_dark.astype(int)
        assert np.abs(prepared(picture, invert=invert) - dark_on_light).max() <= 1  # by rounding


@pytest.mark.parametrize("ground", [(235, 235, 235), (250, 235, 215), (40, 40, 60)])
def test_a_background_that_is_not_quite_white_or_black_becomes_black(ground: tuple[int, int, int]) -> None:
    garment = (0, 0, 0) if ground[0] > 127 else (255, 255, 255)
    picture = np.where(rectangle(28, 20)[..., None] == 0, garment, ground).astype(np.uint8)
    assert (prepared(picture) == prepared(rectangle(28, 20))).all()


def test_corners_are_what_a_loop_finds() -> None:
    pixels = np.random.default_rng(0).integers(100, 110, (60, 90, 3), np.uint8)
    found = [pixels[row, column] for row in (0, 1, 58, 59) for column in (0, 1, 88, 89)]
    colour = [sorted(map(float, channel))[7:9] for channel in zip(*found, strict=True)]
    colour = [sum(middle) / 2 for middle in colour]
    distances = sorted(max(abs(float(a) - b) for a, b in zip(pixel, colour, strict=True)) for pixel in found)
    background = corners_of(pixels)
    assert background.colour.tolist() == colour
    assert background.tolerance == images.DEVIATIONS * sum(distances[7:9]) / 2


@pytest.mark.parametrize("channels", [1, 3])
def test_noise_grey_or_coloured_is_not_taken_for_the_garment(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clean = np.pad(rectangle(28, 20, scale=12), 20, constant_values=255)[..., None]
    noise = np.random.default_rng(0).normal(0, 8, (*clean.shape[:2], channels))
    noisy = Image.fromarray((clean * 0.7 + 35 + noise).astype(np.uint8).squeeze()).convert("RGB")
    exact = (40, 30, 40 + 240, 30 + 336)
    assert np.abs(np.subtract(find_box(noisy, None), exact)).max() <= 1
    monkeypatch.setattr(images, "DEVIATIONS", 0)
    assert np.abs(np.subtract(find_box(noisy, None), exact)).max() > 5


def test_a_large_jpeg_is_decoded_in_part_and_gives_nearly_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def watched(image: Image.Image, invert: images.Invert) -> Grey:
        sizes.append(image.size)
        return prepare(image, invert)

    sizes: list[tuple[int, int]] = []
    monkeypatch.setattr(images, "prepare", watched)
    large = Image.fromarray(photo()).resize((1050, 1340))
    found = read_picture(saved(large, "JPEG", quality=95))
    assert sizes == [(525, 670)]  # at least 512 each
    assert np.abs(found.astype(int) - prepare(large)).mean() < 2
