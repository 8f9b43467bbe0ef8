"""A stand-in for Fashion-MNIST that needs no file: garments drawn by a small seeded program.

It has the same classes and sizes. Training on it shows that everything works; its metrics say nothing of Fashion-MNIST.
Garments that are confused there overlap here, without wrong labels: a shirt without visible buttons looks like a
T-shirt or a pullover, a closed coat like a pullover, a closed sandal like a sneaker, a high sneaker like an ankle boot.
Each garment is a signed distance, negative inside, over coordinates u (right) and v (down) in -1..1, for n images at
once: (n, 28, 28). `fit` is (6, n, 1, 1), uniform in 0..1: the garment's proportions.
"""

from functools import reduce

import torch
from torch import Tensor

from fmnist_lightning.data.sets.fashion_mnist import CLASSES, IMAGE_SIZE
from fmnist_lightning.data.source import DataInfo, DataSource, Part, Split
from fmnist_lightning.runs.options import SourceOptions

DRAWN = DataInfo(
    name="drawn",
    title="DRAWN STAND-IN, not Fashion-MNIST",
    classes=CLASSES,
    image_shape=(1, IMAGE_SIZE, IMAGE_SIZE),
    stand_in=True,
    framing="garment",
)

PER_CLASS: dict[Part, int] = {"train": 6000, "test": 1000}  # as in Fashion-MNIST
SEEDS: dict[Part, int] = {"train": 60000, "test": 10000}
EDGE = IMAGE_SIZE / 2  # pixels for a distance of 1


def box(u: Tensor, v: Tensor, half_width: Tensor | float, half_height: Tensor | float) -> Tensor:
    return torch.maximum(u.abs() - half_width, v.abs() - half_height)


def ellipse(u: Tensor, v: Tensor, half_width: Tensor | float, half_height: Tensor | float) -> Tensor:
    return ((u / half_width).square() + (v / half_height).square()).sqrt().sub(1).mul(half_height)


def union(*shapes: Tensor) -> Tensor:
    return reduce(torch.minimum, shapes)


def without(shape: Tensor, hole: Tensor) -> Tensor:
    return torch.maximum(shape, -hole)


def top(u: Tensor, v: Tensor, fit: Tensor, sleeve: Tensor, waist: float, neck: Tensor) -> Tensor:
    """A torso with two sleeves and a neck hole, for the four upper garments."""
    torso = box(u, v, 0.38 + 0.16 * fit[0] + (waist + 0.1 * fit[5]) * v, 0.8)
    lean = u.abs() - 0.5 - (0.15 + 0.2 * fit[1]) * (v + 0.8)
    sleeves = box(lean, v + 0.8 - sleeve, 0.17, sleeve)
    return without(union(torso, sleeves), ellipse(u, v + 0.85, neck, 0.18))


def t_shirt(u: Tensor, v: Tensor, fit: Tensor) -> Tensor:
    return top(u, v, fit, 0.2 + 0.26 * fit[2].square(), -0.04, 0.11 + 0.15 * fit[3])


def trouser(u: Tensor, v: Tensor, fit: Tensor) -> Tensor:
    outer = box(u, v, 0.3 + 0.1 * fit[0] + 0.1 * fit[1] * v, 0.92)
    return without(outer, box(u, v - 0.6, 0.03 + (0.04 + 0.08 * fit[2]) * (v + 0.6), 0.95 + 0.2 * fit[3]))


def pullover(u: Tensor, v: Tensor, fit: Tensor) -> Tensor:
    return top(u, v, fit, 0.76 - 0.22 * fit[2].square(), -0.08, 0.12 + 0.12 * fit[3])


def dress(u: Tensor, v: Tensor, fit: Tensor) -> Tensor:
    skirt = box(u, v, 0.3 + 0.24 * fit[0].square() + 0.25 * fit[1] * v, 0.84)
    straps = box(u.abs() - 0.3 - 0.2 * (v + 0.8), v + 0.6, 0.08 + 0.4 * fit[2].square(), 0.24)
    return without(union(skirt, straps), ellipse(u, v + 0.88, 0.13 + 0.1 * fit[3], 0.18))


def coat(u: Tensor, v: Tensor, fit: Tensor) -> Tensor:
    """A wide pullover with an opening that may be closed."""
    opening = box(u, v - 0.1, 0.05 * fit[4] - 0.03, 0.9)
    return without(top(u, v, fit, 0.8 - 0.22 * fit[2].square(), -0.02, 0.11 + 0.12 * fit[3]), opening)


def shirt(u: Tensor, v: Tensor, fit: Tensor) -> Tensor:
    """Long or short, with buttons that may be too small to be seen."""
    buttons = ellipse(u, (v * 3 + fit[1]).remainder(1) - 0.5, 0.02 * fit[4] + 0.001, 0.2)
    return without(top(u, v, fit, 0.2 + 0.54 * fit[2], -0.04, 0.11 + 0.05 * fit[3]), buttons)


def shoe(u: Tensor, v: Tensor, fit: Tensor, height: Tensor) -> Tensor:
    """Sole, toe, and a heel that ends `height` above the sole, with a hole for the foot."""
    sole = box(u, v - 0.5, 0.88, 0.1)
    toe = ellipse(u + 0.2, v - 0.5, 0.66, 0.28 + 0.15 * fit[0])
    shaft = box(u - 0.48 + 0.2 * (0.5 - v) * fit[1], v - 0.5 + height / 2, 0.38, height / 2)
    hole = ellipse(u - 0.48 + 0.2 * height * fit[1], v - 0.5 + height, 0.28, 0.04 + 0.12 * fit[2])
    return without(union(sole, torch.maximum(toe, v - 0.5), shaft), hole)


def sandal(u: Tensor, v: Tensor, fit: Tensor) -> Tensor:
    """A shoe on a slope, with gaps that may be too small to be seen."""
    v = v - 0.25 * fit[4] * u
    gaps = (1.2 * u + 0.6 * v + fit[3]).remainder(1).sub(0.5).abs() - 0.45 * fit[4]
    return without(shoe(u, v, fit, 0.3 + 0.4 * fit[5]), torch.maximum(gaps, v - 0.38))


def sneaker(u: Tensor, v: Tensor, fit: Tensor) -> Tensor:
    stripe = box(u + 0.5 * v - 0.3 * fit[3], v - 0.25, 0.08 * fit[4] - 0.036, 0.15)
    return without(shoe(u, v, fit, 0.36 + 0.42 * fit[5].square()), stripe)


def ankle_boot(u: Tensor, v: Tensor, fit: Tensor) -> Tensor:
    block = box(u - 0.7, v - 0.62, 0.16, 0.2 * fit[3] - 0.06)
    return union(shoe(u, v, fit, 0.64 + 0.66 * fit[5]), block)


def bag(u: Tensor, v: Tensor, fit: Tensor) -> Tensor:
    body = box(u, v - 0.25, 0.6 + 0.25 * fit[0] + 0.1 * v, 0.4 + 0.15 * fit[1])
    handle = ellipse(u, v + 0.15, 0.3 + 0.2 * fit[2], 0.3 + 0.3 * fit[3]).abs() - 0.05
    return union(body, handle)


GARMENTS = (t_shirt, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag, ankle_boot)  # in the order of CLASSES


def draw(name: str, count: int, generator: torch.Generator) -> Tensor:
    """`count` images of one class, (count, 28, 28) uint8, in varied proportions, position, shade and texture."""

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(count, 1, 1, generator=generator) * (high - low) + low

    axis = (torch.arange(IMAGE_SIZE) + 0.5) / EDGE - 1
    across, down = axis.view(1, 1, -1), axis.view(1, -1, 1)
    tilt, size = uniform(-0.12, 0.12), uniform(0.85, 1.1)
    u = (across + tilt * down + uniform(-0.12, 0.12)) / size  # (n, 28, 28)
    v = (down - tilt * across + uniform(-0.12, 0.12)) / (size * uniform(0.9, 1.1))
    fit = torch.rand(6, count, 1, 1, generator=generator)
    inside = GARMENTS[CLASSES.index(name)](u, v, fit).mul_(-EDGE).add_(0.5).clamp_(0, 1)
    direction = uniform(0, torch.pi)
    stripes = torch.sin((u * direction.cos() + v * direction.sin()) * uniform(3, 25)).mul_(uniform(0, 0.3).square() * 3)
    noise = torch.randn(count, IMAGE_SIZE, IMAGE_SIZE, generator=generator).mul_(0.16)
    shade = uniform(0.3, 0.95)
    return (stripes + noise + 1).mul_(shade).mul_(inside).clamp_(0, 1).mul_(255).to(torch.uint8)


def drawn_source(options: SourceOptions) -> DataSource:
    options.refuse("image_size", "channels", "classes", "skip_unreadable")
    return DataSource(**vars(DRAWN), load=load_drawn)


def load_drawn(part: Part) -> Split:
    """60,000 or 10,000 drawn garments, shuffled in an order that never changes."""
    count, generator = PER_CLASS[part], torch.Generator().manual_seed(SEEDS[part])
    images = torch.cat([draw(name, count, generator) for name in CLASSES])
    labels = torch.arange(len(CLASSES)).repeat_interleave(count)
    order = torch.randperm(len(labels), generator=generator)
    return Split(images[order].unsqueeze(1), labels[order])
