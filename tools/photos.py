"""Measure the accuracy of predictions for product photos, by background: `python -m tools.photos`.

The photos are rendered from images of Fashion-MNIST, the first ones of each class: scaled up to 200 to 400 pixels with
a smooth outline, as light or dark as they come or dyed, on a background, in a file. The tables of docs/mistakes.md show
the test set's; whatever is tuned sees only `--part train`.
"""

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jsonargparse.typing import PositiveInt
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from fmnist_lightning.cli.main import main
from fmnist_lightning.cli.types import default_data_dir, path_option
from fmnist_lightning.data.pictures import PictureError
from fmnist_lightning.data.sets.fashion_mnist import CLASSES, load_split
from fmnist_lightning.data.source import Part
from fmnist_lightning.predict.classifier import PictureClassifier, load_classifier
from fmnist_lightning.predict.pictures import read_picture
from tools.markdown import markdown

Floats = NDArray[Any]  # of float32 or float64
COLORS = ("as it comes", "white", "black", "colored")
DYES = ((190, 40, 50), (40, 70, 165), (40, 130, 70), (215, 165, 40), (225, 120, 150))
SIZES = (200, 240, 280, 320, 400)
BACKDROPS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "off-white": (248, 243, 232),
    "black": (0, 0, 0),
    **{f"gray {level}": (level, level, level) for level in (30, 60, 90, 120, 150, 180, 210, 240)},
    "blue": (60, 110, 170),
    "pink": (235, 170, 180),
    "beige": (205, 180, 150),
}
# Nobody could see much of these.
UNSEEN = {("white", "white"), ("white", "off-white"), ("black", "black"), ("white", "gray 240"), ("black", "gray 30")}


class Scene(NamedTuple):
    """A garment before it is photographed."""

    garment: Floats  # (size, size, 3), 0 to 255; what lies outside the mask is arbitrary
    mask: Floats  # (size, size, 1), 0 to 1
    white: bool
    rng: np.random.Generator

    @property
    def size(self) -> int:
        return len(self.mask)

    def on(self, ground: Floats | tuple[int, int, int]) -> Image.Image:
        ground = np.broadcast_to(np.asarray(ground, np.float32), self.garment.shape)
        return as_image(ground + (self.garment - ground) * self.mask)

    def plain(self) -> Image.Image:
        return self.on(self.wall())

    def wall(self) -> Floats:
        """Of a studio: light, or gray for a white garment."""
        return np.full((self.size, self.size, 3), 120 if self.white else 235, np.float32)


def as_image(values: Floats) -> Image.Image:
    return Image.fromarray(np.rint(values.clip(0, 255)).astype(np.uint8))


def enlarged(values: NDArray[np.uint8], edge: int, size: int, corner: tuple[int, int]) -> Floats:
    """(28, 28) in a square of `size` pixels, (size, size), 0 to 1."""
    image = Image.new("L", (size, size))
    image.paste(Image.fromarray(values).resize((edge, edge), Image.Resampling.BICUBIC), corner)
    return np.asarray(image, np.float32) / 255


def scene(image: NDArray[np.uint8], color: str, index: int) -> Scene:
    """A garment of the data set, (28, 28), light on black, in the middle or nearly so."""
    rng = np.random.default_rng(index)
    size = SIZES[index % len(SIZES)]
    edge = round(size * rng.uniform(0.6, 0.85))
    left, top = ((size - edge) // 2 + rng.integers(-size // 40, size // 40 + 1, 2)).tolist()
    place = partial(enlarged, edge=edge, size=size, corner=(left, top))
    # Smooth outlines from the steps of 28 pixels, then an edge of two pixels.
    outline = as_image(place((image > 8) * np.uint8(255)) * 255).filter(ImageFilter.GaussianBlur(edge / 50))
    mask = (
        np.asarray(outline.point(lambda value: 255 * (value > 127)).filter(ImageFilter.GaussianBlur(1)), np.float32)
        / 255
    )
    # The data set shows negatives: what is light in it was dark.
    grown = np.asarray(Image.fromarray(image).filter(ImageFilter.MaxFilter(3)))  # else the rim shows the old ground
    light = 1 - place(np.where(image > 60, image, grown))
    if color == "as it comes":
        garment = np.repeat(light[..., None] * 255, 3, axis=2)
    else:
        low, high = np.percentile(light[mask > 0.5], [5, 95])
        relief = ((light - low) / max(high - low, 0.05)).clip(0, 1)[..., None]
        darkest, lightest = {
            "white": ((195,) * 3, (252,) * 3),
            "black": ((6,) * 3, (60,) * 3),
            "colored": (np.multiply(DYES[index % len(DYES)], 0.5), DYES[index % len(DYES)]),
        }[color]
        garment = np.asarray(darkest, np.float32) * (1 - relief) + np.asarray(lightest, np.float32) * relief
    return Scene(garment.astype(np.float32), mask[..., None], color == "white", rng)


def axes(size: int) -> tuple[Floats, Floats]:
    """y and x of each pixel, -1 to 1, (size, size, 1)."""
    line = np.linspace(-1, 1, size, dtype=np.float32)
    return np.broadcast_to(line[:, None, None], (size, size, 1)), np.broadcast_to(line[None, :, None], (size, size, 1))


def gradient(scene: Scene) -> Image.Image:
    y, x = axes(scene.size)
    return scene.on(scene.wall() * (0.82 + 0.18 * (0.7 * y + 0.3 * x)))


def vignette(scene: Scene) -> Image.Image:
    y, x = axes(scene.size)
    return scene.on(scene.wall() * (1 - 0.2 * (y**2 + x**2)))


def shadow(scene: Scene) -> Image.Image:
    mask, shift = Image.fromarray(np.rint(scene.mask[..., 0] * 255).astype(np.uint8)), scene.size // 30
    cast = np.roll(
        np.asarray(mask.filter(ImageFilter.GaussianBlur(scene.size / 40)), np.float32), (shift, shift), (0, 1)
    )
    return scene.on(scene.wall() * (1 - 0.35 * cast[..., None] / 255))


def floor(scene: Scene) -> Image.Image:
    y, _ = axes(scene.size)
    return scene.on(scene.wall() * np.where(y > 0.3, np.float32(0.8), 1))


def wood(scene: Scene) -> Image.Image:
    y, x = axes(scene.size)
    grain = (
        np.sin(60 * x + 3 * np.sin(4 * y)) * 14
        + scene.rng.normal(0, 8, (1, scene.size, 1))
        - 60 * (np.abs(x * 4 % 1) < 0.03)
    )
    return scene.on(np.array([165, 120, 75]) + grain)


def grass(scene: Scene) -> Image.Image:
    blades = as_image(scene.rng.normal(110, 60, (scene.size // 3, scene.size // 3))).resize((scene.size, scene.size))
    return scene.on(np.array([0.6, 1, 0.4]) * np.asarray(blades, np.float32)[..., None])


def framed(scene: Scene, width: int, color: str | tuple[int, int, int]) -> Image.Image:
    image = scene.plain()
    ImageDraw.Draw(image).rectangle((0, 0, image.width - 1, image.height - 1), outline=color, width=width)
    return image


def boxed(scene: Scene, color: str, turned: bool = False) -> Image.Image:
    """A letterbox, or a pillarbox."""
    image, bar = scene.plain(), round(scene.size * 0.16)
    size = (scene.size + 2 * bar, scene.size) if turned else (scene.size, scene.size + 2 * bar)
    result = Image.new("RGB", size, color)
    result.paste(image, (bar, 0) if turned else (0, bar))
    return result


def screenshot(scene: Scene, bar: str, ink: str, bottom: bool = False) -> Image.Image:
    """With an app's bar, and words in it."""
    image, height = scene.plain(), round(scene.size * 0.12)
    result = Image.new("RGB", (scene.size, scene.size + height), bar)
    result.paste(image, (0, 0 if bottom else height))
    draw, top = ImageDraw.Draw(result), scene.size if bottom else 0
    for left, right in ((0.05, 0.1), (0.13, 0.35), (0.38, 0.44), (0.86, 0.95)):
        draw.rectangle((left * scene.size, top + height * 0.35, right * scene.size, top + height * 0.65), fill=ink)
    return result


def noisy(scene: Scene, deviation: float, channels: int) -> Image.Image:
    noise = scene.rng.normal(0, deviation, (scene.size, scene.size, channels))
    return as_image(np.asarray(scene.plain(), np.float32) + noise)


def hanger(scene: Scene) -> Image.Image:
    """A dark hook above the garment."""
    image = scene.plain()
    rows, columns = np.nonzero(scene.mask[..., 0] > 0.5)
    top, middle, width = int(rows.min()), int(columns.mean()), max(2, scene.size // 100)
    draw, radius = ImageDraw.Draw(image), scene.size // 30
    draw.line((middle, top + radius, middle, top - radius), fill=(60, 60, 60), width=width)
    draw.arc(
        (middle - radius, top - 3 * radius, middle + radius, top - radius), 150, 450, fill=(60, 60, 60), width=width
    )
    return image


def cut_out(scene: Scene, mode: str, hidden: int) -> Image.Image:
    opacity = as_image(scene.mask[..., 0] * 255)
    colors = Image.composite(
        as_image(scene.garment),
        Image.new("RGB", opacity.size, (hidden,) * 3),
        opacity.point(lambda value: 255 * (value > 0)),
    )
    if mode == "P":
        image = colors.quantize(255)
        pixels = np.array(image)
        pixels[np.asarray(opacity) < 128] = 255
        result = Image.fromarray(pixels, "P")
        palette = image.getpalette() or []
        result.putpalette(palette[:765] + [0] * (765 - len(palette[:765])) + [hidden] * 3)
        result.info["transparency"] = 255
        return result
    colors.putalpha(opacity)
    return colors.convert(mode)


PNG: dict[str, Any] = {"format": "PNG", "compress_level": 1}
JPEG: dict[str, Any] = {"format": "JPEG", "quality": 90}
Photo = tuple[Callable[[Scene], Image.Image], dict[str, Any]]
GROUNDS: dict[str, Photo] = {
    **{name: (partial(Scene.on, ground=color), JPEG) for name, color in BACKDROPS.items()},
    "gradient": (gradient, JPEG),
    "vignette": (vignette, JPEG),
    "shadow": (shadow, JPEG),
    "floor": (floor, JPEG),
    "wood": (wood, JPEG),
    "grass": (grass, JPEG),
    **{f"frame of {width} px, black": (partial(framed, width=width, color="black"), PNG) for width in (1, 2, 12)},
    "frame of 12 px, white": (partial(framed, width=12, color="white"), JPEG),
    "frame of 6 px, red": (partial(framed, width=6, color=(200, 30, 30)), JPEG),
    "letterbox, black": (partial(boxed, color="black"), JPEG),
    "pillarbox, white": (partial(boxed, color="white", turned=True), JPEG),
    "app bar, dark": (partial(screenshot, bar="#202020", ink="white"), PNG),
    "app bar, light": (partial(screenshot, bar="#f8f8f8", ink="#404040"), PNG),
    "app bar below, blue": (partial(screenshot, bar="#2060c0", ink="white", bottom=True), JPEG),
    **{f"JPEG of quality {quality}": (Scene.plain, {**JPEG, "quality": quality}) for quality in (60, 75, 95)},
    "noise of 5, gray": (partial(noisy, deviation=5, channels=1), JPEG),
    "noise of 10, colored": (partial(noisy, deviation=10, channels=3), PNG),
    "hanger": (hanger, JPEG),
    "cut out, RGBA on black": (partial(cut_out, mode="RGBA", hidden=0), PNG),
    "cut out, RGBA on white": (partial(cut_out, mode="RGBA", hidden=255), PNG),
    "cut out, LA": (partial(cut_out, mode="LA", hidden=0), PNG),
    "cut out, palette": (partial(cut_out, mode="P", hidden=0), PNG),
}


def photo(image: NDArray[np.uint8], index: int, ground: str, color: str) -> io.BytesIO:
    """A file."""
    render, options = GROUNDS[ground]
    file = io.BytesIO()
    render(scene(image, color, index)).save(file, **options)
    file.seek(0)
    return file


class Score(NamedTuple):
    """Of the photos of one background and color, in percent."""

    correct: float
    noted: float
    refused: float


def measure(
    images: NDArray[np.uint8], labels: NDArray[Any], ground: str, color: str, classify: PictureClassifier
) -> Score:
    """Predict photos of images (n, 28, 28)."""
    faults = correct = noted = 0
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        try:
            framed = read_picture(photo(image, index, ground, color), classify.info)
        except PictureError:
            faults += 1
            continue
        correct += int(classify(framed.pixels).labels.item() == label)
        noted += bool(framed.note)
    return Score(*(100 * count / len(images) for count in (correct, noted, faults)))


def first_of_each_class(data_dir: Path, part: Part, count: int) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Images (10 * count, 28, 28) and labels."""
    split = load_split(data_dir, part)
    images, labels = split.images[:, 0].numpy(), split.labels.numpy()
    chosen = np.concatenate([np.flatnonzero(labels == label)[:count] for label in range(len(CLASSES))])
    return images[chosen], labels[chosen]


@dataclass(frozen=True, kw_only=True)
class PhotoOptions:
    """Print the accuracy of predictions for rendered product photos, by background and color of the garment."""

    part: Literal["train", "test"] = "test"
    """The set whose images are rendered. Whatever is tuned sees only train."""
    per_class: PositiveInt = 10
    """Images of each class."""
    data_dir: str = path_option(default_factory=default_data_dir)
    """Folder of Fashion-MNIST."""


def photos(options: PhotoOptions) -> None:
    """Measure all backgrounds, and print a row for each."""
    images, labels = first_of_each_class(Path(options.data_dir), options.part, options.per_class)
    classify = load_classifier(device="cpu")
    data = 100 * (classify(images).labels.numpy() == labels).mean()
    print(f"{len(images)} images; as data, {data:.0f}% are correct\n")
    print(markdown([("background", *COLORS, "noted", "refused")]))
    for ground in GROUNDS:
        scores = [
            None if (color, ground) in UNSEEN else measure(images, labels, ground, color, classify) for color in COLORS
        ]
        seen = [score for score in scores if score]
        means = (np.mean([score.noted for score in seen]), np.mean([score.refused for score in seen]))
        cells = [f"{score.correct:.0f}" if score else "" for score in scores]
        print(markdown([(ground, *cells, *(f"{mean:.0f}" for mean in means))]).splitlines()[0], flush=True)


if __name__ == "__main__":
    sys.exit(main(PhotoOptions, photos))
