"""Muon against torch's, groups, frozen weights, AMP, and schedules; test_keras.py compares Adam with Keras's."""

from typing import Any

import pytest
import torch

from fmnist_lightning.training import optim
from fmnist_lightning.training.optim import OPTIMIZERS, SCHEDULES, KerasAdam, MuonWithAdam, one_cycle, orthogonalize

BOTH = pytest.mark.parametrize("optimizer", [KerasAdam, MuonWithAdam])


def three_layers() -> list[torch.nn.Parameter]:
    """First layer, hidden layer with its bias, last layer."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(6, 4), (8, 6), (8,), (3, 8)]
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def steps(params: list[torch.nn.Parameter], *optimizers: torch.optim.Optimizer, count: int = 10, seed: int = 1) -> None:
    """Step along random gradients, which depend on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for parameter in params:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        for optimizer in optimizers:
            optimizer.step()


@pytest.mark.parametrize("decay", [0.0, 0.5])
@pytest.mark.parametrize(("optimizer", "by_muon"), [(KerasAdam, []), (MuonWithAdam, [1])])
def test_optimizers_step_as_torchs_do(
    optimizer: type[KerasAdam], by_muon: list[int], decay: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Muon for the hidden weights, as AdamW for the rest; the third parameter, a bias, does not decay."""
    monkeypatch.setattr(optim, "has_bf16_products", lambda device: True)  # as in torch's Muon
    ours, reference = three_layers(), three_layers()
    steps(ours, optimizer(ours, lr=0.02, weight_decay=decay))
    options = {"lr": 0.02, "weight_decay": decay}
    by_adam = [reference[i] for i in (0, 1, 3) if i not in by_muon]
    references = [torch.optim.AdamW(by_adam, **options, eps=1e-12), torch.optim.Adam([reference[2]], 0.02, eps=1e-12)]
    if by_muon:
        muon = [reference[i] for i in by_muon]
        references.append(torch.optim.Muon(muon, **options, momentum=0.95, adjust_lr_fn="match_rms_adamw"))
    steps(reference, *references)
    for mine, theirs in zip(ours, reference, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)  # Keras's epsilon is larger
    # Negative controls: neither another decay nor the other optimizer gives these weights.
    for kind, other_decay in ((optimizer, 0.5 - decay), (KerasAdam if by_muon else MuonWithAdam, decay)):
        other = three_layers()
        steps(other, kind(other, lr=0.02, weight_decay=other_decay))
        assert (other[1] - ours[1]).abs().max() > 0.01


def test_muon_steps_a_convolution_as_the_matrix_of_its_filters() -> None:
    flat, filters = three_layers(), three_layers()
    filters[1] = torch.nn.Parameter(filters[1].detach().clone().view(8, 3, 2, 1))
    for params in (flat, filters):
        steps(params, MuonWithAdam(params, lr=0.02), count=3)
    assert torch.equal(filters[1].flatten(1), flat[1])


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("shape", [(20, 50), (50, 20)])
def test_orthogonalize_keeps_directions(shape: tuple[int, int], bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The singular vectors stay, and the singular values end near one."""
    monkeypatch.setattr(optim, "has_bf16_products", lambda device: bf16)
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    orthogonal = orthogonalize(matrix)
    assert orthogonal.dtype == (torch.bfloat16 if bf16 else torch.float32)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    by_directions = left.T @ orthogonal.float() @ right.T
    values = by_directions.diagonal()
    torch.testing.assert_close(by_directions, values.diag(), rtol=0, atol=0.05 if bf16 else 1e-4)
    assert values.min() > 0.6
    assert values.max() < 1.3


@BOTH
def test_optimizers_leave_frozen_weights(optimizer: type[KerasAdam]) -> None:
    params, before = three_layers(), three_layers()
    made = optimizer(params, lr=0.02, weight_decay=0.5)
    for parameter in params[:2]:
        parameter.requires_grad_(False)
    for parameter in params[2:]:
        parameter.grad = torch.ones_like(parameter)
    made.step()
    assert [torch.equal(*pair) for pair in zip(params, before, strict=True)] == [True, True, False, False]


@pytest.mark.parametrize("names", [False, True])
@BOTH
def test_optimizers_take_groups_with_their_own_rates(optimizer: type[KerasAdam], names: bool) -> None:
    """Each parameter steps as in an optimizer of that rate and decay; pairs of a name and a parameter do, too."""
    grouped, one_by_one = three_layers(), [three_layers(), three_layers()]
    settings = {"lr": 0.02, "weight_decay": 0.5}, {"lr": 0.01, "weight_decay": 0.0}
    given = [(f"weights.{i}", parameter) if names else parameter for i, parameter in enumerate(grouped)]
    groups = [{"params": iter(part), **own} for part, own in zip((given[:2], given[2:]), settings, strict=True)]
    steps(grouped, optimizer(groups, lr=7.0))
    for params, own in zip(one_by_one, settings, strict=True):
        steps(params, optimizer(params, **own))
    expected = [*one_by_one[0][:2], *one_by_one[1][2:]]
    assert all(map(torch.equal, grouped, expected))
    assert not torch.equal(grouped[2], one_by_one[0][2])  # negative control


@BOTH
def test_scaled_gradients_and_skipped_steps_change_nothing(optimizer: type[KerasAdam]) -> None:
    """Under GradScaler the weights, the decay and the state are those of the steps that were not skipped."""
    scaled, plain = three_layers(), three_layers()
    made, reference = (optimizer(params, lr=0.02, weight_decay=0.5) for params in (scaled, plain))
    scaler = torch.amp.GradScaler(device="cpu", init_scale=2.0**10)
    skipped = 1
    for step in range(4):
        generator = torch.Generator().manual_seed(step)
        for ours, theirs in zip(scaled, plain, strict=True):
            theirs.grad = torch.randn(ours.shape, generator=generator)
            ours.grad = scaler.scale(theirs.grad) * (torch.inf if step == skipped else 1)
        scaler.step(made)
        scaler.update()
        if step != skipped:
            reference.step()
    assert all(map(torch.equal, scaled, plain))
    assert made.param_groups[0]["steps"] == 3


def test_muon_gives_gradients_back() -> None:
    """Callbacks may read them after the step."""
    params = three_layers()
    steps(params, MuonWithAdam(params, lr=0.02), count=1)
    assert all(parameter.grad is not None for parameter in params)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_resume_with_their_decay(name: str) -> None:
    straight, stopped = three_layers(), three_layers()
    options = {"lr": 0.02, "weight_decay": 0.5}
    whole, first = OPTIMIZERS[name](straight, **options), OPTIMIZERS[name](stopped, **options)
    for seed in (1, 2):
        steps(straight, whole, seed=seed)
    steps(stopped, first, seed=1)
    second = OPTIMIZERS[name](stopped, **options)
    second.load_state_dict(first.state_dict())
    steps(stopped, second, seed=2)
    assert all(map(torch.equal, straight, stopped))


def rates_of(steps: int, schedule: Any = one_cycle, *, groups: int = 1) -> list[float]:
    """The learning rates of the last group, up to 0.01, by step."""
    params = [{"params": torch.nn.Parameter(torch.zeros(1)), "lr": 0.01 * (groups - i)} for i in range(groups)]
    optimizer = KerasAdam(params)
    schedule = schedule(optimizer, steps)
    rates = [optimizer.param_groups[-1]["lr"]]
    for _ in range(steps - 1):
        optimizer.step()
        schedule.step()
        rates.append(optimizer.param_groups[-1]["lr"])
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)
    return rates


def test_one_cycle_rises_to_the_rate_and_falls_to_nearly_zero() -> None:
    rates = rates_of(100)
    assert rates[0] == pytest.approx(0.01 / 25)
    assert rates[19] == max(rates) == pytest.approx(0.01)
    assert rates == sorted(rates[:20]) + sorted(rates[20:], reverse=True)
    assert rates[-1] < 1e-6


@pytest.mark.parametrize("steps", range(1, 12))
def test_one_cycle_takes_any_number_of_steps(steps: int) -> None:
    assert all(0 < rate <= 0.01 for rate in rates_of(steps))


def test_one_cycle_keeps_the_rate_of_each_group() -> None:
    assert rates_of(20, groups=3) == rates_of(20)


def test_cosine_falls_from_the_rate_to_nearly_zero() -> None:
    rates = rates_of(100, SCHEDULES["cosine"])
    assert rates[0] == 0.01
    assert rates == sorted(rates, reverse=True)
    assert rates[50] == pytest.approx(0.005)
    assert rates[-1] < 1e-5
