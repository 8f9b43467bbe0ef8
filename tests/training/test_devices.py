"""Devices, precision, and the processes that one command starts."""

import functools
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import Program, small_run
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from several import (
    ROOT,
    SECONDS,
    as_script,
    slurm_environment,
    start_rank,
    started,
    torchrun_environment,
    wait_for,
)

from fmnist_lightning.cli.launchers import forget_other_launchers, launcher
from fmnist_lightning.data.datamodule import FashionMNISTDataModule
from fmnist_lightning.errors import SIGNALS, UserError
from fmnist_lightning.runs.folders import PREDICTIONS
from fmnist_lightning.training import devices
from fmnist_lightning.training.callbacks import moving_average
from fmnist_lightning.training.devices import (
    LOCALHOST,
    cluster_environment,
    fastest_precision,
    has_bf16_products,
    keep_freed_memory,
    launch,
    resolve_devices,
)
from fmnist_lightning.training.module import Classifier
from fmnist_lightning.training.train import train

INTEL = {"avx512_bf16": True, "cpu_name": "Intel Xeon"}


@pytest.mark.parametrize(
    ("capabilities", "precision", "has_products"),
    [
        ({"avx512_bf16": True, "cpu_name": "AMD EPYC"}, "bf16-mixed", True),
        (INTEL, "32-true", True),
        ({**INTEL, "amx_bf16": True}, "bf16-mixed", True),
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, "32-true", False),
        ({"neon": True, "bf16": True}, "32-true", True),
        ({}, "32-true", False),
        (None, "32-true", False),  # a torch that can't tell
    ],
)
def test_cpu_capabilities_decide_on_bf16(
    capabilities: dict[str, Any] | None, precision: str, has_products: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    if capabilities is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert fastest_precision(torch.device("cpu")) == precision
    assert fastest_precision(torch.device("cuda")) == "32-true"
    assert has_bf16_products(torch.device("cpu")) is has_products


def test_has_bf16_products_ignores_cuda_emulation(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch emulates them on GPUs built before 2020."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert not has_bf16_products(torch.device("cuda"))


def test_example_image_is_on_the_device_of_the_model(small_drawn: None) -> None:
    """Lightning's summary and TensorBoard's graph call the model with it before the first step."""
    module, places = Classifier(), []
    module.net.register_forward_pre_hook(lambda _, arguments: places.append(arguments[0].device.type))
    # A device without values plays the GPU until somebody asks for a value.
    strategy: Any = SingleDeviceStrategy(torch.device("meta"), CPUAccelerator())
    strategy.accelerator.setup_device = strategy.teardown = lambda *_: None
    strategy.reduce = lambda *_, **__: torch.ones(())  # Lightning asks whether there is a batch
    plain = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "num_sanity_val_steps": 0}
    L.Trainer(strategy=strategy, max_epochs=0, **plain).fit(module, FashionMNISTDataModule(dataset="drawn"))
    assert places == ["meta"]


def test_average_of_the_weights_is_on_the_training_device() -> None:
    """Lightning sets callbacks up before it moves the module."""
    average: Any = moving_average(0.9, torch.device("meta"))
    average.setup(None, Classifier(), "fit")
    assert {parameter.device.type for parameter in average._average_model.parameters()} == {"meta"}


def set_environment(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, None),
        ({"RANK": "2", "WORLD_SIZE": "3", "LOCAL_RANK": "0"}, None),  # some other program's
        (torchrun_environment(2, 3, 1), (2, 3, 2)),
        (slurm_environment(3, 4, 1), (3, 4, 3)),  # in an interactive job
        (slurm_environment(3, 4, 1, nodes=2), (3, 4, 1)),
        (slurm_environment(0, 1, 1), None),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, None),  # the script of a job
        ({**slurm_environment(0, 4, 1), **torchrun_environment(1, 2, 1)}, (1, 2, 1)),
        (torchrun_environment(0, 1, 1), None),
        ({**slurm_environment(2, 4, 1), **torchrun_environment(0, 1, 1)}, None),  # torchrun, once in each task
        ({"TORCHELASTIC_RUN_ID": "t", "RANK": "1", "WORLD_SIZE": "abc"}, None),
        ({"SLURM_STEP_NUM_TASKS": "", "SLURM_PROCID": "1"}, None),
    ],
)
def test_cluster_environment_knows_the_launcher(
    environment: dict[str, str], place: tuple[int, ...] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, environment)
    found = cluster_environment()
    assert place == (found and (found.global_rank(), found.world_size(), found.local_rank()))


@pytest.mark.parametrize(
    ("environment", "name", "value"),
    [
        (torchrun_environment(1, 2, 1), "MASTER_ADDR", ""),
        (torchrun_environment(1, 2, 1), "LOCAL_RANK", "abc"),
        (torchrun_environment(1, 2, 1), "RANK", "2"),
        (slurm_environment(1, 2, 1), "SLURM_PROCID", "-1"),
    ],
)
def test_launcher_refuses_half_a_rank(
    environment: dict[str, str], name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, {**environment, name: value})
    with pytest.raises(UserError, match=name):
        launcher()


STRAY = {"RANK": "1", "LOCAL_RANK": "1", "SLURM_PROCID": "1", "JSM_NAMESPACE_RANK": "1"}


@pytest.mark.parametrize(
    ("environment", "kept"),
    [
        ({}, set()),
        (torchrun_environment(0, 1, 1), set()),
        (torchrun_environment(1, 2, 1), {"RANK", "LOCAL_RANK"}),
        (slurm_environment(1, 2, 1), {"SLURM_PROCID"}),
    ],
)
def test_command_keeps_only_the_rank_of_its_launcher(
    environment: dict[str, str], kept: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, {**STRAY, "TORCHELASTIC_ERROR_FILE": "nowhere", **environment})
    if "RANK" not in environment:
        monkeypatch.setenv("WORLD_SIZE", "1")
    forget_other_launchers()
    assert {name for name in STRAY if name in os.environ} == kept
    assert ("TORCHELASTIC_ERROR_FILE" in os.environ) == ("RANK" in kept)  # else nobody would read the error


def test_process_that_runs_alone_warns_of_a_world_size(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    forget_other_launchers()
    assert "OMPI_COMM_WORLD_SIZE is 4" in capsys.readouterr().err


@pytest.mark.usefixtures("small_drawn")
def test_rank_of_another_program_loses_no_results(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, STRAY)
    monkeypatch.setattr(rank_zero_only, "rank", 1)  # as at an import of Lightning before the program's
    run, output = small_run(program, tmp_path, "--max_epochs", 1)
    assert "epoch 1/1" in output
    assert (run / PREDICTIONS).exists()
    assert list(run.glob("events.*"))


@pytest.mark.parametrize("value", ["", "abc", "-1"])
def test_rank_that_is_no_number_is_ignored(value: str) -> None:
    code = "import os, fmnist_lightning; print(os.environ.get('LOCAL_RANK'), os.environ['RANK'])"
    environment = {**os.environ, "LOCAL_RANK": value, "RANK": "2"}  # Lightning fails at the first, not at the second
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "None 2\n"


def test_float16_is_refused_on_a_cpu() -> None:
    """Lightning would take bf16-mixed instead."""
    with pytest.raises(UserError, match="bf16-mixed"):
        resolve_devices("cpu", 1, "16-mixed")
    assert resolve_devices("cpu", 1, "bf16-mixed").precision == "bf16-mixed"


@pytest.mark.parametrize(
    ("options", "environment", "reason"),
    [
        ({"devices": 1}, torchrun_environment(0, 2, 1), "started 2 processes"),
        ({"devices": 3}, torchrun_environment(0, 2, 1), "started 2 processes"),
        ({"devices": 1}, slurm_environment(0, 2, 1), "started 2 processes"),
        ({"devices": 2}, slurm_environment(0, 2, 1) | {"SLURM_NTASKS_PER_NODE": ""}, "--ntasks-per-node"),
        ({"num_nodes": 2}, {}, "torchrun"),
    ],
)
def test_resolve_devices_refuses_what_was_not_started(
    options: dict[str, Any], environment: dict[str, str], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, environment)
    if environment.get("SLURM_NTASKS_PER_NODE") == "":
        monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    with pytest.raises(UserError, match=reason):
        resolve_devices("cpu", **{"devices": 1, "precision": "32-true", **options})


def test_resolve_devices_counts_processes_to_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [resolve_devices("cpu", devices, "auto").to_launch for devices in (1, "1", "auto", 2)] == [0, 0, 0, 2]
    set_environment(monkeypatch, torchrun_environment(0, 2, 1))
    assert resolve_devices("cpu", 2, "auto").to_launch == 0


def announce_at_once() -> None:
    devices.SECONDS_OF_SILENCE = 0


@pytest.mark.parametrize(
    ("rank", "launcher", "number"),
    [(0, torchrun_environment, signal.SIGINT), (1, functools.partial(slurm_environment, nodes=2), signal.SIGTERM)],
)
def test_signal_ends_the_wait_for_a_missing_rank(
    tmp_path: Path, rank: int, launcher: Callable[..., dict[str, str]], number: signal.Signals
) -> None:
    """torch would wait for half an hour in C++, without an answer."""
    output, port = tmp_path / "output.txt", find_free_network_port()
    output.touch()
    options = ["--accelerator", "cpu", "--num_nodes", 2, "--log_dir", tmp_path]
    process = start_rank(output, train, options, launcher(rank, 2, port), announce_at_once)
    wait_for(lambda: f"waits for rank {1 - rank} at 127.0.0.1:{port}, at most 300 seconds" in output.read_text())
    os.kill(process.pid or 0, number)
    process.join(10)
    ended = process.exitcode
    process.kill()
    assert ended == 128 + number
    assert "Traceback" not in output.read_text()


@pytest.mark.parametrize("rank", [0, 1])
def test_wait_for_a_missing_rank_ends(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, torchrun_environment(rank, 2, find_free_network_port()))
    monkeypatch.setattr(devices, "SECONDS_TO_MEET", 0.2)
    with pytest.raises(UserError, match=f"rank {1 - rank} did not come"):
        devices.wait_for_ranks(TorchElasticEnvironment())


def test_wait_is_not_blocked_by_another_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch would wait forever for an answer of one that says nothing, here played by its store."""
    blocked = threading.Event()
    monkeypatch.setattr(devices, "TCPStore", lambda *_, **__: blocked.wait(SECONDS))
    monkeypatch.setattr(devices, "SECONDS_TO_MEET", 0.5)
    with socket.create_server((LOCALHOST, 0)) as server:
        set_environment(monkeypatch, torchrun_environment(1, 2, server.getsockname()[1]))
        monkeypatch.setattr(devices, "is_listened_to", lambda *_: True)
        with pytest.raises(UserError, match="rank 0 did not come"):
            devices.wait_for_ranks(TorchElasticEnvironment())
    blocked.set()


@pytest.mark.parametrize(
    ("rank", "name", "value"),
    [(1, "MASTER_ADDR", "a..b"), (1, "MASTER_PORT", "70000"), (0, "MASTER_PORT", "in use"), (1, "MASTER_ADDR", "gone")],
)
def test_wrong_address_is_refused_before_the_wait(
    rank: int, name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(host: str, *_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with socket.create_server(("", 0)) as server:
        port = str(server.getsockname()[1])
        set_environment(monkeypatch, {**torchrun_environment(rank, 2, 1), name: port if value == "in use" else value})
        if value == "gone":
            monkeypatch.setattr(socket, "getaddrinfo", find)
        with pytest.raises(UserError, match=name):
            devices.wait_for_ranks(TorchElasticEnvironment())


def test_web_proxy_is_not_taken_for_rank_zero() -> None:
    def answer() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(100)
            connection.sendall(b"HTTP/1.0 502 Bad Gateway\r\n\r\n")

    port = find_free_network_port()
    assert not devices.is_listened_to(LOCALHOST, port)
    store = devices.hosted_store(port)
    assert devices.is_listened_to(LOCALHOST, store.port)
    with socket.create_server((LOCALHOST, 0)) as server:
        threading.Thread(target=answer, daemon=True).start()
        assert not devices.is_listened_to(LOCALHOST, server.getsockname()[1])


def launch_script(mode: str, folder: Path) -> None:
    with as_script("--mode", mode):
        launch(2, hint="a hint", extra=["--folder", str(folder)])


def test_launch_waits_for_all_ranks(tmp_path: Path) -> None:
    launch_script("end", tmp_path)
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
    tmp_path: Path, capfd: pytest.CaptureFixture[str], mode: str, message: str, status: int
) -> None:
    with pytest.raises(UserError) as caught:
        launch_script(mode, tmp_path)
    assert (str(caught.value), caught.value.exit_status) == (message, status)
    assert capfd.readouterr() == ("", "")


def both_wait(folder: Path) -> None:
    wait_for(lambda: len(list(folder.iterdir())) == 2)


@pytest.mark.parametrize("number", SIGNALS)
def test_launch_passes_signals_on_to_all_ranks(tmp_path: Path, number: signal.Signals) -> None:
    def stop() -> None:
        both_wait(tmp_path)
        os.kill(os.getpid(), number)

    before = [signal.getsignal(number) for number in SIGNALS]
    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(SystemExit) as caught:
        launch_script("wait", tmp_path)
    assert caught.value.code == 128 + number
    assert [path.read_text() for path in tmp_path.iterdir()] == [str(128 + number)] * 2
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_launch_refuses_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    with pytest.raises(UserError, match="notebook"):
        launch(2)


@pytest.mark.parametrize("mode", ["fail", "wait"])
def test_ranks_of_torchrun_report_and_end(tmp_path: Path, mode: str) -> None:
    """torchrun prints the message of a rank that failed; if torchrun is killed, its ranks end."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    with started(*torchrun, ROOT / "tests" / "launched.py", "--mode", mode, "--folder", tmp_path) as program:
        if mode == "wait":
            both_wait(tmp_path)
            program.kill()
            wait_for(lambda: [path.read_text() for path in tmp_path.iterdir()] == ["143", "143"])
        output, _ = program.communicate(timeout=60)
    assert output.count("this rank's own message") == (mode == "fail"), output


def test_no_step_looks_for_a_driver_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adam asks torch at each step whether there is CUDA."""
    looked: list[bool] = []
    monkeypatch.setattr(torch.cuda, "_device_count_nvml", lambda: looked.append(True) or -1)
    monkeypatch.setattr(torch.cuda, "_cached_device_count", None)
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # as `import lightning` leaves it
    torch.cuda.is_available()
    assert looked == [True]  # the negative control
    resolve_devices("cpu", 1, "32-true")
    torch.cuda.is_available()
    assert looked == [True]


# Twenty times 40 MB, 9,766 pages, allocated and freed as a training step does.
STEPS = """
import resource, torch
{before}
for step in range(21):
    torch.ones(10_000_000)
    if step == 0:
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_keep_freed_memory_avoids_page_faults() -> None:
    faults = {}
    for before in ("", f"from {keep_freed_memory.__module__} import keep_freed_memory; keep_freed_memory()"):
        command = [sys.executable, "-c", STEPS.format(before=before)]
        faults[bool(before)] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert faults[True] < 3 * 9766  # the heap may move once or twice before it is large enough
    assert faults[False] > 19 * 9766  # the negative control
