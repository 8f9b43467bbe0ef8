"""What a file's runtime answers, held to what the net itself answers, over a whole test set."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fmnist_lightning.data.download import ensure_files
from fmnist_lightning.data.drawn import load_drawn
from fmnist_lightning.data.fashion_mnist import load_split
from fmnist_lightning.data.sources import TITLES
from fmnist_lightning.errors import UserError

# Images (B, 1, 28, 28) uint8 to probabilities (B, 10) float32.
Predict = Callable[[Tensor], Tensor]
# Sums in another order move a probability by less than 1e-6; another weight or a forgotten scaling by far more.
TOLERANCE = 1e-5


def proving_images(dataset: str, data_dir: Path) -> Tensor:
    """All test images (n, 1, 28, 28) uint8 of the data set that a net was trained on.

    Raises DataError where they can't be had.
    """
    if dataset == "drawn":
        return load_drawn(train=False).images
    if dataset != "fashion_mnist":
        raise UserError(f"the net's data set is {dataset}; expected fashion_mnist or drawn, to prove its file on")
    ensure_files(data_dir)
    return load_split(data_dir, train=False).images


class Proof(NamedTuple):
    """How a file's runtime compares with the net itself, over the same images."""

    images: int
    differing: list[int]  # numbers of the images whose class is another one
    difference: float  # the largest of any probability; NaN where one is not a number
    seconds: float  # for all images, of the file's runtime
    torch_seconds: float


def compare(predict: Predict, reference: Predict, batches: Sequence[Tensor]) -> Proof:
    """Run both over the same batches, on the CPU in 32 bits, the first image alone in a batch."""
    first, *rest = batches
    batches = [batch for batch in (first[:1], first[1:], *rest) if len(batch)]
    found, seconds = timed(predict, batches)
    expected, torch_seconds = timed(reference, batches)
    differing = (found.argmax(dim=1) != expected.argmax(dim=1)).nonzero().flatten().tolist()
    return Proof(len(expected), differing, (found - expected).abs().max().item(), seconds, torch_seconds)


def timed(predict: Predict, batches: Sequence[Tensor]) -> tuple[Tensor, float]:
    """Probabilities (n, 10) of all batches, and the seconds that they took."""
    begin = time.perf_counter()
    with torch.inference_mode():
        probs = torch.cat([predict(images) for images in batches])
    return probs, time.perf_counter() - begin


def check_proof(proof: Proof, runtime: str, path: Path) -> None:
    """Raise UserError where a class is another one, or a probability differs by more than TOLERANCE.

    Two classes that tie within rounding are no excuse: for that image the file would answer otherwise than the net.
    """
    if not proof.differing and proof.difference <= TOLERANCE:  # a NaN is not
        return
    first = f" (the first is image {proof.differing[0]})" if proof.differing else ""
    raise UserError(
        f"{path} was not written: {runtime} gives another class than the net for {len(proof.differing)} of "
        f"{proof.images:,} images{first}, and probabilities that differ by up to {proof.difference:.1e}; expected the "
        f"same classes and at most {TOLERANCE:.0e}: install the versions in requirements.lock, which agree"
    )


def describe_proof(proof: Proof, runtime: str, dataset: str) -> str:
    rate, torch_rate = proof.images / proof.seconds, proof.images / proof.torch_seconds
    return (
        f"{TITLES[dataset]}, test set: {proof.images:,} images; {runtime} gives another class for "
        f"{len(proof.differing):,} of them; largest difference of a probability {proof.difference:.1e} "
        f"(limit {TOLERANCE:.0e})\n"
        f"images/s: {runtime} {rate:,.0f}, the net in torch {torch_rate:,.0f}"
    )
