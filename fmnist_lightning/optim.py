"""Keras's Adam, exactly, and the schedules of its learning rate."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

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


def one_cycle(optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
    """Up from a 25th of the optimiser's rate to that rate in 30 % of the steps, then down to nearly 0, by cosines.

    Source: Smith and Topin, https://arxiv.org/abs/1708.07120, with torch's defaults; Adam's betas stay as they are.
    """
    [rate] = [group["lr"] for group in optimizer.param_groups]
    return OneCycleLR(optimizer, max_lr=rate, total_steps=steps, cycle_momentum=False)


SCHEDULES: dict[str, Callable[[torch.optim.Optimizer, int], LRScheduler]] = {"one_cycle": one_cycle}
