"""Make a picture look like the images that a model was trained on: a centered crop, or a light garment on black.

A data set's `framing` says which. data/pictures.py has the crop; the rest of this module is about garments.

Fashion-MNIST was made from a shop's photographs (Xiao et al. 2017, https://arxiv.org/abs/1708.07747, section 2). Its
makers trimmed edges within 5% of the corners' color, shrank the longest edge to 28 pixels, sharpened with a Gaussian of
radius and standard deviation 1.0, extended the shortest edge to 28 with the garment centered, negated, and converted to
8-bit gray. `prepare` does the same with three changes that improve round trips: it averages where they dropped rows
and columns; it accepts a background of any color, with noise; it finds edges through blur. LOG.md lists what was tried,
always on the validation split of the training set.
"""

from functools import reduce
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageFilter

from fmnist_lightning.data.pictures import (
    PictureError,
    Pixels,
    check_pixels,
    crop,
    explain,
    flatten,
    open_picture,
    working_size,
)
from fmnist_lightning.data.sets.fashion_mnist import IMAGE_SIZE
from fmnist_lightning.data.source import DataInfo

Invert = Literal["auto", "always", "never"]
Gray = NDArray[np.uint8]  # (H, W)

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
NOTHING_FOUND = (
    "shows nothing but background (use a garment on a plain background; if that is gray, --invert always or never may "
    "help)"
)


def load_picture(path: str | Path, info: DataInfo, invert: Invert = "auto") -> Pixels:
    """Read a picture file, (C, H, W) uint8. Raises PictureError, which names it."""
    try:
        with Path(path).open("rb") as file:
            return read_picture(file, info, invert)
    except (PictureError, OSError, ValueError) as error:  # ValueError: the name holds a zero byte
        raise PictureError(f"cannot read {path}: it {explain(error)}") from error


def read_picture(file: BinaryIO, info: DataInfo, invert: Invert = "auto") -> Pixels:
    """Read a picture or an animation's first frame, (C, H, W) uint8; seekable file.

    Raises PictureError if it is no picture, damaged, too large, shows nothing, or does not suit the model.
    """
    least = WORKING_SIZE if info.framing == "garment" else working_size(info.image_shape)
    with open_picture(file, least) as image:
        return frame(image, info, invert)


def frame(image: Image.Image, info: DataInfo, invert: Invert = "auto") -> Pixels:
    """Make a picture look like the images of the data set, (C, H, W) uint8, as its `framing` says.

    `auto` never inverts a crop. Raises PictureError if the picture shows nothing or does not suit the model, ValueError
    if Pillow can't convert the color mode.
    """
    if info.framing == "crop":
        pixels = crop(image, info.image_shape)
        return 255 - pixels if invert == "always" else pixels
    channels, height, width = info.image_shape
    if channels != 1 or height != width:
        raise PictureError(f"can't become {channels} x {height} x {width} values: a garment is gray and square")
    return prepare(image, invert, height)[None]


def prepare(image: Image.Image, invert: Invert = "auto", size: int = IMAGE_SIZE) -> Gray:
    """Make a picture of a garment look like Fashion-MNIST's images, (size, size) uint8.

    A picture of exactly that size is not trimmed, only made gray and inverted if need be. So an image of the data
    set that was saved as a picture comes back as it was: no training image has bright corners.
    `auto` inverts a picture with bright corners, as the data set's makers did with all. Transparent pixels count as
    white, and for `never` as black.
    Raises PictureError if there is only background, ValueError if Pillow can't convert the color mode.
    """
    check_pixels(image)
    colors, opacity = flatten(image, "black" if invert == "never" else "white", reduction)
    gray = np.asarray(colors.convert("L"))
    ground = float(corners_of(gray, size)[0][0])
    if invert == "always" or (invert == "auto" and ground > MIDDLE):
        gray, ground = 255 - gray, 255 - ground
    if image.size != (size, size):
        box = find_box(colors, opacity, size)
        if ground < MIDDLE:  # else the user forbade or forced an inversion, and keeps the brightness too
            stretched = (np.arange(256) - ground) * (255 / (255 - ground))
            gray, ground = np.rint(stretched.clip(0, 255)).astype(np.uint8)[gray], 0
        gray = fit(gray, box, ground, size)
    if not np.ptp(gray):
        raise PictureError(NOTHING_FOUND)
    return gray


def reduction(size: tuple[int, int]) -> int:
    """How many times smaller a picture may become."""
    return max(1, max(size) // WORKING_SIZE)


def corners_of(pixels: NDArray, size: int) -> tuple[NDArray[np.float64], float]:
    """Color (channels,) of the four corners of (H, W) or (H, W, channels), and its tolerance.

    Each corner is as large as one of the `size` x `size` pixels of the result will be. A pixel that differs by no more
    than the tolerance is background.
    """
    height, width = pixels.shape[:2]
    edge = max(1, min(height, width) // size)
    rows, columns = (np.r_[:edge, length - edge : length] for length in (height, width))
    corners = pixels[np.ix_(rows, columns)].reshape(4 * edge**2, -1).astype(float)
    color = np.median(corners, axis=0)
    deviation = np.median(np.abs(corners - color).max(axis=1))
    return color, min(MAX_TOLERANCE, max(TOLERANCE, DEVIATIONS * float(deviation)))


def find_box(colors: Image.Image, opacity: Image.Image | None, size: int) -> tuple[int, int, int, int]:
    """Left, upper, right, lower edge of the garment. Raises PictureError if none."""
    # A mean of 3 x 3 pixels removes noise. Small pictures are blurred less, since it would move their edges.
    smooth = colors.filter(ImageFilter.BoxBlur(min(1, max(colors.size) / 400)))
    if opacity and corners_of(np.asarray(opacity), size)[0][0] < MIDDLE:  # cut out: even a white garment is found
        difference, tolerance = np.asarray(opacity), TOLERANCE
    else:
        color, tolerance = corners_of(np.asarray(smooth), size)
        ground = Image.new("RGB", smooth.size, tuple(round(channel) for channel in color))
        difference = np.asarray(reduce(ImageChops.lighter, ImageChops.difference(smooth, ground).split()))
    profiles = [difference.max(axis=axis) for axis in (0, 1)]
    if profiles[0].max() <= tolerance:
        raise PictureError(NOTHING_FOUND)
    longest = max(np.ptp(np.flatnonzero(profile > tolerance)) + 1 for profile in profiles)
    depth = max(2, int(EDGE_DEPTH * longest / size))  # in a small picture the blur's outer pixel is no edge
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


def fit(gray: Gray, box: tuple[int, int, int, int], ground: float, size: int) -> Gray:
    """Scale the content of `box`, sharpen it, and center it on `ground`, (size, size)."""
    left, upper, right, lower = box
    scale = size / max(right - left, lower - upper)
    width, height = (max(1, round(length * scale)) for length in (right - left, lower - upper))
    # Lanczos averages over all pixels of the box and keeps more detail of a blurred picture than a plain mean.
    small = Image.fromarray(gray).resize((width, height), Image.Resampling.LANCZOS, box=box).filter(SHARPENING)
    result = np.full((size, size), round(ground), np.uint8)
    # If the margin is odd, the data set has the larger half above and on the left.
    top, start = (size - height + 1) // 2, (size - width + 1) // 2
    result[top : top + height, start : start + width] = np.asarray(small)
    return result
