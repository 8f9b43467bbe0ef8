"""A picture file becomes an image of any shape, as PIL alone would make it; what is no picture is refused."""

import io
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torchvision.transforms import v2

from fmnist_lightning.data import pictures
from fmnist_lightning.data.pictures import (
    FORMATS,
    MAX_PIXELS,
    SUFFIXES,
    PictureError,
    check_pixels,
    crop,
    explain,
    read_crop,
    scale_depth,
)

RGB = (3, 20, 24)
GRAY = (1, 20, 24)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 28 28\n%%EndComments\n%%EOF\n"
NOISE = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)


def scene(height: int, width: int) -> Image.Image:
    """A colored picture without fine detail that looks different from each side."""
    v, u = np.mgrid[0:1:height * 1j, 0:1:width * 1j]  # fmt: skip
    return Image.fromarray(np.rint(np.dstack([255 * u, 255 * v**2, 127 + 127 * np.sin(9 * u * v)])).astype(np.uint8))


SCENE = scene(90, 160)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def fitted(image: Image.Image, shape: tuple[int, int, int] = RGB) -> NDArray[np.uint8]:
    """What PIL alone makes of a picture: (H, W) or (H, W, 3) to (C, H, W)."""
    mode = "L" if shape[0] == 1 else "RGB"
    pixels = np.asarray(ImageOps.fit(image.convert(mode), (shape[2], shape[1]), Image.Resampling.LANCZOS))
    return np.moveaxis(pixels.reshape(*shape[1:], shape[0]), -1, 0)


@pytest.mark.parametrize("shape", [RGB, GRAY, (3, 32, 32), (1, 8, 8), (3, 200, 30)], ids=str)
@pytest.mark.parametrize("size", [(90, 160), (160, 90), (7, 5), (300, 20), (1, 1)], ids=str)
def test_read_crop_matches_pil(size: tuple[int, int], shape: tuple[int, int, int]) -> None:
    image = read_crop(saved(scene(*size)), shape)
    assert (image.shape, image.dtype, image.flags.c_contiguous) == (shape, np.uint8, True)
    assert (image == fitted(scene(*size), shape)).all()


@pytest.mark.parametrize("size", [(80, 160), (200, 80), (60, 60)], ids=str)
def test_read_crop_has_the_geometry_of_torchvision(size: tuple[int, int]) -> None:
    """That of Resize and CenterCrop, which evaluation on ImageNet uses."""
    lanczos = v2.InterpolationMode.LANCZOS
    transform = v2.Compose([v2.Resize(20, interpolation=lanczos), v2.CenterCrop(20)])
    image = read_crop(saved(scene(*size)), (3, 20, 20)).transpose(1, 2, 0).astype(int)
    assert np.abs(image - np.asarray(transform(scene(*size)))).max() <= 1
    stretched = np.abs(image - np.asarray(scene(*size).resize((20, 20)))).max()
    assert (stretched > 50) == (size != (60, 60))


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA"])
def test_picture_of_the_image_size_keeps_its_pixels(mode: str) -> None:
    image = Image.fromarray(NOISE).convert("RGB" if mode in ("RGB", "RGBA") else "L").convert(mode)
    expected = np.asarray(image.convert("RGB"))
    assert (read_crop(saved(image), RGB) == expected.transpose(2, 0, 1)).all()
    assert (read_crop(saved(image), GRAY) == np.asarray(image.convert("RGB").convert("L"))).all()


@pytest.mark.parametrize(
    ("kind", "image"),
    [
        *[("PNG", SCENE), ("BMP", SCENE), ("PPM", SCENE), ("TIFF", SCENE), ("PNG", SCENE.convert("RGBA"))],
        ("WEBP", SCENE),
    ],
)
def test_formats_and_modes_give_the_same_pixels(kind: str, image: Image.Image) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    assert (read_crop(saved(image, kind, **options), RGB) == fitted(SCENE)).all()


def test_transparent_pixels_are_white() -> None:
    pixels = np.dstack([NOISE, np.full((20, 24), 255, np.uint8)])
    pixels[:, :9, 3] = 0
    expected = np.where(np.arange(24)[:, None] < 9, 255, NOISE).transpose(2, 0, 1)
    assert (read_crop(saved(Image.fromarray(pixels)), RGB) == expected).all()


@pytest.mark.parametrize(("dtype", "kind"), [(np.uint16, "PNG"), (np.int32, "PPM"), (np.float32, "TIFF")])
def test_16_bit_gray_and_floats_are_scaled(dtype: type, kind: str) -> None:
    """Pillow's own conversion clips them."""
    gray = NOISE[..., 0]
    deep = gray.astype(dtype) / 255 if dtype is np.float32 else gray.astype(dtype) * 257
    image = Image.fromarray(deep.astype(dtype))
    assert (read_crop(saved(image, kind), GRAY) == gray).all()
    assert (read_crop(saved(image, kind), RGB) == gray).all()
    assert not (np.asarray(image.convert("L")) == gray).all()


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_scale_depth_rounds_to_8_bits(dtype: type) -> None:
    values = [0, 128, 129, 257, 32768, 65407, 65535]
    factor = 65535 if dtype is np.float32 else 1
    scaled = scale_depth(np.array([[value / factor for value in values]], dtype))
    assert scaled.tolist() == [[0, 0, 1, 1, 128, 255, 255]]


# By EXIF's number: from how a camera stores a picture to how it is meant; (H, W, 3).
TURNS: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored),
}


@pytest.mark.parametrize("orientation", TURNS)
def test_read_crop_turns_as_exif_says(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = Image.fromarray(np.ascontiguousarray(TURNS[orientation](np.asarray(SCENE))))
    assert (read_crop(saved(SCENE, exif=exif), RGB) == fitted(turned)).all()
    assert (fitted(turned) == fitted(SCENE)).all() == (orientation == 1)


def test_large_pictures_are_shrunk_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The result is that of PIL within a few brightness levels; a long strip keeps its short edge."""
    for size in ((1300, 1500), (60, 2000), (1100, 4000)):
        difference = np.abs(read_crop(saved(scene(*size)), RGB).astype(int) - fitted(scene(*size)))
        assert difference.max() <= 4, size
    seen: list[tuple[int, int]] = []
    fit = ImageOps.fit
    monkeypatch.setattr(ImageOps, "fit", lambda image, *given: seen.append(image.size) or fit(image, *given))
    for size, shape in (((1024, 1500), RGB), ((1023, 1500), RGB), ((60, 2000), RGB), ((1300, 1300), (3, 400, 300))):
        crop(scene(*size), shape)
    assert seen == [(750, 512), (1500, 1023), (2000, 60), (1300, 1300)]


def test_large_jpeg_is_decoded_at_lower_resolution(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(pictures, "crop", lambda image, shape: seen.append(image.size) or crop(image, shape))
    large = scene(1100, 1400)
    found = read_crop(saved(large, "JPEG", quality=95), RGB)
    assert seen == [(700, 550)]  # at least 512 each
    assert np.abs(found.astype(int) - fitted(large)).mean() < 3
    read_crop(saved(large, "JPEG"), (3, 300, 20))
    assert seen[1] == (1400, 1100)  # else it would be scaled up


def test_huge_pictures_are_decoded_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MANY_PIXELS", SCENE.width * SCENE.height - 1)
    threads = [threading.Thread(target=read_crop, args=(saved(scene(90, width)), RGB)) for width in (160, 159)]
    with pictures.ONE_AT_A_TIME:
        for thread in threads:
            thread.start()
        threads[1].join(10)
        assert [thread.is_alive() for thread in threads] == [True, False]
    threads[0].join(10)
    assert not threads[0].is_alive()


PNG = saved(SCENE).getvalue()
REFUSED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "text": (b"to whom it may concern\n", "is no picture.* PNG, JPEG, "),
    "postscript": (EPS, "is no picture"),
    "cut in its head": (PNG[:8], "is no picture"),
    "cut": (PNG[: len(PNG) // 2], "can't be decoded"),
    "cut jpeg": (saved(SCENE, "JPEG").read(1000), "can't be decoded"),
    "large": (saved(Image.new("1", (10_000, 10_000))).getvalue(), "has 10,000 x 10,000 pixels"),
    "bomb": (saved(Image.new("1", (20_000, 20_000))).getvalue(), "can't be decoded .*bomb"),
}


@pytest.mark.parametrize(("content", "reason"), REFUSED.values(), ids=REFUSED)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_read_crop_refuses_what_is_no_whole_picture(content: bytes, reason: str) -> None:
    with pytest.raises(PictureError, match=f"^{reason}"):
        read_crop(io.BytesIO(content), RGB)


@pytest.mark.parametrize("channels", [2, 4])
def test_crop_of_other_channels_is_refused(channels: int) -> None:
    with pytest.raises(PictureError, match=f"{channels} channels"):
        read_crop(saved(SCENE), (channels, 20, 24))


def test_pillow_itself_would_open_postscript() -> None:
    with Image.open(io.BytesIO(EPS)) as image:
        assert image.format == "EPS"


def test_check_pixels_accepts_one_to_the_limit() -> None:
    check_pixels(SimpleNamespace(size=(1, MAX_PIXELS)))  # type: ignore[arg-type]
    for size in ((1, MAX_PIXELS + 1), (0, 5)):
        with pytest.raises(PictureError, match=f"{size[0]} x {size[1]:,} pixels"):
            check_pixels(SimpleNamespace(size=size))  # type: ignore[arg-type]


def test_suffixes_are_those_of_the_formats() -> None:
    assert {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".ppm"} <= SUFFIXES
    assert not {".eps", ".pdf", ".ps", ".ico"} & SUFFIXES
    assert "EPS" not in FORMATS


def test_explain_gives_a_predicate() -> None:
    assert explain(PictureError("is empty")) == "is empty"
    assert explain(FileNotFoundError(2, "No such file or directory")) == "can't be opened (No such file or directory)"
    assert explain(ValueError("embedded null byte")) == "can't be opened (embedded null byte)"
