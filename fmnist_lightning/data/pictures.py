"""Decode picture files safely, within limits of memory and time, and crop them to images.

Training on folders and prediction read pictures with the same functions, so a model sees in both what it learned.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from threading import Lock
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from fmnist_lightning.errors import UserError

Pixels = NDArray[np.uint8]
Reduction = Callable[[tuple[int, int]], int]  # by the size of a picture: how many times smaller it may become

Image.init()  # registers the formats that this Pillow was built with
# Raster formats only: Pillow hands PostScript to an external program and takes any bytes for some old formats.
FORMATS = tuple(
    kind for kind in ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000", "PPM") if kind in Image.OPEN
)
# Cameras' MPO files are JPEG with more pictures after the first.
SUFFIXES = frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO"))
# Pillow refuses PNG files with texts or color profiles of more than 1 MB, which editors write. These stay bounded, too.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 2**26
# Pillow warns of a decompression bomb above this: 256 MB of RGB.
MAX_PIXELS = 2**28 // 3
# Larger pictures are decoded one at a time, however many threads there are: 16 million pixels take 64 MB or more.
MANY_PIXELS = 2**24
ONE_AT_A_TIME = Lock()
# Before a crop, a large picture is shrunk, for time and memory. Its shortest edge keeps this many pixels, or twice the
# image's longest edge if that is more, which is enough for Lanczos.
WORKING_SIZE = 512
# By EXIF's orientation. ImageOps.exif_transpose also rewrites all other tags and fails if one has a wrong type.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class PictureError(UserError):
    """A picture can't be used; the text is a predicate, "is empty"."""


def silence_pillow() -> None:
    """Ignore Pillow's warnings, of damaged EXIF data and the like: they lack the file's name.

    For the whole process, because `warnings.catch_warnings` is not safe in threads.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")


def explain(error: Exception) -> str:
    """Say why a file can't be opened or used, as a predicate."""
    return (
        str(error) if isinstance(error, UserError) else f"can't be opened ({getattr(error, 'strerror', '') or error})"
    )


def read_crop(file: BinaryIO, image_shape: tuple[int, int, int]) -> Pixels:
    """Read a picture as an image of this shape (C, H, W), uint8; seekable file.

    `crop` describes the result. Raises PictureError if it is no picture, damaged, too large, or doesn't suit C.
    """
    with open_picture(file, working_size(image_shape)) as image:
        return crop(image, image_shape)


@contextmanager
def open_picture(file: BinaryIO, least: int) -> Iterator[Image.Image]:
    """Decode a picture or an animation's first frame, and turn it upright; seekable file.

    A large JPEG is decoded at a lower resolution, with at least `least` pixels along each edge. Raises PictureError if
    the file is no picture, damaged or too large, and for any error of the block that uses the picture.
    """
    try:
        with Image.open(file, formats=FORMATS) as image:
            check_pixels(image)
            image.draft(None, (least, least))
            with ONE_AT_A_TIME if image.width * image.height > MANY_PIXELS else nullcontext():
                yield upright(image)
    except UnidentifiedImageError as error:
        if file.seek(0, 2) == 0:
            raise PictureError("is empty") from error
        kinds = ", ".join(FORMATS)
        raise PictureError(f"is no picture, damaged, or of an unsupported format (save it as {kinds})") from error
    except PictureError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds of exceptions on damaged bytes
        raise PictureError(f"can't be decoded ({error})") from error


def check_pixels(image: Image.Image) -> None:
    """Raise PictureError for no pixels or too many; Pillow warns up to twice the limit."""
    width, height = image.size
    if not 0 < width * height <= MAX_PIXELS:
        raise PictureError(f"has {width:,} x {height:,} pixels, not 1 to {MAX_PIXELS:,} in all")


def upright(image: Image.Image) -> Image.Image:
    """Turn a picture as its EXIF orientation says; ignore damaged EXIF data."""
    image.load()
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # of many kinds, as above; the pixels are read
        return image
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def crop(image: Image.Image, image_shape: tuple[int, int, int]) -> Pixels:
    """Scale a picture until it covers H x W, and crop it at its center; (C, H, W) uint8.

    Transparent pixels count as white. The image is gray if C is 1, else RGB. A picture of exactly H x W pixels keeps
    them. Raises PictureError for another C or gray values out of range, ValueError for a color mode that Pillow can't
    convert.
    """
    channels, height, width = image_shape
    if channels not in (1, 3):
        raise PictureError(f"can't become an image of {channels} channels (a model of 1 or 3 takes pictures)")
    check_pixels(image)
    enough = working_size(image_shape)
    colors = lay_on(shrink(image, lambda size: max(1, min(size) // enough)), "white")
    fitted = ImageOps.fit(colors.convert("L" if channels == 1 else "RGB"), (width, height), Image.Resampling.LANCZOS)
    pixels = np.array(fitted)  # (H, W) or (H, W, 3)
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def working_size(image_shape: tuple[int, int, int]) -> int:
    """Pixels of the shortest edge that a picture keeps when it is shrunk before the crop."""
    return max(WORKING_SIZE, 2 * max(image_shape[1:]))


def shrink(image: Image.Image, reduction: Reduction) -> Image.Image:
    """A picture in RGB, or in RGBA if it has transparency, shrunk.

    It is shrunk first if possible, so that a large picture takes little more memory than its pixels.
    """
    if image.mode[0] in "IF":
        # Keep at least four by four pixels for each mean that becomes one pixel.
        step = max(1, reduction(image.size) // 4)
        values, hidden = np.asarray(image)[::step, ::step], image.info.get("transparency")
        image = Image.fromarray(scale_depth(values))
        if hidden is not None:
            image.putalpha(Image.fromarray(np.where(values == hidden, 0, 255).astype(np.uint8)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
    elif image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    image = image.reduce(reduction(image.size))
    return image if image.mode == "RGBA" else image.convert("RGB")


def lay_on(image: Image.Image, backing: str) -> Image.Image:
    """An RGBA picture on a color, in RGB; an RGB picture as it is."""
    if image.mode == "RGB":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, backing), image).convert("RGB")


def scale_depth(values: NDArray) -> Pixels:
    """16-bit gray, or floats in 0..1, in 8 bits.

    Pillow's own conversion clips some of them at 255. Raises PictureError if any value is outside the range.
    """
    highest = 1.0 if values.dtype.kind == "f" else 65535
    if not (values.min() >= 0 and values.max() <= highest):  # NaN fails too
        raise PictureError(f"has gray values from {values.min()} to {values.max()}, not 0 to {highest}")
    return np.rint(values * (255 / highest)).astype(np.uint8)
