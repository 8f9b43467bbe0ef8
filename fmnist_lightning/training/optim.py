"""Keras's Adam, exactly; Muon for short trainings; schedules of the learning rate."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from fmnist_lightning.training.devices import has_bf16_products

# Keras's defaults for `optimizer="adam"`: https://keras.io/api/optimizers/adam/
KERAS_BETAS = (0.9, 0.999)
KERAS_EPSILON = 1e-7
# Muon's own, and the coefficients of its iteration: https://kellerjordan.github.io/posts/muon/
MUON_MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class KerasAdam(torch.optim.Adam):
    """Adam with Keras's place for epsilon.

    Both divide by sqrt(v) corrected by c = sqrt(1 - beta2^t); torch adds epsilon after the correction, Keras before:
    sqrt(v) / c + eps against (sqrt(v) + eps) / c. So torch's Adam with eps = epsilon / c, new each step, is Keras's.
    At the first step that is a factor of 32, which moves weights with small gradients visibly (tests/test_keras.py).
    Source: "epsilon hat" of Kingma and Ba, https://arxiv.org/abs/1412.6980, just before section 2.1.

    `weight_decay` is AdamW's, decoupled from the gradient (https://arxiv.org/abs/1711.05101): at each step a weight
    loses so much of itself times the learning rate. Biases and the scales of norms, which have one axis, lose nothing.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(params, lr=lr, betas=KERAS_BETAS, eps=KERAS_EPSILON, fused=True)
        [group] = self.param_groups
        # Not in a group of its own: schedules and Muon know of one.
        self.decayed = [parameter for parameter in group["params"] if parameter.dim() > 1] if weight_decay else []
        self.weight_decay = weight_decay

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.update()
        return loss

    @torch.no_grad()
    def update(self) -> None:
        """One step along the gradients at hand, after the decay, as torch's optimisers do it."""
        [group] = self.param_groups
        for weight in self.decayed:
            weight.mul_(1 - group["lr"] * self.weight_decay)
        # Counted here too: torch's own count lies on the GPU, where reading it would wait.
        group["steps"] = group.get("steps", 0) + 1
        group["eps"] = KERAS_EPSILON / (1 - group["betas"][1] ** group["steps"]) ** 0.5
        super().step()


class MuonWithAdam(KerasAdam):
    """Muon for weights with two or more axes but the first and the last layer's, Keras's Adam for the rest.

    Muon steps along the momentum with all its singular values made nearly one, so that every direction of a layer
    learns alike; its steps are as large as Adam's, so one learning rate serves both. tests/test_optim.py holds it to
    torch's own Muon, which takes no weights of convolutions.
    Source: Jordan et al., https://kellerjordan.github.io/posts/muon/; sizes: https://arxiv.org/abs/2502.16982.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(params, lr, weight_decay)
        [group] = self.param_groups
        self.hidden = [parameter for parameter in group["params"] if parameter.dim() > 1][1:-1]

    @torch.no_grad()
    def update(self) -> None:
        gradients = [weight.grad for weight in self.hidden]
        for weight in self.hidden:
            weight.grad = None  # Adam passes over what has no gradient
        super().update()
        for weight, gradient in zip(self.hidden, gradients, strict=True):
            if gradient is not None:
                self.muon_step(weight, gradient)

    def muon_step(self, weight: Tensor, gradient: Tensor) -> None:
        [group] = self.param_groups
        state = self.state[weight]
        if not state:
            # `step` is not used here, but Adam looks for it in every state that it loads.
            state["step"], state["momentum"] = torch.zeros(()), torch.zeros_like(weight)
        state["momentum"].lerp_(gradient, 1 - MUON_MOMENTUM)
        nesterov = gradient.lerp(state["momentum"], MUON_MOMENTUM)
        update = orthogonalize(nesterov.flatten(1))
        size = 0.2 * max(update.shape) ** 0.5  # Adam's steps have a root mean square of about 0.2
        weight.sub_(update.reshape(weight.shape).to(weight.dtype), alpha=group["lr"] * size)


def orthogonalize(matrix: Tensor) -> Tensor:
    """The matrix (rows, columns) with its singular values moved to about one, in bf16 or 32 bits.

    Five steps of a Newton-Schulz iteration whose coefficients are made for speed: they end between 0.7 and 1.2. bf16
    is enough for that; on a CPU without products in it a step took 12 to 17 times as long as in 32 bits (LOG.md,
    2026-11-28).
    """
    a, b, c = NEWTON_SCHULZ
    matrix = matrix.to(torch.bfloat16 if has_bf16_products(matrix.device) else torch.float32)
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / wide.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = wide @ wide.T
        polynomial = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        wide = torch.addmm(wide, polynomial, wide, beta=a)
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T


OPTIMIZERS: dict[str, type[KerasAdam]] = {"adam": KerasAdam, "muon": MuonWithAdam}


def one_cycle(optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
    """Up from a 25th of the optimiser's rate to that rate in a fifth of the steps, then down to nearly 0, by cosines.

    Source: Smith and Topin, https://arxiv.org/abs/1708.07120; Adam's betas stay as they are.
    """
    [rate] = [group["lr"] for group in optimizer.param_groups]
    # Of five steps a fifth is the first one alone, and torch 2.15 divides by the none that lie between its two ends.
    rise = 0.2 if steps != 5 else 0.4
    return OneCycleLR(optimizer, max_lr=rate, total_steps=steps, pct_start=rise, cycle_momentum=False)


SCHEDULES: dict[str, Callable[[torch.optim.Optimizer, int], LRScheduler]] = {"one_cycle": one_cycle}
