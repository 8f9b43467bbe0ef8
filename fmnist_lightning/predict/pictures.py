"""Make a picture look like the images that a model was trained on: a centered crop, or a light garment on black.

A data set's `framing` says which. data/pictures.py has the crop; the rest of this module is about garments.

Fashion-MNIST was made from a shop's photographs (Xiao et al. 2017, https://arxiv.org/abs/1708.07747, section 2). Its
makers trimmed edges within 5% of the corners' color, shrank the longest edge to 28 pixels, sharpened with a Gaussian of
radius and standard deviation 1.0, extended the shortest edge to 28 with the garment centered, negated, and converted to
8-bit gray. So a pixel's value is its distance from a white background. `prepare` takes the distance from any
background, which it interpolates from the picture's edges, and trims frames and bars first. Three other changes improve
round trips: it averages where they dropped rows and columns; it accepts noise; it finds edges through blur. LOG.md and
docs/mistakes.md list what was tried, on the training set alone.
"""

from functools import reduce
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageFilter

from fmnist_lightning.data.pictures import (
    PictureError,
    Pixels,
    check_pixels,
    crop,
    explain,
    lay_on,
    open_picture,
    shrink,
    working_size,
)
from fmnist_lightning.data.sets.fashion_mnist import IMAGE_SIZE
from fmnist_lightning.data.source import DataInfo

Invert = Literal["auto", "always", "never"]
Gray = NDArray[np.uint8]  # (H, W)
Floats = NDArray[np.float32]
Box = tuple[int, int, int, int]  # left, upper, right, lower

# Pictures more than twice as large are first shrunk to once to twice this, for time and memory. What fills a tenth of
# such a picture still has more pixels than it needs.
WORKING_SIZE = 512

# 5% of full brightness, as in the paper; less for a garment that differs by less than twice this from its background.
TOLERANCE = 0.05 * 255
# A picture that differs less from its background, after a blur, shows nothing: JPEG alone makes differences of 2.
LEAST_CONTRAST = 4
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
# Of 200 dyed garments of the training set, 92% instead of 90% are right if colors count below this share of brightness
# in their distance from a gray or colored background. On white, 96% are, and 94% if colors always count.
WEAK_BRIGHTNESS = 0.7
# A cut-out that is brighter is laid on black: of 200 white ones, 89% are right, and 88% on white.
BRIGHT = 200
# The background is judged in a thumbnail of this many pixels, in which noise and fine textures average out.
THUMBNAIL = 64
CORNER = 6  # pixels of a thumbnail's corner, a tenth of its edge
# Of the corners' pixels in a thumbnail, at least so many are background if it is plain. Of 1,200 images of the training
# set that fill their picture, 95% have 90% or more; wood has 80% or less, grass less than half.
PLAIN = 0.85
# A bar ends at a line on whose two sides this many pixels differ. It covers at most this share of a picture's height:
# a square photograph on a phone's screen has bars of 27%.
BAR_EDGE = 0.95
LARGEST_BAR = 0.3
# What it leaves is a picture of its own if so much of its edge has one color, and something in it another. Of the same
# 1,200 images, four have edges as straight as a bar's; 81 to 89% of the rest's edge has one color.
FREE_EDGE = 0.9
LEAST_GARMENT = 0.02
# A garment darker than this, on black, is hardly seen by a model: black T-shirts become sandals.
LEAST_BRIGHTNESS = 24
NOTHING_FOUND = "shows nothing that differs from its background (take one that is clearly lighter or darker)"
NOT_PLAIN = "background is not plain"


class Framed(NamedTuple):
    """A picture as an image of the data set."""

    pixels: Pixels  # (C, H, W)
    note: str  # why its prediction is doubtful, or ""


def load_picture(path: str | Path, info: DataInfo, invert: Invert = "auto") -> Framed:
    """Read a picture file. Raises PictureError, which names it."""
    try:
        with Path(path).open("rb") as file:
            return read_picture(file, info, invert)
    except (PictureError, OSError, ValueError) as error:  # ValueError: the name holds a zero byte
        raise PictureError(f"cannot read {path}: it {explain(error)}") from error


def read_picture(file: BinaryIO, info: DataInfo, invert: Invert = "auto") -> Framed:
    """Read a picture or an animation's first frame; seekable file.

    Raises PictureError if it is no picture, damaged, too large, shows nothing, or does not suit the model.
    """
    least = WORKING_SIZE if info.framing == "garment" else working_size(info.image_shape)
    with open_picture(file, least) as image:
        return frame(image, info, invert)


def frame(image: Image.Image, info: DataInfo, invert: Invert = "auto") -> Framed:
    """Make a picture look like the images of the data set, as its `framing` says.

    `auto` never inverts a crop. Raises PictureError if the picture shows nothing or does not suit the model, ValueError
    if Pillow can't convert the color mode.
    """
    if info.framing == "crop":
        pixels = crop(image, info.image_shape)
        return Framed(255 - pixels if invert == "always" else pixels, "")
    channels, height, width = info.image_shape
    if channels != 1 or height != width:
        raise PictureError(f"can't become {channels} x {height} x {width} values: a garment is gray and square")
    gray, note = prepare(image, invert, height)
    return Framed(gray[None], note)


def prepare(image: Image.Image, invert: Invert = "auto", size: int = IMAGE_SIZE) -> tuple[Gray, str]:
    """Make a picture of a garment look like Fashion-MNIST's images, (size, size) uint8, and a note, as in Framed.

    The background becomes black. `auto` shows how far each pixel is from the background; `never` and `always` show the
    garment's own brightness, or its negative. Transparent pixels count as white, and for `never`, or if
    what is opaque is bright, as black.
    A picture of exactly that size is not trimmed, only made gray and inverted if need be, for `auto` if its corners are
    bright. So an image of the data set that was saved as a picture comes back as it was: none has bright corners.
    Raises PictureError if there is only background, ValueError if Pillow can't convert the color mode.
    """
    check_pixels(image)
    picture = shrink(image, reduction)
    opacity = picture.getchannel("A") if picture.mode == "RGBA" else None
    colors = lay_on(picture, backing(picture, invert))
    if image.size == (size, size):
        gray = np.asarray(colors.convert("L"))
        if not np.ptp(gray):
            raise PictureError(NOTHING_FOUND)
        bright = corners_of(gray, size)[0] > MIDDLE
        return (255 - gray if invert == "always" or (invert == "auto" and bright) else gray), ""
    if box := inside_of_bars(colors, size):
        colors, opacity = colors.crop(box), opacity and opacity.crop(box)
    smoothed = smooth(colors)
    ground, plain = find_ground(colors, smoothed, size)
    difference = np.asarray(distance(smoothed, ground))
    if opacity and corners_of(np.asarray(opacity), size)[0] < MIDDLE:  # cut out: its edges are known
        difference, plain = np.asarray(opacity), True
    noise = min(MAX_TOLERANCE, DEVIATIONS * float(corners_of(difference, size)[0]))
    box, tolerance = find_box(difference, noise, size)
    left, upper, right, lower = box
    within = difference[upper:lower, left:right]
    if (within > tolerance).mean() < LEAST_GARMENT:  # scattered noise
        raise PictureError(NOTHING_FOUND)
    if invert == "auto":
        gray = contrast(colors.crop(box), ground.crop(box))
        gray[within <= noise / 2] = 0
    else:
        gray = np.array(colors.crop(box).convert("L"))
        gray = np.where(within > tolerance, gray if invert == "never" else 255 - gray, 0).astype(np.uint8)
        if gray[within > tolerance].mean() < LEAST_BRIGHTNESS:
            return fit(gray, size), f"too dark with --invert {invert}"
    return fit(gray, size), "" if plain else NOT_PLAIN


def reduction(size: tuple[int, int]) -> int:
    """How many times smaller a picture may become."""
    return max(1, max(size) // WORKING_SIZE)


def backing(picture: Image.Image, invert: Invert) -> str:
    """What lies behind an RGBA picture so that what is opaque can be seen."""
    if invert != "auto" or picture.mode == "RGB":
        return "black" if invert == "never" else "white"
    gray, opacity = (
        np.asarray(part, np.float32) for part in (picture.convert("RGB").convert("L"), picture.getchannel("A"))
    )
    return "black" if (gray * opacity).sum() > BRIGHT * opacity.sum() else "white"


def corners_of(pixels: NDArray, size: int) -> NDArray[np.float64]:
    """Median (channels,) of the four corners of (H, W) or (H, W, channels).

    Each corner is as large as one of the `size` x `size` pixels of the result will be.
    """
    height, width = pixels.shape[:2]
    edge = max(1, min(height, width) // size)
    rows, columns = (np.r_[:edge, length - edge : length] for length in (height, width))
    return np.median(pixels[np.ix_(rows, columns)].reshape(4 * edge**2, -1), axis=0)


def smooth(image: Image.Image) -> Image.Image:
    """Means of 3 x 3 pixels, without noise. Small pictures are blurred less, since it would move their edges."""
    return image.filter(ImageFilter.BoxBlur(min(1, max(image.size) / 400)))


def distance(colors: Image.Image, ground: Image.Image) -> Image.Image:
    """The largest difference of a channel at each pixel, in one channel."""
    return reduce(ImageChops.lighter, ImageChops.difference(colors, ground).split())


def thumbnail(colors: Image.Image) -> Floats:
    return np.asarray(colors.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX), np.float32)


def near(values: Floats, color: Floats | NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which of (..., channels) equal a color but for the tolerance."""
    return np.abs(values - color).max(axis=-1) <= TOLERANCE


def edge_of(values: NDArray) -> NDArray:
    """The outermost pixels of a square, once around."""
    return np.concatenate([values[0], values[1:, -1], values[-1, -2::-1], values[-2:0:-1, 0]])


def is_even(edge: Floats) -> bool:
    """Whether the edge of a picture changes its color nowhere or gradually."""
    return bool(near(edge, np.roll(edge, 1, axis=0)).all())


def inside_of_bars(colors: Image.Image, size: int) -> Box | None:
    """What a frame, a letterbox, or an app's bars surround, if it is a picture with a plain background of its own."""
    width, height = colors.size
    if min(width, height) < 2 * size:
        return None
    gray = np.asarray(colors.convert("L"))
    by_row, by_column = ends_of_bars(gray), ends_of_bars(gray.T)
    # A thick frame needs a large margin, with which the edges of a bag may look like a frame's.
    for margin in (0.05, 0.2):
        rows = columns = (margin, 1 - margin)
        # First by each line without its margins, where other bars may lie; then by what the bars leave of it.
        for _ in range(3):
            rows, columns = within_bars(by_row, *columns), within_bars(by_column, *rows)
            if rows == columns == (0, 1):
                break
        box = (round(columns[0] * width), round(rows[0] * height), round(columns[1] * width), round(rows[1] * height))
        if box != (0, 0, width, height) and is_picture(colors.crop(box)):
            return box
    return None


def is_picture(colors: Image.Image) -> bool:
    """Whether a part has a plain background of its own."""
    small = thumbnail(colors)
    edge = edge_of(small)
    color = np.median(edge, axis=0)
    if near(edge, color).mean() >= FREE_EDGE:
        ground = near(small, color)
    elif is_even(edge):
        ground = near(small, interpolated(small, 1))
    else:
        return False
    return bool(ground.mean() <= 1 - LEAST_GARMENT)


def ends_of_bars(gray: Gray) -> NDArray[np.bool_]:
    """Where a row differs from the next but one, since JPEG blurs: (H - 2, 128 columns or a few more)."""
    some = gray[:, :: max(1, gray.shape[1] // 128)].astype(np.int16)
    return np.abs(some[2:] - some[:-2]) > TOLERANCE


def within_bars(ends: NDArray[np.bool_], start: float, end: float) -> tuple[float, float]:
    """Where the bars above and below end, by the columns from `start` to `end`; all from 0 to 1.

    A bar ends where a whole row differs.
    """
    height, width = ends.shape[0] + 2, ends.shape[1]
    whole = np.flatnonzero(ends[:, round(start * width) : round(end * width)].mean(axis=1) >= BAR_EDGE) + 1
    above, below = whole[whole < LARGEST_BAR * height], whole[whole >= (1 - LARGEST_BAR) * height]
    return (int(above.max(initial=-1)) + 1) / height, int(below.min(initial=height)) / height


def find_ground(colors: Image.Image, smoothed: Image.Image, size: int) -> tuple[Image.Image, bool]:
    """The background, also behind the garment, and whether it is plain.

    It is the corners' color or, if that is at fault, interpolated from all edges: for gradients, dark corners, floors.
    """
    small, pixels = thumbnail(colors), np.asarray(smoothed)
    color, edge = corners_of(pixels, size), edge_of(small)
    one, all_edges = near(small, color), near(small, interpolated(small, 1))
    if (is_even(edge) or has_floor(small, color)) and all_edges.mean() > one.mean() + 0.1:
        values = interpolated(pixels, max(1, min(colors.size) // size // 2))
        return Image.fromarray(np.rint(values.clip(0, 255)).astype(np.uint8)), is_plain(all_edges)
    return Image.new("RGB", colors.size, tuple(round(channel) for channel in color)), is_plain(one)


def has_floor(small: Floats, color: NDArray[np.float64]) -> bool:
    """Whether opposite edges of a thumbnail change alike in a few places, as before a wall and a level floor.

    A garment that touches its picture's edges also does that, but leaves more than half of them in the corners' color.
    """
    edge = edge_of(small)
    changes = np.count_nonzero(~near(edge, np.roll(edge, 1, axis=0)))
    alike = max(near(small[:, 0], small[:, -1]).mean(), near(small[0], small[-1]).mean())
    return bool(changes <= 8 and alike >= 0.97 and near(edge, color).mean() < 0.5)


def is_plain(explained: NDArray[np.bool_]) -> bool:
    """Whether a thumbnail's corners are background, by which of its pixels are."""
    ends = np.r_[:CORNER, THUMBNAIL - CORNER : THUMBNAIL]
    return bool(explained[np.ix_(ends, ends)].mean() >= PLAIN)


def interpolated(values: NDArray, thickness: int) -> Floats:
    """A surface (H, W, channels) through the means of the outer lines of each side, a Coons patch.

    https://en.wikipedia.org/wiki/Coons_patch
    """
    height, width, channels = values.shape
    upper, lower = (side.mean(axis=0, dtype=np.float32).T for side in (values[:thickness], values[-thickness:]))
    left, right = (side.mean(axis=1, dtype=np.float32).T for side in (values[:, :thickness], values[:, -thickness:]))
    down, across = (np.linspace(0, 1, length, dtype=np.float32) for length in (height, width))
    # Sides are (channels, n). They meet in the corners, by means of both.
    first, last = upper[:, :1] + left[:, :1], upper[:, -1:] + right[:, :1]
    above = upper - (first * (1 - across) + last * across) / 2
    first, last = lower[:, :1] + left[:, -1:], lower[:, -1:] + right[:, -1:]
    below = lower - (first * (1 - across) + last * across) / 2
    # The sum of four products is one product of matrices, which is fast.
    ones = np.ones((channels, 1), np.float32)
    of_rows = np.stack([left, right, ones * (1 - down), ones * down], axis=2)  # (channels, H, 4)
    of_columns = np.stack([ones * (1 - across), ones * across, above, below], axis=1)  # (channels, 4, W)
    return (of_rows @ of_columns).transpose(1, 2, 0)


def find_box(difference: Gray, noise: float, size: int) -> tuple[Box, float]:
    """The edges of the garment, and the tolerance that they exceed. Raises PictureError if none."""
    profiles = [difference.max(axis=axis) for axis in (0, 1)]
    strongest = float(profiles[0].max())
    tolerance = max(noise, min(TOLERANCE, strongest / 2))
    if strongest <= max(noise, LEAST_CONTRAST):
        raise PictureError(NOTHING_FOUND)
    longest = max(np.ptp(np.flatnonzero(profile > tolerance)) + 1 for profile in profiles)
    depth = max(2, int(EDGE_DEPTH * longest / size))  # in a small picture the blur's outer pixel is no edge
    (left, right), (upper, lower) = (
        (first_edge(profile, tolerance, depth), len(profile) - first_edge(profile[::-1], tolerance, depth))
        for profile in profiles
    )
    return (left, upper, right, lower), tolerance


def first_edge(profile: NDArray, tolerance: float, depth: int) -> int:
    """Where a garment begins, by the largest difference in each row or column.

    `profile` (n,) must exceed the tolerance somewhere.
    """
    rough = int(np.argmax(profile > tolerance))
    strength = max(tolerance, EDGE_STRENGTH * float(profile[rough : rough + depth].max()))
    return rough + int(np.argmax(profile[rough:] > strength))


def contrast(colors: Image.Image, ground: Image.Image) -> Gray:
    """How far each pixel is from the background: 255 is black on white, or white on black.

    The distance in brightness is stretched to that range, on the side on which most of the garment lies. If the garment
    differs from its background by its color above all, the channels' distance counts, too.
    """
    gray, behind = (np.asarray(part.convert("L"), np.float32) for part in (colors, ground))
    lighter, by_channel = gray - behind, np.asarray(distance(colors, ground))
    result = np.abs(lighter) * (255 / np.maximum(255 - behind if lighter.sum() > 0 else behind, 1))
    if np.abs(lighter).mean() < WEAK_BRIGHTNESS * by_channel.mean():
        result = np.maximum(result, by_channel)
    return np.rint(result.clip(0, 255)).astype(np.uint8)


def fit(gray: Gray, size: int) -> Gray:
    """Scale, sharpen, and center on black, (size, size)."""
    scale = size / max(gray.shape)
    height, width = (max(1, round(length * scale)) for length in gray.shape)
    # Lanczos averages over all pixels of the box and keeps more detail of a blurred picture than a plain mean.
    small = Image.fromarray(gray).resize((width, height), Image.Resampling.LANCZOS).filter(SHARPENING)
    result = np.zeros((size, size), np.uint8)
    # If the margin is odd, the data set has the larger half above and on the left.
    top, start = (size - height + 1) // 2, (size - width + 1) // 2
    result[top : top + height, start : start + width] = np.asarray(small)
    return result
