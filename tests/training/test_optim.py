"""Muon against torch's, and the schedule of the learning rate; test_keras.py compares Adam with Keras's."""

from pathlib import Path

import pytest
import torch
from conftest import Program, small_run

from fmnist_lightning.runs.checkpoints import read_checkpoint
from fmnist_lightning.training import optim
from fmnist_lightning.training.optim import KerasAdam, MuonWithAdam, one_cycle, orthogonalize
from fmnist_lightning.training.train import train


@pytest.fixture
def in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products in bf16 on any machine, as in torch's own Muon."""
    monkeypatch.setattr(optim, "has_bf16_products", lambda device: True)


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


def test_muon_steps_hidden_weights_and_adam_the_rest(in_bf16: None) -> None:
    """Against torch's own Muon, which takes weights with two axes only, with steps as large as Adam's."""
    ours, reference, adam = three_layers(), three_layers(), three_layers()
    steps(ours, MuonWithAdam(ours, lr=0.02))
    muon = torch.optim.Muon([reference[1]], lr=0.02, weight_decay=0, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    steps(reference, muon, KerasAdam([reference[0], *reference[2:]], lr=0.02))
    for mine, theirs in zip(ours, reference, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)
    steps(adam, KerasAdam(adam, lr=0.02))
    assert (adam[1] - ours[1]).abs().max() > 0.01  # negative control: Adam steps elsewhere


@pytest.mark.parametrize(("optimizer", "stepped_by_muon"), [(KerasAdam, ()), (MuonWithAdam, (1,))])
def test_weight_decay_is_that_of_torchs_optimizers(
    optimizer: type[KerasAdam], stepped_by_muon: tuple[int, ...], in_bf16: None
) -> None:
    """That of AdamW and Muon for weights with two axes; the third, a bias, does not decay."""
    decay = {"lr": 0.02, "weight_decay": 0.5}
    ours, reference, without = three_layers(), three_layers(), three_layers()
    steps(ours, optimizer(ours, **decay))
    muon = [reference[i] for i in stepped_by_muon]
    adam = [reference[i] for i in (0, 1, 3) if i not in stepped_by_muon]
    references: list[torch.optim.Optimizer] = [
        *([torch.optim.Muon(muon, **decay, momentum=0.95, adjust_lr_fn="match_rms_adamw")] if muon else []),
        torch.optim.AdamW(adam, **decay, eps=1e-12),
        torch.optim.Adam([reference[2]], lr=0.02, eps=1e-12),
    ]
    steps(reference, *references)
    for mine, theirs in zip(ours, reference, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)  # Keras's epsilon is larger
    steps(without, optimizer(without, lr=0.02))
    assert (without[0] - ours[0]).abs().max() > 0.01


def test_muon_steps_a_convolution_as_the_matrix_of_its_filters() -> None:
    flat, filters = three_layers(), three_layers()
    filters[1] = torch.nn.Parameter(filters[1].detach().clone().view(8, 3, 2, 1))
    for params in (flat, filters):
        steps(params, MuonWithAdam(params, lr=0.02), count=3)
    assert torch.equal(filters[1].flatten(1), flat[1])


def test_muon_resumes_from_its_state() -> None:
    straight, resumed = three_layers(), three_layers()
    optimizer, before = MuonWithAdam(straight, lr=0.02), MuonWithAdam(resumed, lr=0.02)
    steps(straight, optimizer, count=4)
    steps(resumed, before, count=4)
    after = MuonWithAdam(resumed, lr=0.02)
    after.load_state_dict(before.state_dict())
    steps(straight, optimizer, seed=2)
    steps(resumed, after, seed=2)
    assert all(map(torch.equal, resumed, straight))


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


def rates_of(steps: int) -> list[float]:
    """The learning rates of one_cycle up to 0.01, by step."""
    optimizer = KerasAdam([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    schedule = one_cycle(optimizer, steps)
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps - 1):
        optimizer.step()
        schedule.step()
        rates.append(optimizer.param_groups[0]["lr"])
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


def test_one_cycle_ends_with_its_run_and_fixes_its_length(program: Program, tmp_path: Path, small_drawn: None) -> None:
    run, _ = small_run(program, tmp_path, "--schedule", "one_cycle", "--max_epochs", 1, "--test", "false")
    checkpoint = read_checkpoint(run / "checkpoints" / "last.ckpt")
    [schedule] = checkpoint["lr_schedulers"]
    assert schedule["last_epoch"] == schedule["total_steps"] == checkpoint["global_step"] == 11
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] < 1e-3 / 25
    status, output = program(train, "--resume", run, "--max_epochs", 3)
    assert status == 1
    assert "max_epochs 3 instead of 1" in output
