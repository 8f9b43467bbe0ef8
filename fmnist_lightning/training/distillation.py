"""Knowledge distillation: a net learns from what a trained one says of an image, as well as from its label."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Teacher(NamedTuple):
    """A trained net that stays as it is, and how much of it is taken over.

    No `nn.Module`: as a part of the net that learns, its weights would be trained, saved and sent along.
    """

    net: nn.Module
    model: str  # its name in MODELS
    sha256: str  # of its weights, as `pretrained.weights_digest` has it
    share: float  # of the teacher in the loss; the labels have the rest
    temperature: float  # above 1 it softens both nets' probabilities, and what the teacher finds unlikely counts more

    @property
    def identity(self) -> dict[str, Any]:
        """Plain values that say who teaches and how, for checkpoints and records."""
        return {name: getattr(self, name) for name in self._fields if name != "net"}

    def loss(self, logits: Tensor, images: Tensor, labels_loss: Tensor) -> Tensor:
        """The loss of a batch: the labels' own, and the divergence from what the teacher says of the same images.

        `logits` (B, 10) are the learner's for `images` (B, 1, 28, 28), as augmented as it saw them. The divergence
        counts times the temperature squared, which keeps its gradients' size.
        Source: Hinton et al. (2015), https://arxiv.org/abs/1503.02531; the same view of an image for both: Beyer et al.
        (2022), https://arxiv.org/abs/2106.05237.
        """
        with torch.no_grad():
            answers = self.net(images).to(logits.dtype)
        ours, theirs = ((one / self.temperature).log_softmax(dim=1) for one in (logits, answers))
        divergence = F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
        return (1 - self.share) * labels_loss + self.share * self.temperature**2 * divergence


def validation_notice(source: str, card: Mapping[str, Any], val_fraction: float) -> str:
    """A warning where the teacher `source`, of this card, saw images that judge a training with `val_fraction`; or "".

    The validation cuts lie within each other, so that it did where its own was smaller.
    """
    training = card.get("training")
    own = training.get("val_fraction") if isinstance(training, dict) else None
    if not isinstance(own, int | float) or own >= val_fraction:  # a card may be anybody's
        return ""
    return (
        f"the teacher {source} was trained on validation images of this training (val_fraction {own:g}, here "
        f"{val_fraction:g}), so val/accuracy is too good: choose options with a teacher of --val_fraction "
        f"{val_fraction:g} or more"
    )
