"""Keras's Adam, exactly."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

# Keras's defaults for `optimizer="adam"`: https://keras.io/api/optimizers/adam/
KERAS_BETAS = (0.9, 0.999)
KERAS_EPSILON = 1e-7


class KerasAdam(torch.optim.Adam):
    """Adam with Keras's place for epsilon.

    Both divide by sqrt(v) corrected by c = sqrt(1 - beta2^t); torch adds epsilon after the correction, Keras before:
    sqrt(v) / c + eps against (sqrt(v) + eps) / c. So torch's Adam with eps = epsilon / c, new each step, is Keras's.
    At the first step that is a factor of 32, which moves weights with small gradients visibly (tests/test_keras.py).
    Source: "epsilon hat" of Kingma and Ba, https://arxiv.org/abs/1412.6980, just before section 2.1.
    """

    def __init__(self, params: Iterable[Tensor], lr: float) -> None:
        super().__init__(params, lr=lr, betas=KERAS_BETAS, eps=KERAS_EPSILON, fused=True)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step. Counted here too: torch's own count lies on the GPU, where reading it would wait."""
        for group in self.param_groups:
            group["steps"] = group.get("steps", 0) + 1
            group["eps"] = KERAS_EPSILON / (1 - group["betas"][1] ** group["steps"]) ** 0.5
        return super().step(closure)
