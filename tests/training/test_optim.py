"""Muon against torch's, and schedules of the learning rate; tests/test_keras.py holds Adam to Keras's."""

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
    """Products in bf16 whatever this machine is good at, as torch's own Muon has them."""
    monkeypatch.setattr(optim, "has_bf16_products", lambda device: True)


def three_layers(seed: int = 0) -> list[torch.nn.Parameter]:
    """First layer, hidden layer with its bias, last layer."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(6, 4), (8, 6), (8,), (3, 8)]
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def steps(optimizers: list[torch.optim.Optimizer], params: list[torch.nn.Parameter], count: int, seed: int = 1) -> None:
    """So many steps along the same random gradients for any optimisers."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for parameter in params:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        for optimizer in optimizers:
            optimizer.step()


def test_hidden_weights_are_stepped_by_muon_and_the_rest_by_adam(in_bf16: None) -> None:
    """Against torch's own Muon, which takes weights with two axes only, with steps as large as Adam's."""
    ours, reference = three_layers(), three_layers()
    steps([MuonWithAdam(ours, lr=0.02)], ours, 10)
    muon = torch.optim.Muon([reference[1]], lr=0.02, weight_decay=0, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    steps([muon, KerasAdam([reference[0], *reference[2:]], lr=0.02)], reference, 10)
    for mine, theirs in zip(ours, reference, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)
    adam = three_layers()
    steps([KerasAdam(adam, lr=0.02)], adam, 10)
    assert (adam[1] - ours[1]).abs().max() > 0.01  # the negative control: Adam steps elsewhere


@pytest.mark.parametrize(("optimizer", "stepped_by_muon"), [(KerasAdam, ()), (MuonWithAdam, (1,))])
def test_weight_decay_is_that_of_torchs_optimizers(
    optimizer: type[KerasAdam], stepped_by_muon: tuple[int, ...], in_bf16: None
) -> None:
    """AdamW's and Muon's own, on what has two axes; a bias, the third, is let alone."""
    decay = {"lr": 0.02, "weight_decay": 0.5}
    ours, reference = three_layers(), three_layers()
    steps([optimizer(ours, **decay)], ours, 10)
    muon = [reference[i] for i in stepped_by_muon]
    adam = [reference[i] for i in (0, 1, 3) if i not in stepped_by_muon]
    references: list[torch.optim.Optimizer] = [
        *([torch.optim.Muon(muon, **decay, momentum=0.95, adjust_lr_fn="match_rms_adamw")] if muon else []),
        torch.optim.AdamW(adam, **decay, eps=1e-12),
        torch.optim.Adam([reference[2]], lr=0.02, eps=1e-12),
    ]
    steps(references, reference, 10)
    for mine, theirs in zip(ours, reference, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)  # Keras's epsilon is larger, where it tells
    without = three_layers()
    steps([optimizer(without, lr=0.02)], without, 10)
    assert (without[0] - ours[0]).abs().max() > 0.01


def test_a_convolutions_weight_is_stepped_as_the_matrix_of_its_filters() -> None:
    flat, filters = three_layers(), three_layers()
    filters[1] = torch.nn.Parameter(filters[1].detach().clone().view(8, 3, 2, 1))
    for params in (flat, filters):
        steps([MuonWithAdam(params, lr=0.02)], params, 3)
    assert torch.equal(filters[1].flatten(1), flat[1])


def test_muon_goes_on_from_its_state() -> None:
    straight, resumed = three_layers(), three_layers()
    optimizer = MuonWithAdam(straight, lr=0.02)
    steps([optimizer], straight, 4)
    steps([optimizer], straight, 3, seed=2)
    before = MuonWithAdam(resumed, lr=0.02)
    steps([before], resumed, 4)
    after = MuonWithAdam(resumed, lr=0.02)
    after.load_state_dict(before.state_dict())
    steps([after], resumed, 3, seed=2)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(resumed, straight, strict=True))


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("shape", [(20, 50), (50, 20)])
def test_orthogonalized_matrices_keep_their_directions_with_singular_values_of_about_one(
    shape: tuple[int, int], bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_one_cycle_climbs_to_the_given_rate_and_falls_to_nearly_nothing() -> None:
    optimizer = KerasAdam([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    schedule = one_cycle(optimizer, 100)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step() if len(rates) < 100 else None
    assert rates[0] == pytest.approx(0.01 / 25)
    assert max(rates) == pytest.approx(0.01)
    assert rates.index(max(rates)) == 19
    assert rates == sorted(rates[:20]) + sorted(rates[20:], reverse=True)
    assert rates[-1] < 1e-6
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)


@pytest.mark.parametrize("steps", range(1, 12))
def test_one_cycle_takes_any_number_of_steps(steps: int) -> None:
    optimizer = KerasAdam([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    schedule = one_cycle(optimizer, steps)
    for _ in range(steps - 1):
        optimizer.step()
        schedule.step()
    assert 0 < optimizer.param_groups[0]["lr"] <= 0.01


def test_a_run_ends_with_its_schedule_and_does_not_go_on_longer(
    program: Program, tmp_path: Path, small_drawn: None
) -> None:
    run, _ = small_run(program, tmp_path, "--schedule", "one_cycle", "--lr", 0.003, "--test", "false")
    checkpoint = read_checkpoint(run / "checkpoints" / "last.ckpt")
    [schedule] = checkpoint["lr_schedulers"]
    assert schedule["last_epoch"] == schedule["total_steps"] == checkpoint["global_step"] == 22
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] < 0.003 / 25
    status, output = program(train, "--config", run / "config.yaml", "--max_epochs", 3, "--resume", run)
    assert status == 1
    assert "can't go on with max_epochs 3 instead of 2" in output
