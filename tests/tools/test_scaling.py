"""The benchmark of several processes, and the model for GPUs."""

from pathlib import Path

import pytest
import torch
from several import run_ranks
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.scaling import Turns
from fmnist_lightning.models.nets import SeedNet
from fmnist_lightning.runs.options import TrainOptions
from fmnist_lightning.training.train import train
from tools import scaling
from tools.scaling import Case, Link, cases, exchange_seconds, paying_batch_size, scaling_table

ROW = {"processes": 2, "threads": 1, "batch_size": 128, "step": 0.02, "free": 0.015, "exchange": 0.001}
RECORD = {"scaling": [ROW, {**ROW, "processes": 1}], "cores": 2, "device": "a CPU", "versions": {"torch": "2"}}
RECORD |= {"dataset": "Fashion-MNIST", "git": {"commit": "0123456789", "dirty": False}}


def test_constants_match_the_model() -> None:
    net = SeedNet().eval()
    assert sum(weights.numel() for weights in net.parameters()) == scaling.WEIGHTS
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 1, 28, 28))
    assert pytest.approx(counter.get_total_flops() * 3, rel=0.01) == scaling.FLOP_AN_IMAGE


def test_model_matches_a_ring_by_hand() -> None:
    """Three devices send four messages of a third of 900,136 bytes at a million a second."""
    link = Link("slow", 1e6, 0.5)
    assert exchange_seconds(3, link) == pytest.approx(4 * (0.5 + 0.900136 / 3))
    assert exchange_seconds(1, link) == 0
    link = scaling.LINKS[1]  # the batch size saves what the exchange costs
    images = paying_batch_size(2, link)
    saved = images * scaling.FLOP_AN_IMAGE / scaling.DEVICE_FLOPS / 2
    assert saved == pytest.approx(exchange_seconds(2, link), rel=0.01)


def test_scaling_times_cases_and_shows_shares_of_time() -> None:
    table = scaling_table(RECORD)
    assert "| 2 | 1 | 128 | 20.0 | 156 | 6,400 | 25% | 1.00 |" in table
    assert "| 1 | 1 | 128 | 20.0 | 156 | 6,400 | | |" in table
    assert "2 cores. a CPU; torch 2; Fashion-MNIST; commit 0123456." in table
    timed = [case for case in cases(2) if case.batch_size == 128]
    assert timed == [Case(1, 2, 128), *(Case(processes, 1, 128) for processes in (1, 2, 3, 4))]


def timed_training(options: TrainOptions) -> None:
    train(options, callbacks=[Turns(21)])


def test_program_times_two_processes(tmp_path: Path) -> None:
    arguments = ["--dataset", "drawn", "--accelerator", "cpu", "--devices", 2, "--batch_size", 20, "--test", "false"]
    arguments += ["--max_epochs", 9, "--val_fraction", 0, "--ckpt", "last", "--log_dir", tmp_path / "logs"]
    statuses, outputs = run_ranks(tmp_path, timed_training, arguments, world_size=2)
    assert statuses == [0, 0], outputs
    step, free, exchange = map(float, scaling.SCALING.search(outputs[0]).groups())
    assert min(step, free, exchange) > 0
