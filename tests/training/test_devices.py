"""Devices, precision, and the processes that one command starts."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from conftest import own_signals
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from several import ROOT, slurm_environment, started, torchrun_environment, wait_for

from fmnist_lightning.data.datamodule import FashionMNISTDataModule
from fmnist_lightning.errors import SIGNALS, Interrupted, ProcessFailedError, UserError
from fmnist_lightning.training import devices
from fmnist_lightning.training.devices import (
    cluster_environment,
    fastest_precision,
    has_bf16_products,
    launch,
    resolve_devices,
)
from fmnist_lightning.training.module import Classifier
from fmnist_lightning.training.resume import SaveInEpochs

SCRIPT = ROOT / "tests" / "launched.py"


@pytest.mark.parametrize(
    ("device", "capabilities", "precision"),
    [
        ("cpu", {"avx512_bf16": True}, "bf16-mixed"),
        ("cpu", {"avx512_bf16": True, "cpu_name": "AMD EPYC"}, "bf16-mixed"),
        ("cpu", {"avx512_bf16": True, "cpu_name": "Intel Xeon"}, "32-true"),
        ("cpu", {"avx512_bf16": True, "amx_bf16": True, "cpu_name": "Intel Xeon"}, "bf16-mixed"),
        ("cpu", {"avx512_bf16": False, "amx_bf16": False}, "32-true"),
        ("cpu", {"neon": True}, "32-true"),
        ("cuda", {"avx512_bf16": True}, "32-true"),
    ],
)
def test_fastest_precision_is_bf16_where_cpus_gain(
    device: str, capabilities: dict[str, bool | str], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert fastest_precision(torch.device(device)) == precision


@pytest.mark.parametrize(
    ("capabilities", "has_them"),
    [
        ({"avx512_bf16": True, "cpu_name": "Intel Xeon"}, True),
        ({"avx512_bf16": False, "amx_bf16": True}, True),
        ({"neon": True, "bf16": True}, True),
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({}, False),
    ],
)
def test_has_bf16_products_reads_cpu_capabilities(
    capabilities: dict[str, bool | str], has_them: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert has_bf16_products(torch.device("cpu")) is has_them


@pytest.mark.parametrize("has_them", [False, True])
def test_has_bf16_products_ignores_cuda_emulation(has_them: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch emulates them on GPUs built before 2020."""

    def is_bf16_supported(including_emulation: bool = True) -> bool:
        return including_emulation or has_them

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    assert has_bf16_products(torch.device("cuda")) is has_them


def test_cpu_capabilities_are_empty_in_an_old_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert fastest_precision(torch.device("cpu")) == "32-true"
    assert not has_bf16_products(torch.device("cpu"))


class AnyDevice(CPUAccelerator):
    def setup_device(self, device: torch.device) -> None:
        pass


class MetaStrategy(SingleDeviceStrategy):
    """Trains on a device without values, which plays the GPU until somebody asks for a value."""

    def __init__(self) -> None:
        super().__init__(device=torch.device("meta"), accelerator=AnyDevice())

    def reduce(self, *_: Any, **__: Any) -> torch.Tensor:
        return torch.ones(())  # Lightning asks whether there is a batch

    def teardown(self) -> None:
        pass  # nothing can be moved back to the CPU


def test_example_image_is_on_the_device_of_the_model(small_drawn: None) -> None:
    """Lightning's summary and TensorBoard's graph call the model with it before the first step."""
    module, places = Classifier(), []
    module.net.register_forward_pre_hook(lambda _, arguments: places.append(arguments[0].device.type))
    plain = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "num_sanity_val_steps": 0}
    trainer = L.Trainer(strategy=MetaStrategy(), max_epochs=0, **plain)
    trainer.fit(module, FashionMNISTDataModule(dataset="drawn"))
    assert places == ["meta"]


def set_environment(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


SLURM_SCRIPT = {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, None),
        ({"RANK": "2", "WORLD_SIZE": "3", "LOCAL_RANK": "0"}, None),  # some other program's
        (torchrun_environment(2, 3, 1), (2, 3, 2)),
        (slurm_environment(3, 4, 1), (3, 4, 3)),  # in an interactive job
        (slurm_environment(3, 4, 1, nodes=2), (3, 4, 1)),
        (slurm_environment(0, 1, 1), None),
        (SLURM_SCRIPT, None),
        ({**slurm_environment(0, 1, 1), **torchrun_environment(1, 2, 1)}, (1, 2, 1)),
        ({**slurm_environment(0, 4, 1), **torchrun_environment(1, 2, 1)}, (1, 2, 1)),
    ],
)
def test_cluster_environment_knows_the_launcher(
    environment: dict[str, str], place: tuple[int, ...] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, environment)
    found = cluster_environment()
    assert place == (found and (found.global_rank(), found.world_size(), found.local_rank()))


@pytest.mark.parametrize(
    ("options", "environment", "reason"),
    [
        ({"devices": 1}, torchrun_environment(0, 2, 1), "started 2 processes"),
        ({"devices": 3}, torchrun_environment(0, 2, 1), "started 2 processes"),
        ({"devices": 1}, slurm_environment(0, 2, 1), "started 2 processes"),
        ({"devices": 2}, slurm_environment(0, 2, 1) | {"SLURM_NTASKS_PER_NODE": ""}, "--ntasks-per-node"),
        ({"devices": 9}, {}, "2 cores carry 8 processes"),
        ({"num_nodes": 2}, {}, "torchrun"),
        ({"devices": "nonsense"}, {}, "nonsense"),
        ({"devices": 0}, {}, "--devices 0"),
    ],
)
def test_resolve_devices_refuses_what_was_not_started(
    options: dict[str, Any], environment: dict[str, str], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, environment)
    if environment.get("SLURM_NTASKS_PER_NODE") == "":
        monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    monkeypatch.setattr(devices, "usable_cores", lambda: 2)
    with pytest.raises(UserError, match=reason):
        resolve_devices("cpu", **{"devices": 1, "precision": "32-true", **options})


@pytest.mark.parametrize(
    ("options", "to_launch", "strategy"),
    [({"devices": 1}, 0, "auto"), ({"devices": "auto"}, 0, "auto"), ({"devices": 2}, 2, "ddp")],
)
def test_resolve_devices_counts_processes_to_launch(
    options: dict[str, Any], to_launch: int, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = resolve_devices("cpu", precision="auto", **options)
    assert (found.to_launch, found.trainer["strategy"]) == (to_launch, strategy)
    set_environment(monkeypatch, torchrun_environment(0, to_launch or 1, 1))
    assert resolve_devices("cpu", precision="auto", **options).to_launch == 0


@pytest.fixture
def launch_script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """Call `launch` as if tests/launched.py had been started with a mode."""

    def call(mode: str) -> None:
        monkeypatch.setattr(sys, "orig_argv", [sys.executable, str(SCRIPT), "--mode", mode])
        launch(2, hint="a hint", extra=["--folder", str(tmp_path)])

    # `launch` leaves these to the ranks.
    for name in ("OMP_NUM_THREADS", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "TORCHELASTIC_SIGNALS_TO_HANDLE"):
        monkeypatch.setenv(name, "SIGTERM" if "SIGNALS" in name else "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr("__main__.__file__", __file__, raising=False)  # pytest-xdist's processes have none
    with own_signals():
        yield call
    logging.disable(logging.NOTSET)


def test_launch_waits_for_all_ranks(launch_script: Callable[[str], None], tmp_path: Path) -> None:
    launch_script("end")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"0": "2", "1": "2"}


@pytest.mark.parametrize(
    ("mode", "message", "status"),
    [
        ("fail", "this rank's own message (rank 1 of 2)", 1),
        ("kill", "rank 1 of 2 was ended by SIGKILL, and then the others (a hint)", 137),
        ("exit", "rank 1 of 2 ended with status 2; its message is above", 2),
    ],
)
def test_launch_reports_the_rank_that_failed_first(
    launch_script: Callable[[str], None], capfd: pytest.CaptureFixture[str], mode: str, message: str, status: int
) -> None:
    with pytest.raises(ProcessFailedError) as caught:
        launch_script(mode)
    assert (str(caught.value), caught.value.exit_status) == (message, status)
    assert capfd.readouterr() == ("", "")


def test_launch_passes_signals_on_to_all_ranks(launch_script: Callable[[str], None], tmp_path: Path) -> None:
    def stop() -> None:
        wait_for(lambda: len(list(tmp_path.iterdir())) == 2)
        os.kill(os.getpid(), signal.SIGTERM)

    before = [signal.getsignal(number) for number in SIGNALS]
    threading.Thread(target=stop).start()
    with pytest.raises(SystemExit) as caught:
        launch_script("wait")
    assert caught.value.code == 143
    assert [path.read_text() for path in tmp_path.iterdir()] == ["143", "143"]
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_launch_refuses_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    with pytest.raises(UserError, match="notebook"):
        launch(2)


def test_torchrun_prints_the_message_of_a_rank(tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, SCRIPT]
    with started(*torchrun, "--mode", "fail", "--folder", tmp_path) as program:
        output, _ = program.communicate(timeout=60)
    assert program.returncode == 1
    assert output.count("this rank's own message") == 1, output


@pytest.mark.parametrize("world_size", [1, 2])
def test_ranks_stop_after_their_launcher_was_killed(
    world_size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But a single process continues, as under nohup."""
    saved: list[Path] = []
    trainer: Any = SimpleNamespace(world_size=world_size, is_last_batch=False)
    trainer.save_checkpoint = lambda path, **_: saved.append(path)
    callback = SaveInEpochs(tmp_path / "last.ckpt", None)
    with own_signals():
        callback.on_train_start(trainer, Classifier())
        callback.on_train_batch_end(trainer, Classifier())
        monkeypatch.setattr(os, "getppid", lambda: 1)
        if world_size == 1:
            callback.on_train_batch_end(trainer, Classifier())
        else:
            with pytest.raises(Interrupted, match="SIGTERM"):
                callback.on_train_batch_end(trainer, Classifier())
    assert len(saved) == world_size - 1
