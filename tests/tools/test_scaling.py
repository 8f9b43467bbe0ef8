"""The benchmark of several processes, and the model for GPUs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from several import LIMITS, ROOT
from torch.utils.flop_counter import FlopCounterMode

from fmnist_lightning.models.nets import SeedNet
from tools import scaling
from tools.benchmarking import Observation
from tools.results_tables import marks
from tools.scaling import Case, Link, cases, exchange_seconds, model_table, paying_batch_size, scaling_table

ROW = {"processes": 2, "threads": 1, "batch_size": 128, "step": 0.02, "free": 0.015, "exchange": 0.001}
RECORD = {"scaling": [ROW, {**ROW, "processes": 1}], "cores": 2, "device": "a CPU", "versions": {"torch": "2"}}
RECORD |= {"dataset": "Fashion-MNIST", "git": {"commit": "0123456789", "dirty": False}}


def test_the_model_counts_what_the_net_has_and_does() -> None:
    net = SeedNet().eval()
    assert sum(weights.numel() for weights in net.parameters()) == scaling.WEIGHTS
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 1, 28, 28))
    assert pytest.approx(counter.get_total_flops() * 3, rel=0.01) == scaling.FLOP_AN_IMAGE


def test_a_ring_sends_each_gradient_twice_but_for_a_share() -> None:
    """By hand: three devices, four messages of a third of 900,136 bytes at a million a second."""
    link = Link("slow", 1e6, 0.5)
    assert exchange_seconds(3, link) == pytest.approx(4 * (0.5 + 0.900136 / 3))
    assert exchange_seconds(1, link) == 0


def test_from_the_paying_batch_size_on_computing_saves_what_the_exchange_costs() -> None:
    link = scaling.LINKS[1]
    images = paying_batch_size(2, link)
    saved = images * scaling.FLOP_AN_IMAGE / scaling.DEVICE_FLOPS / 2
    assert saved == pytest.approx(exchange_seconds(2, link), rel=0.01)


def test_the_table_shows_shares_of_time() -> None:
    table = scaling_table(RECORD)
    assert "| 2 | 1 | 128 | 20.0 | 156 | 6,400 | 25% | 1.00 |" in table
    assert "| 1 | 1 | 128 | 20.0 | 156 | 6,400 |  |  |" in table
    assert "2 cores. a CPU; torch 2; Fashion-MNIST; commit 0123456." in table


def test_each_number_of_processes_is_timed_with_a_thread_each() -> None:
    timed = [case for case in cases(2) if case.batch_size == 128]
    assert timed == [Case(1, 2, 128), *(Case(processes, 1, 128) for processes in (1, 2, 3, 4))]


def test_the_program_tells_times_of_two_processes() -> None:
    command = [sys.executable, ROOT / "benchmarks" / "scaling.py", "2", "1", "20", "drawn", "", "21"]
    environment = {**LIMITS, "PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run(map(str, command), env=environment, capture_output=True, text=True, timeout=120, check=True)
    step, free, exchange = map(float, scaling.SCALING.search(done.stdout).groups())
    assert min(step, free, exchange) > 0


def test_the_document_shows_the_record() -> None:
    document = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    record = json.loads((ROOT / "benchmarks" / "scaling.json").read_text())
    for name, table in (("scaling", scaling_table(record)), ("model", model_table())):
        begin, end = marks(name)
        assert document.partition(begin)[2].partition(end)[0].strip() == table


def test_a_program_that_tells_nothing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(scaling, "observe", lambda _: Observation([], 1.0, 1.0))
    with pytest.raises(scaling.UserError, match="told no times"):
        scaling.measure_case(Case(1, 1, 20), "drawn", "")
