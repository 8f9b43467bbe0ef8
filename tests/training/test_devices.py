"""The default arithmetic is the device's fastest; memory stays between steps."""

import os
import platform
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from several import slurm_environment

from fmnist_lightning.data.datamodule import FashionMNISTDataModule
from fmnist_lightning.errors import UserError
from fmnist_lightning.training.callbacks import MovingAverage
from fmnist_lightning.training.devices import fastest_precision, has_bf16_products, resolve_devices
from fmnist_lightning.training.module import Classifier


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
def test_bf16_is_the_default_of_cpus_that_gain_by_it(
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
def test_muon_computes_in_bf16_where_a_cpu_has_instructions_for_it(
    capabilities: dict[str, bool | str], has_them: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert has_bf16_products(torch.device("cpu")) is has_them


@pytest.mark.parametrize("has_them", [False, True])
def test_muon_computes_in_bf16_where_a_gpu_has_instructions_for_it(
    has_them: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch emulates them on GPUs of before 2020."""

    def is_bf16_supported(including_emulation: bool = True) -> bool:
        return including_emulation or has_them

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    assert has_bf16_products(torch.device("cuda")) is has_them


def test_averaged_weights_lie_where_the_training_computes() -> None:
    """Lightning sets callbacks up before it moves the module. A device that holds no values plays the GPU."""
    average = MovingAverage(0.9)
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("meta")))
    average.setup(trainer, Classifier(), "fit")  # type: ignore[arg-type]
    assert {parameter.device.type for parameter in average._average_model.parameters()} == {"meta"}


class AnyDevice(CPUAccelerator):
    def setup_device(self, device: torch.device) -> None:
        pass


class Elsewhere(SingleDeviceStrategy):
    """Trains on a device that holds no values, so plays the GPU up to the first value that somebody asks for."""

    def __init__(self) -> None:
        super().__init__(device=torch.device("meta"), accelerator=AnyDevice())

    def reduce(self, *_: Any, **__: Any) -> torch.Tensor:
        return torch.ones(())  # Lightning asks whether there is a batch

    def teardown(self) -> None:
        pass  # nothing can be brought back to the CPU


def test_the_example_image_goes_where_the_net_is(small_drawn: None) -> None:
    """Lightning's summary and TensorBoard's graph call the net with it before the first step."""
    module, places = Classifier(), []
    module.net.register_forward_pre_hook(lambda _, arguments: places.append(arguments[0].device.type))
    plain = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "num_sanity_val_steps": 0}
    trainer = L.Trainer(strategy=Elsewhere(), max_epochs=0, **plain)
    trainer.fit(module, FashionMNISTDataModule(dataset="drawn"))
    assert places == ["meta"]


def test_a_torch_that_cannot_tell_computes_in_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert fastest_precision(torch.device("cpu")) == "32-true"
    assert not has_bf16_products(torch.device("cpu"))


def test_a_training_on_the_cpu_does_not_look_for_a_gpus_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's question whether there is CUDA, which Adam asks at each step."""
    looked: list[bool] = []
    monkeypatch.setattr(torch.cuda, "_device_count_nvml", lambda: looked.append(True) or -1)
    monkeypatch.setattr(torch.cuda, "_cached_device_count", None)
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # as `import lightning` leaves it
    torch.cuda.is_available()
    assert looked == [True]  # the negative control
    resolve_devices("cpu", 1, "32-true")
    torch.cuda.is_available()
    assert looked == [True]
    assert os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] == "0"


def test_a_slurm_job_that_lightning_does_not_take_is_told_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in slurm_environment(0, 2, 12345).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    with pytest.raises(UserError, match="--ntasks-per-node=2"):
        resolve_devices("cpu", 2, "32-true")


# Twenty times 40 MB, 9,766 pages, taken and freed as a training step does.
STEPS = """
import resource, torch
from fmnist_lightning.training.devices import keep_freed_memory
{call}
for step in range(21):
    torch.ones(10_000_000)
    if step == 0:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator alone is told to keep memory")
def test_what_a_step_frees_the_next_one_has_without_page_faults() -> None:
    faults = {}
    for call in ("keep_freed_memory()", "pass"):
        command = [sys.executable, "-c", STEPS.format(call=call)]
        faults[call] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert faults["keep_freed_memory()"] < 3 * 9766  # the heap may move once or twice before it is large enough
    assert faults["pass"] > 19 * 9766  # the negative control: as glibc does it by itself
