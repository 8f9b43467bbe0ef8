"""A proof finds what differs between two ways to the same answers, and forgives nothing that matters."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fmnist_lightning.errors import UserError
from fmnist_lightning.models.proving import TOLERANCE, Proof, check_proof, compare


@pytest.mark.parametrize(
    ("differing", "difference", "passes"),
    [([], 0.0, True), ([], TOLERANCE, True), ([], 1.1e-5, False), ([], float("nan"), False), ([7], 1e-8, False)],
)
def test_a_proof_allows_no_other_class_and_no_larger_difference(
    differing: list[int], difference: float, passes: bool
) -> None:
    proof = Proof(10, differing, difference, 1.0, 1.0)
    if passes:
        check_proof(proof, "torch", Path("seed.pt2"))
    else:
        with pytest.raises(UserError, match="was not written"):
            check_proof(proof, "torch", Path("seed.pt2"))


def test_a_comparison_finds_the_image_and_the_size_of_a_difference() -> None:
    reference = torch.eye(10)[torch.tensor([3, 1, 4, 1, 5])]
    other = reference.clone()
    other[4, 5], other[4, 6] = 0.25, 0.5
    sizes: list[int] = []

    def answers(table: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda numbers: (sizes.append(len(numbers)), table[numbers])[1]

    proof = compare(answers(other), answers(reference), torch.arange(5).split(2))
    assert (proof.images, proof.differing, proof.difference) == (5, [4], 0.75)
    assert sizes == [1, 1, 2, 1] * 2  # the first image goes alone


def test_one_image_can_be_compared() -> None:
    assert compare(lambda images: images, lambda images: images, [torch.ones(1, 10)]).images == 1
