"""A stand-in for Fashion-MNIST that needs no file: garments drawn by a small seeded program.

It has the same classes and sizes. Training on it shows that everything works; its metrics say nothing of Fashion-MNIST.
Each garment is a signed distance, negative inside, over coordinates u (right) and v (down) in -1..1, for n images at
once: (n, 28, 28). `fit` is (4, n, 1, 1), uniform in 0..1: the garment's proportions.
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


def top(u: Tensor, v: Tensor, fit: Tensor, sleeve: Tensor, waist: Tensor | float, neck: Tensor | float) -> Tensor:
    """A torso with two sleeves and a neck hole, for the four upper garments."""
    torso = box(u, v, 0.42 + 0.12 * fit[0] + waist * v, 0.8)
    lean = u.abs() - 0.5 - (0.15 + 0.2 * fit[1]) * (v + 0.8)
    sleeves = box(lean, v + 0.8 - sleeve, 0.17, sleeve)
    return without(union(torso, sleeves), ellipse(u, v + 0.85, neck, 0.18))


def t_shirt(u: Tensor, v: Tensor, fit: Tensor) -> Tensor:
    return top(u, v, fit, 0.2 + 0.12 * fit[2], 0.02, 0.2 + 0.1 * fit[3])


def trouser(u: Tensor, v: Tensor, fit: Tensor) -> Tensor:
    outer = box(u, v, 0.3 + 0.1 * fit[0] + 0.1 * fit[1] * v, 0.92)
    return without(outer, box(u, v - 0.6, 0.03 + (0.04 + 0.08 * fit[2]) * (v + 0.6), 0.95 + 0.2 * fit[3]))


def pullover(u: Tensor, v: Tensor, fit: Tensor) -> Tensor:
    return top(u, v, fit, 0.62 + 0.14 * fit[2], -0.02, 0.16 + 0.1 * fit[3])


def dress(u: Tensor, v: Tensor, fit: Tensor) -> Tensor:
    skirt = box(u, v, 0.26 + 0.1 * fit[0] + (0.05 + 0.2 * fit[1]) * v, 0.92)
    straps = box(u.abs() - 0.26, v + 0.75, 0.08 + 0.22 * fit[2].square(), 0.15)
    return without(union(skirt, straps), ellipse(u, v + 0.92, 0.16, 0.15 + 0.1 * fit[3]))


def coat(u: Tensor, v: Tensor, fit: Tensor) -> Tensor:
    opening = box(u - 0.04 * fit[1], v - 0.1, 0.025, 0.9)
    return without(top(u, v, fit, 0.66 + 0.14 * fit[2], 0.06, 0.14 + 0.12 * fit[3]), opening)


def sandal(u: Tensor, v: Tensor, fit: Tensor) -> Tensor:
    sole = box(u, v - 0.45 - (0.05 + 0.15 * fit[0]) * u, 0.85, 0.07)
    heel = box(u - 0.7, v - 0.6, 0.1, 0.1 + 0.15 * fit[1])
    straps = [box(u * 0.8 + v * side + 0.45 * place, v - 0.1, 0.08, 0.33) for side, place in ((0.6, 1), (-0.7, -0.7))]
    ankle = ellipse(u - 0.5, v + 0.1, 0.35, 0.2 + 0.2 * fit[2]).abs() - 0.05 - 0.03 * fit[3]
    return union(sole, heel, *straps, ankle)


def shirt(u: Tensor, v: Tensor, fit: Tensor) -> Tensor:
    buttons = ellipse(u, (v * 3 + fit[1]).remainder(1) - 0.5, 0.05, 0.2)
    return without(top(u, v, fit, 0.22 + 0.5 * fit[2], 0.01, 0.12 + 0.12 * fit[3]), buttons)


def shoe(u: Tensor, v: Tensor, fit: Tensor) -> Tensor:
    """Sole, toe and heel, for sneaker and ankle boot."""
    sole = box(u, v - 0.5, 0.88, 0.1)
    toe = ellipse(u + 0.35, v - 0.45, 0.52, 0.25 + 0.12 * fit[0])
    heel = box(u - 0.45, v - 0.25, 0.42, 0.25)
    return union(sole, torch.maximum(toe, v - 0.5), heel)


def sneaker(u: Tensor, v: Tensor, fit: Tensor) -> Tensor:
    tongue = box(u - 0.2 * fit[1], v + 0.6 * u - 0.2, 0.4, 0.15 + 0.15 * fit[2])
    stripe = box(u + 0.5 * v - 0.3 * fit[3], v - 0.25, 0.04, 0.15)
    return without(union(shoe(u, v, fit), tongue), stripe)


def ankle_boot(u: Tensor, v: Tensor, fit: Tensor) -> Tensor:
    shaft = box(u - 0.45, v + 0.1, 0.3 + 0.12 * fit[1], 0.3 + 0.4 * fit[2])
    block = box(u - 0.7, v - 0.62, 0.16, 0.1 + 0.12 * fit[3])
    return union(shoe(u, v, fit), shaft, block)


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
    fit = torch.rand(4, count, 1, 1, generator=generator)
    inside = GARMENTS[CLASSES.index(name)](u, v, fit).mul_(-EDGE).add_(0.5).clamp_(0, 1)
    direction = uniform(0, torch.pi)
    stripes = torch.sin((u * direction.cos() + v * direction.sin()) * uniform(3, 25)).mul_(uniform(0, 0.3).square() * 3)
    noise = torch.randn(count, IMAGE_SIZE, IMAGE_SIZE, generator=generator).mul_(0.12)
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
