"""Pictures of any size and colour mode to what the net was trained on: 28 x 28, grey, light garment on dark.

Fashion-MNIST was made of a shop's photographs (Xiao et al. 2017, https://arxiv.org/abs/1708.07747, section 2): trim
edges whose colour is within 5 % of the corners'; shrink the longest edge to 28; sharpen with a Gaussian of radius and
standard deviation 1.0; extend the shortest edge to 28, the garment in the middle; negate; 8-bit grey. Here the same is
done, but for three things that make round trips better: averaging, where they left out rows and columns; a background
that need be neither white nor black nor free of noise; edges found through blur. What was tried, always on the
validation cut of the training set, stands in LOG.md.
"""

from contextlib import nullcontext
from functools import reduce
from pathlib import Path
from threading import Lock
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageChops, ImageFilter, UnidentifiedImageError

from fmnist_lightning.data.fashion_mnist import IMAGE_SIZE
from fmnist_lightning.errors import UserError

Invert = Literal["auto", "always", "never"]
Grey = NDArray[np.uint8]  # (H, W)

Image.init()  # registers what this Pillow was built with
# Raster pictures only: Pillow hands PostScript to an external program, and takes any bytes at all for some old kinds.
FORMATS = tuple(
    kind for kind in ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000", "PPM") if kind in Image.OPEN
)
# From where on Pillow warns of a decompression bomb: 256 MB of RGB.
MAX_PIXELS = 2**28 // 3
# From where on only one is unpacked at a time, by however many threads: 16 million pixels take 64 MB and more.
MANY_PIXELS = 2**24
ONE_AT_A_TIME = Lock()
# Pictures more than twice as large are shrunk to between once and twice this first, for time and memory; what fills a
# tenth of such a picture still has more pixels than it needs.
WORKING_SIZE = 512

# Of full brightness, as the paper says.
TOLERANCE = 0.05 * 255
# In a noisy photograph the tolerance is so many median deviations of the corners' pixels, up to a quarter of full
# brightness: 97 % of round trips with noise of standard deviation 8 agree, 60 to 74 % without; with 6 of them, 97 % too
# where the noise is coloured, but 73 % where it is grey (250 images of the validation cut, 224 and 450 pixels).
DEVIATIONS = 8
MAX_TOLERANCE = 0.25 * 255
# A blurred edge is where it has half the strength that it reaches within a pixel of the result, a little less so that
# a faint rim, one such pixel wide, counts as the garment's.
EDGE_STRENGTH = 0.5
EDGE_DEPTH = 0.9
SHARPENING = ImageFilter.UnsharpMask(radius=1, percent=40, threshold=0)
MIDDLE = 127.5
# By EXIF's orientation. ImageOps.exif_transpose rewrites all other tags too, and fails where one has a wrong type.
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
    """What is wrong with one picture."""


class Background(NamedTuple):
    """What the corners of a picture show."""

    colour: NDArray[np.float64]  # (channels,)
    tolerance: float  # what differs from it by no more is background


def load_picture(path: str | Path, invert: Invert = "auto") -> Grey:
    """The picture in a file, (28, 28) uint8. Raises PictureError, which names the file."""
    try:
        with Path(path).open("rb") as file:
            return read_picture(file, invert)
    except PictureError as error:
        raise PictureError(f"{path}: {error}") from error
    except (OSError, ValueError) as error:  # ValueError: of a name that holds a zero byte
        raise PictureError(f"{path}: {explain(path, error)}") from error


def explain(path: str | Path, error: OSError | ValueError) -> str:
    """Why a file can't be opened."""
    if not isinstance(error, OSError):
        return f"is no name of a file ({error})"
    if isinstance(error, FileNotFoundError):
        link = Path(path).is_symlink()
        return f"is a link to {Path(path).readlink()}, which does not exist" if link else "does not exist"
    return f"can't be read ({error.strerror or error})"


def read_picture(file: BinaryIO, invert: Invert = "auto") -> Grey:
    """The picture in an open file that can be searched, (28, 28) uint8; of an animation, the first frame.

    Raises PictureError where it is no picture, damaged, too large, or shows nothing.
    """
    try:
        with Image.open(file, formats=FORMATS) as image:
            check_pixels(image)
            image.draft(None, (WORKING_SIZE, WORKING_SIZE))  # a large JPEG need not be decoded in full
            with ONE_AT_A_TIME if image.width * image.height > MANY_PIXELS else nullcontext():
                return prepare(upright(image), invert)
    except UnidentifiedImageError as error:
        raise PictureError(unknown_kind(file)) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureError(f"has too many pixels; at most {MAX_PIXELS:,} are read: make it smaller") from error
    except PictureError:
        raise
    except Exception as error:  # Pillow's decoders meet damaged bytes with exceptions of many kinds
        raise PictureError(f"is cut short or damaged ({error})") from error


def unknown_kind(file: BinaryIO) -> str:
    """Why Pillow knows no kind of picture for a file."""
    if file.seek(0, 2) == 0:
        return "is empty"
    return f"is no picture, or damaged, or of a kind that is not read here; save it as one of {', '.join(FORMATS)}"


def check_pixels(image: Image.Image) -> None:
    """Raise PictureError for no pixels, and for a decompression bomb before anything of it is unpacked.

    By itself Pillow only warns up to twice the limit, for the whole process and once.
    """
    width, height = image.size
    if not width * height:
        raise PictureError("has no pixels")
    if width * height > MAX_PIXELS:
        raise PictureError(
            f"has {width:,} x {height:,} pixels; at most {MAX_PIXELS:,} in all are read: make it smaller"
        )


def upright(image: Image.Image) -> Image.Image:
    """The picture turned as its camera says. What the camera says badly is not followed, as viewers do."""
    image.load()
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # as above; the pixels were read
        return image
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def prepare(image: Image.Image, invert: Invert = "auto") -> Grey:
    """A picture as the data set has it, (28, 28) uint8.

    What has just 28 x 28 pixels is taken to be cut already: it is only made grey and, if need be, inverted. So an image
    of the data set, saved as a picture, comes back as it was: no training image has bright corners.
    `auto` inverts where the corners are bright, as the data set's makers did with all. Transparent counts as
    background: as white, and for `never` as black.
    Raises PictureError where nothing but background is found, or the colour mode is unknown.
    """
    check_pixels(image)
    colours, opacity = flatten(image, "black" if invert == "never" else "white")
    grey = np.asarray(colours.convert("L"))
    ground = float(corners_of(grey).colour[0])
    if invert == "always" or (invert == "auto" and ground > MIDDLE):
        grey, ground = 255 - grey, 255 - ground
    if image.size != (IMAGE_SIZE, IMAGE_SIZE):
        box = find_box(colours, opacity)
        if ground < MIDDLE:  # else the user forbade or forced an inversion, and keeps the brightness too
            grey, ground = darken(grey, ground), 0
        grey = fit(grey, box, ground)
    if not np.ptp(grey):
        raise PictureError(NOTHING_FOUND)
    return grey


NOTHING_FOUND = (
    "shows nothing but background; expected a garment before a plain one; before a grey one, --invert always or never "
    "may find it"
)


def flatten(image: Image.Image, backing: str) -> tuple[Image.Image, Image.Image | None]:
    """The picture in RGB, on `backing` where it is transparent, and its opacity, 8 bits, if it has any; both shrunk.

    Shrunk first, where that can be, so that a large picture takes little more memory than its pixels.
    Raises PictureError for a colour mode that can't be converted.
    """
    opacity = None
    try:
        if image.mode[0] in "IF":
            # At least four by four pixels are left for the mean that becomes one.
            image = Image.fromarray(scale_depth(np.asarray(image), max(1, shrinkage(image) // 4)))
        elif image.has_transparency_data:
            image = shrink(image if image.mode == "RGBA" else image.convert("RGBA"))
            opacity = image.getchannel("A")
            image = Image.alpha_composite(Image.new("RGBA", image.size, backing), image)
        elif image.mode not in ("L", "RGB"):
            image = image.convert("RGB")
        return shrink(image).convert("RGB"), opacity
    except ValueError as error:
        raise PictureError(f"has the colour mode {image.mode}, which can't be converted: save it as RGB") from error


def shrinkage(image: Image.Image) -> int:
    return max(1, max(image.size) // WORKING_SIZE)


def shrink(image: Image.Image) -> Image.Image:
    """Means of so many pixels each way that the longest edge has between once and twice WORKING_SIZE, or fewer."""
    return image.reduce(shrinkage(image))


def scale_depth(values: NDArray, step: int = 1) -> Grey:
    """Every `step`th row and column of grey of 16 bits, or of floats in 0..1, in 8 bits.

    Pillow's own conversion clips some of them at 255. Raises PictureError for values outside, wherever they are.
    """
    highest = 1.0 if values.dtype.kind == "f" else 65535
    if not (values.min() >= 0 and values.max() <= highest):  # so that NaN is refused too
        raise PictureError(f"has grey values from {values.min()} to {values.max()}; expected 0 to {highest}")
    return np.rint(values[::step, ::step] * (255 / highest)).astype(np.uint8)


def corners_of(pixels: NDArray) -> Background:
    """What the four corners of (H, W) or (H, W, channels) show, each as large as a pixel of the result will be."""
    height, width = pixels.shape[:2]
    edge = max(1, min(height, width) // IMAGE_SIZE)
    rows, columns = (np.r_[:edge, length - edge : length] for length in (height, width))
    corners = pixels[np.ix_(rows, columns)].reshape(4 * edge**2, -1).astype(float)
    colour = np.median(corners, axis=0)
    deviation = np.median(np.abs(corners - colour).max(axis=1))
    return Background(colour, min(MAX_TOLERANCE, max(TOLERANCE, DEVIATIONS * float(deviation))))


def find_box(colours: Image.Image, opacity: Image.Image | None) -> tuple[int, int, int, int]:
    """Left, upper, right and lower edge of what is not background.

    Raises PictureError where there is nothing.
    """
    # A mean of 3 x 3 takes noise off; in small pictures, of less, since there it would move edges.
    smooth = colours.filter(ImageFilter.BoxBlur(min(1, max(colours.size) / 400)))
    background = corners_of(np.asarray(smooth))
    if opacity and corners_of(np.asarray(opacity)).colour[0] < MIDDLE:  # cut out: a white garment is found too
        difference, tolerance = np.asarray(opacity), TOLERANCE
    else:
        ground = Image.new("RGB", smooth.size, tuple(round(channel) for channel in background.colour))
        channels = ImageChops.difference(smooth, ground).split()
        difference, tolerance = np.asarray(reduce(ImageChops.lighter, channels)), background.tolerance
    profiles = [difference.max(axis=axis) for axis in (0, 1)]
    if profiles[0].max() <= tolerance:
        raise PictureError(NOTHING_FOUND)
    longest = max(np.ptp(np.flatnonzero(profile > tolerance)) + 1 for profile in profiles)
    depth = max(2, int(EDGE_DEPTH * longest / IMAGE_SIZE))  # in small pictures the blur's outer pixel is no edge
    (left, right), (upper, lower) = (
        (first_edge(profile, tolerance, depth), len(profile) - first_edge(profile[::-1], tolerance, depth))
        for profile in profiles
    )
    return left, upper, right, lower


def first_edge(profile: NDArray, tolerance: float, depth: int) -> int:
    """Where a garment begins, by the strongest difference from the background in each row or column.

    Raises nothing: `profile` (n,) must exceed the tolerance somewhere.
    """
    rough = int(np.argmax(profile > tolerance))
    strength = max(tolerance, EDGE_STRENGTH * float(profile[rough : rough + depth].max()))
    return rough + int(np.argmax(profile[rough:] > strength))


def darken(grey: Grey, ground: float) -> Grey:
    """Stretch `ground`..255 to 0..255, so that a background that is not quite black becomes so."""
    table = (np.arange(256) - ground) * (255 / (255 - ground))
    return np.rint(table.clip(0, 255)).astype(np.uint8)[grey]


def fit(grey: Grey, box: tuple[int, int, int, int], ground: float) -> Grey:
    """What lies in `box`, its longest edge 28, sharpened, in the middle of (28, 28) pixels of brightness `ground`."""
    left, upper, right, lower = box
    scale = IMAGE_SIZE / max(right - left, lower - upper)
    width, height = (max(1, round(length * scale)) for length in (right - left, lower - upper))
    # Lanczos averages over all pixels of the box; a blurred picture keeps more detail so than with a plain mean.
    small = Image.fromarray(grey).resize((width, height), Image.Resampling.LANCZOS, box=box).filter(SHARPENING)
    result = np.full((IMAGE_SIZE, IMAGE_SIZE), round(ground), np.uint8)
    # Where the rest is odd, the data set has the larger half above and on the left.
    top, start = (IMAGE_SIZE - height + 1) // 2, (IMAGE_SIZE - width + 1) // 2
    result[top : top + height, start : start + width] = np.asarray(small)
    return result
