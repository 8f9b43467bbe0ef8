"""The optimizers and the schedules of the learning rate, by name: Keras's Adam, exactly; Muon for short trainings."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR
from torch.optim.optimizer import ParamsT

from fmnist_lightning.training.devices import has_bf16_products

# Keras's defaults for `optimizer="adam"`: https://keras.io/api/optimizers/adam/
KERAS_BETAS = (0.9, 0.999)
KERAS_EPSILON = 1e-7
# Muon's default, and the coefficients of its iteration: https://kellerjordan.github.io/posts/muon/
MUON_MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class KerasAdam(torch.optim.Adam):
    """Adam with epsilon where Keras adds it.

    Both divide by sqrt(v), corrected by c = sqrt(1 - beta2^t). torch adds epsilon after the correction, sqrt(v) / c +
    eps; Keras before it, (sqrt(v) + eps) / c. So torch's Adam with eps = epsilon / c at each step is Keras's. At the
    first step that is a factor of 32, which changes weights with small gradients visibly (tests/models/test_keras.py).
    Source: "epsilon hat" of Kingma and Ba, https://arxiv.org/abs/1412.6980, just before section 2.1.

    `weight_decay` is decoupled, as in AdamW (https://arxiv.org/abs/1711.05101). Parameters with one axis, the biases
    and the scales of norms, do not decay, nor do parameters without a gradient. `params` is as torch's optimizers take
    it; groups may have their own `lr` and `weight_decay`.
    """

    def __init__(self, params: ParamsT, lr: float = 1e-3, weight_decay: float = 0.0) -> None:
        super().__init__(params, lr, KERAS_BETAS, KERAS_EPSILON, weight_decay, fused=True)
        # torch's fused kernel would unscale gradients and skip steps by itself, without what is added here.
        self._step_supports_amp_scaling = False

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = closure() if closure else None
        self.update()
        return loss

    @torch.no_grad()
    def update(self) -> None:
        """Decay the weights, then step along their gradients, in the order of torch's AdamW."""
        self.decay()
        self.adam_step()

    def decay(self) -> None:
        for group in self.param_groups:
            for weight in group["params"] if group["weight_decay"] else ():
                if weight.grad is not None and weight.dim() > 1:
                    weight.mul_(1 - group["lr"] * group["weight_decay"])

    def adam_step(self) -> None:
        decays = [group["weight_decay"] for group in self.param_groups]
        for group in self.param_groups:
            group["weight_decay"] = 0.0  # torch would add it to the gradients
            if any(parameter.grad is not None for parameter in group["params"]):
                # torch's own count of steps is on the GPU, where reading it would wait for all queued work.
                group["steps"] = group.get("steps", 0) + 1
                group["eps"] = KERAS_EPSILON / (1 - group["betas"][1] ** group["steps"]) ** 0.5
        super().step()
        for group, decay in zip(self.param_groups, decays, strict=True):
            group["weight_decay"] = decay


class MuonWithAdam(KerasAdam):
    """Muon for the weights of hidden layers; Keras's Adam for the first and last layer, biases and norms.

    Hidden are the parameters with several axes but the first and last one, in the order of all groups. Muon steps along
    the momentum after it makes all its singular values nearly one, so that every direction of a layer learns at the
    same rate. Its steps are as large as Adam's, so one learning rate serves both. torch's own Muon takes no weights of
    convolutions; tests/training/test_optim.py compares the two.
    Source: Jordan et al., https://kellerjordan.github.io/posts/muon/; step size: https://arxiv.org/abs/2502.16982.
    """

    @torch.no_grad()
    def update(self) -> None:
        self.decay()
        weights = [(weight, group["lr"]) for group in self.param_groups for weight in group["params"]]
        matrices = [(weight, rate) for weight, rate in weights if weight.dim() > 1]
        hidden = [(weight, weight.grad, rate) for weight, rate in matrices[1:-1] if weight.grad is not None]
        for weight, _, _ in hidden:
            weight.grad = None  # so that Adam skips it
        self.adam_step()
        for weight, gradient, rate in hidden:
            weight.grad = gradient
            self.muon_step(weight, gradient, rate)

    def muon_step(self, weight: Tensor, gradient: Tensor, rate: float) -> None:
        state = self.state[weight]
        if "momentum" not in state:
            # Adam requires a `step` in every state that it loads.
            state["step"], state["momentum"] = torch.zeros(()), torch.zeros_like(weight)
        state["momentum"].lerp_(gradient, 1 - MUON_MOMENTUM)
        nesterov = gradient.lerp(state["momentum"], MUON_MOMENTUM)
        update = orthogonalize(nesterov.flatten(1))
        size = 0.2 * max(update.shape) ** 0.5  # makes the root mean square 0.2, about that of Adam's steps
        weight.sub_(update.reshape(weight.shape).to(weight.dtype), alpha=rate * size)


def orthogonalize(matrix: Tensor) -> Tensor:
    """The matrix (rows, columns) with singular values of about one, in bf16 or 32 bits.

    Five steps of a Newton-Schulz iteration whose coefficients were chosen for speed: singular values end between 0.7
    and 1.2. bf16 suffices for that, but on a CPU without bf16 products a step took 12 to 17 times as long as in 32 bits
    (LOG.md, 2026-11-28).
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


# Each takes parameters as torch's optimizers do, `lr` and `weight_decay`.
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "adam": KerasAdam,
    "muon": MuonWithAdam,
    "sgd": partial(SGD, momentum=0.9, nesterov=True),
    "adamw": AdamW,
}


def one_cycle(optimizer: Optimizer, steps: int) -> OneCycleLR:
    """Raise the learning rate from 1/25 to all of the optimizer's in a fifth of the steps, then lower it to nearly 0.

    Both by cosines; Adam's betas stay. Source: Smith and Topin, https://arxiv.org/abs/1708.07120.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    # A fifth of five steps ends at the first one, and torch 2.15 then divides by zero.
    rise = 0.2 if steps != 5 else 0.4
    return OneCycleLR(optimizer, max_lr=rates, total_steps=steps, pct_start=rise, cycle_momentum=False)


# Each takes an optimizer and the number of its steps; None leaves the learning rate as it is.
SCHEDULES: dict[str, Callable[[Optimizer, int], LRScheduler] | None] = {
    "constant": None,
    "one_cycle": one_cycle,
    "cosine": CosineAnnealingLR,
}
