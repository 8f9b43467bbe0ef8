"""Test-time augmentation: average a net's predictions for an image and its mirror image."""

import math
import sys

import torch
from torch import Tensor, nn


def warn_if_trained_without_flip(flip: bool) -> None:
    """Warn about a model that never saw a mirror image, such as a boot that points right."""
    if not flip:
        print("WARNING: this model was trained without --flip, so --tta can make it worse", file=sys.stderr)


class MirrorAveraged(nn.Module):
    """A net's mean probabilities for an image and its mirror image, as logits: the logarithms of those means."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W), as the net takes them, to logits (B, num_classes)."""
        both = torch.stack([self.net(images), self.net(images.flip(-1))])  # (2, B, num_classes)
        return both.float().log_softmax(dim=-1).logsumexp(dim=0) - math.log(2)
