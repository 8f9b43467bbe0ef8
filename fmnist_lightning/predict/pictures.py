"""Make a picture look like the data set: 28 x 28, gray, a light garment on black.

Fashion-MNIST was made from a shop's photographs (Xiao et al. 2017, https://arxiv.org/abs/1708.07747, section 2). Its
makers trimmed edges within 5% of the corners' color, shrank the longest edge to 28 pixels, sharpened with a Gaussian of
radius and standard deviation 1.0, extended the shortest edge to 28 with the garment centered, negated, and converted to
8-bit gray. This module does the same with three changes that improve round trips: it averages where they dropped rows
and columns; it accepts a background of any color, with noise; it finds edges through blur. LOG.md lists what was tried,
always on the validation split of the training set.
"""

from contextlib import nullcontext
from functools import reduce
from pathlib import Path
from threading import Lock
from typing import BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageChops, ImageFilter, UnidentifiedImageError

from fmnist_lightning.data.sets.fashion_mnist import IMAGE_SIZE
from fmnist_lightning.errors import UserError

Invert = Literal["auto", "always", "never"]
Gray = NDArray[np.uint8]  # (H, W)

Image.init()  # registers the formats that this Pillow was built with
# Raster formats only: Pillow hands PostScript to an external program and takes any bytes for some old formats.
FORMATS = tuple(
    kind for kind in ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000", "PPM") if kind in Image.OPEN
)
# Pillow warns of a decompression bomb above this: 256 MB of RGB.
MAX_PIXELS = 2**28 // 3
# Larger pictures are decoded one at a time, however many threads there are: 16 million pixels take 64 MB or more.
MANY_PIXELS = 2**24
ONE_AT_A_TIME = Lock()
# Pictures more than twice as large are first shrunk to once to twice this, for time and memory. What fills a tenth of
# such a picture still has more pixels than it needs.
WORKING_SIZE = 512

# 5% of full brightness, as in the paper.
TOLERANCE = 0.05 * 255
# In a noisy photograph the tolerance is this many median deviations of the corners' pixels, at most a quarter of full
# brightness. With noise of standard deviation 8, 97% of round trips agree, against 60 to 74% without. With 6 deviations
# 97% agree if the noise is colored, but 73% if it is gray (250 images of the validation split, 224 and 450 pixels).
DEVIATIONS = 8
MAX_TOLERANCE = 0.25 * 255
# A blurred edge lies where the difference is half of the strength that it reaches within one pixel of the result, a
# little less so that a faint rim, one such pixel wide, counts as part of the garment.
EDGE_STRENGTH = 0.5
EDGE_DEPTH = 0.9
SHARPENING = ImageFilter.UnsharpMask(radius=1, percent=40, threshold=0)
MIDDLE = 127.5
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
NOTHING_FOUND = (
    "shows nothing but background (use a garment on a plain background; if that is gray, --invert always or never may "
    "help)"
)


class PictureError(UserError):
    """A picture can't be used; `read_picture` says why as a predicate, "is empty"."""


def load_picture(path: str | Path, invert: Invert = "auto") -> Gray:
    """Read a picture file, (28, 28) uint8. Raises PictureError, which names it."""
    try:
        with Path(path).open("rb") as file:
            return read_picture(file, invert)
    except (PictureError, OSError, ValueError) as error:  # ValueError: the name holds a zero byte
        raise PictureError(f"cannot read {path}: it {explain(error)}") from error


def explain(error: Exception) -> str:
    """Say why a file can't be opened or used, as a predicate."""
    return (
        str(error) if isinstance(error, UserError) else f"can't be opened ({getattr(error, 'strerror', '') or error})"
    )


def read_picture(file: BinaryIO, invert: Invert = "auto") -> Gray:
    """Read a picture or an animation's first frame, (28, 28) uint8; seekable file.

    Raises PictureError if it is no picture, damaged, too large, or shows nothing.
    """
    try:
        with Image.open(file, formats=FORMATS) as image:
            check_pixels(image)
            image.draft(None, (WORKING_SIZE, WORKING_SIZE))  # a large JPEG need not be decoded in full
            with ONE_AT_A_TIME if image.width * image.height > MANY_PIXELS else nullcontext():
                return prepare(upright(image), invert)
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


def prepare(image: Image.Image, invert: Invert = "auto") -> Gray:
    """Make a picture look like the data set's images, (28, 28) uint8.

    A picture of exactly 28 x 28 pixels is not trimmed, only made gray and inverted if need be. So an image of the data
    set that was saved as a picture comes back as it was: no training image has bright corners.
    `auto` inverts a picture with bright corners, as the data set's makers did with all. Transparent pixels count as
    white, and for `never` as black.
    Raises PictureError if there is only background, ValueError if Pillow can't convert the color mode.
    """
    check_pixels(image)
    colors, opacity = flatten(image, "black" if invert == "never" else "white")
    gray = np.asarray(colors.convert("L"))
    ground = float(corners_of(gray)[0][0])
    if invert == "always" or (invert == "auto" and ground > MIDDLE):
        gray, ground = 255 - gray, 255 - ground
    if image.size != (IMAGE_SIZE, IMAGE_SIZE):
        box = find_box(colors, opacity)
        if ground < MIDDLE:  # else the user forbade or forced an inversion, and keeps the brightness too
            stretched = (np.arange(256) - ground) * (255 / (255 - ground))
            gray, ground = np.rint(stretched.clip(0, 255)).astype(np.uint8)[gray], 0
        gray = fit(gray, box, ground)
    if not np.ptp(gray):
        raise PictureError(NOTHING_FOUND)
    return gray


def flatten(image: Image.Image, backing: str) -> tuple[Image.Image, Image.Image | None]:
    """A picture in RGB, on `backing`, and its 8-bit opacity, if any; both shrunk.

    It is shrunk first if possible, so that a large picture takes little more memory than its pixels.
    """
    opacity = None
    if image.mode[0] in "IF":
        # Keep at least four by four pixels for each mean that becomes one pixel.
        step = max(1, max(image.size) // (4 * WORKING_SIZE))
        image = Image.fromarray(scale_depth(np.asarray(image)[::step, ::step]))
    elif image.has_transparency_data:
        image = shrink(image if image.mode == "RGBA" else image.convert("RGBA"))
        opacity = image.getchannel("A")
        image = Image.alpha_composite(Image.new("RGBA", image.size, backing), image)
    elif image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    return shrink(image).convert("RGB"), opacity


def shrink(image: Image.Image) -> Image.Image:
    """Average pixels until the longest edge is less than twice WORKING_SIZE."""
    return image.reduce(max(1, max(image.size) // WORKING_SIZE))


def scale_depth(values: NDArray) -> Gray:
    """16-bit gray, or floats in 0..1, in 8 bits.

    Pillow's own conversion clips some of them at 255. Raises PictureError if any value is outside the range.
    """
    highest = 1.0 if values.dtype.kind == "f" else 65535
    if not (values.min() >= 0 and values.max() <= highest):  # NaN fails too
        raise PictureError(f"has gray values from {values.min()} to {values.max()}, not 0 to {highest}")
    return np.rint(values * (255 / highest)).astype(np.uint8)


def corners_of(pixels: NDArray) -> tuple[NDArray[np.float64], float]:
    """Color (channels,) of the four corners of (H, W) or (H, W, channels), and its tolerance.

    Each corner is as large as one pixel of the result will be. A pixel that differs by no more than the tolerance is
    background.
    """
    height, width = pixels.shape[:2]
    edge = max(1, min(height, width) // IMAGE_SIZE)
    rows, columns = (np.r_[:edge, length - edge : length] for length in (height, width))
    corners = pixels[np.ix_(rows, columns)].reshape(4 * edge**2, -1).astype(float)
    color = np.median(corners, axis=0)
    deviation = np.median(np.abs(corners - color).max(axis=1))
    return color, min(MAX_TOLERANCE, max(TOLERANCE, DEVIATIONS * float(deviation)))


def find_box(colors: Image.Image, opacity: Image.Image | None) -> tuple[int, int, int, int]:
    """Left, upper, right, lower edge of the garment. Raises PictureError if none."""
    # A mean of 3 x 3 pixels removes noise. Small pictures are blurred less, since it would move their edges.
    smooth = colors.filter(ImageFilter.BoxBlur(min(1, max(colors.size) / 400)))
    if opacity and corners_of(np.asarray(opacity))[0][0] < MIDDLE:  # cut out: even a white garment is found
        difference, tolerance = np.asarray(opacity), TOLERANCE
    else:
        color, tolerance = corners_of(np.asarray(smooth))
        ground = Image.new("RGB", smooth.size, tuple(round(channel) for channel in color))
        difference = np.asarray(reduce(ImageChops.lighter, ImageChops.difference(smooth, ground).split()))
    profiles = [difference.max(axis=axis) for axis in (0, 1)]
    if profiles[0].max() <= tolerance:
        raise PictureError(NOTHING_FOUND)
    longest = max(np.ptp(np.flatnonzero(profile > tolerance)) + 1 for profile in profiles)
    depth = max(2, int(EDGE_DEPTH * longest / IMAGE_SIZE))  # in a small picture the blur's outer pixel is no edge
    (left, right), (upper, lower) = (
        (first_edge(profile, tolerance, depth), len(profile) - first_edge(profile[::-1], tolerance, depth))
        for profile in profiles
    )
    return left, upper, right, lower


def first_edge(profile: NDArray, tolerance: float, depth: int) -> int:
    """Where a garment begins, by the largest difference in each row or column.

    `profile` (n,) must exceed the tolerance somewhere.
    """
    rough = int(np.argmax(profile > tolerance))
    strength = max(tolerance, EDGE_STRENGTH * float(profile[rough : rough + depth].max()))
    return rough + int(np.argmax(profile[rough:] > strength))


def fit(gray: Gray, box: tuple[int, int, int, int], ground: float) -> Gray:
    """Scale the content of `box`, sharpen it, and center it on `ground`, (28, 28)."""
    left, upper, right, lower = box
    scale = IMAGE_SIZE / max(right - left, lower - upper)
    width, height = (max(1, round(length * scale)) for length in (right - left, lower - upper))
    # Lanczos averages over all pixels of the box and keeps more detail of a blurred picture than a plain mean.
    small = Image.fromarray(gray).resize((width, height), Image.Resampling.LANCZOS, box=box).filter(SHARPENING)
    result = np.full((IMAGE_SIZE, IMAGE_SIZE), round(ground), np.uint8)
    # If the margin is odd, the data set has the larger half above and on the left.
    top, start = (IMAGE_SIZE - height + 1) // 2, (IMAGE_SIZE - width + 1) // 2
    result[top : top + height, start : start + width] = np.asarray(small)
    return result
