"""The benchmark times whole programs by their lines; its peers do what they say; its tables match its records."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import Program
from torchvision.datasets import FashionMNIST

from fmnist_lightning.data.sets.drawn import load_drawn
from fmnist_lightning.errors import UserError
from fmnist_lightning.training.train import train
from tools import benchmark
from tools.benchmark import epoch_seconds, measure_startup, measure_trainer, peers, write_layout, write_record
from tools.markdown import origin
from tools.observe import PROGRAMS, ROOT, Observation, observe
from tools.speed_tables import RATIOS, growth_table, speed_table, trainer_table


def peer(name: str) -> ModuleType:
    """A program of benchmarks/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, PROGRAMS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lines_of(capsys: pytest.CaptureFixture[str]) -> Observation:
    """The captured output as if each line had come a second after the one before."""
    return Observation([(float(at), line) for at, line in enumerate(capsys.readouterr().out.splitlines())], 99.0, 1.0)


def test_observe_notes_lines_memory_and_failure() -> None:
    code = "import time; print('a', flush=True); x = b'x' * (201 << 20); time.sleep(0.5); print('b', flush=True)"
    seen, small = (observe([sys.executable, "-c", text]) for text in (code, "import time; time.sleep(0.3)"))
    (first, a), (second, b) = seen.lines
    assert (a, b) == ("a\n", "b\n")
    assert second - first > 0.3  # a line may be read late
    assert seen.seconds >= second
    assert seen.peak_mb - small.peak_mb == pytest.approx(200, abs=20)
    with pytest.raises(UserError, match="status 1: ValueError: no data"):
        observe([sys.executable, "-c", "raise ValueError('no data')"])


def test_epoch_seconds_leave_out_the_first_epoch() -> None:
    lines = [(1.0, "begin"), (9.0, "epoch 1/3"), (11.0, "x epoch 2/3 train_seconds 1.5"), (14.0, "epoch 3/3")]
    assert epoch_seconds(Observation(lines, 15.0, 7.0)) == {"epoch": [2.0, 3.0], "train": [1.5], "peak_mb": [7.0]}
    with pytest.raises(ValueError, match="at least two"):
        epoch_seconds(Observation(lines[:2], 15.0, 7.0))


@pytest.fixture
def layout(tmp_path: Path, small_drawn: None) -> Path:
    """The small drawn set in the files that all programs read."""
    write_layout(tmp_path, "drawn", "")
    return tmp_path


def test_write_layout_is_read_alike_by_all_programs(layout: Path) -> None:
    drawn, theirs = load_drawn("train"), FashionMNIST(layout, train=True)
    assert torch.equal(theirs.data, drawn.images.squeeze(1))
    assert torch.equal(theirs.targets, drawn.labels)
    read = peer("keras_tensorflow").read_idx(layout / "FashionMNIST" / "raw" / "train-images-idx3-ubyte")
    assert torch.equal(torch.tensor(read), theirs.data)


class TestPeers:
    """Each prints a line per epoch."""

    def test_keras_program(self, layout: Path, capsys: pytest.CaptureFixture[str]) -> None:
        peer("keras_tensorflow").main(layout, 2)
        assert epoch_seconds(lines_of(capsys))["epoch"] == [1.0]

    @pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:The number of training batches")
    def test_tutorial_lightning(self, layout: Path, capsys: pytest.CaptureFixture[str]) -> None:
        program = peer("idiomatic_lightning")
        program.main(str(layout), 2, "cpu")
        assert len(epoch_seconds(lines_of(capsys))["epoch"]) == 1
        assert sum(parameter.numel() for parameter in program.LitClassifier(1).parameters()) == 225034

    def test_bare_loop_learns(self, small_drawn: None, capsys: pytest.CaptureFixture[str]) -> None:
        peer("bare_loop").main("drawn", 8, "cpu", "bf16-mixed")
        seen = lines_of(capsys)
        assert len(epoch_seconds(seen)["train"]) == 7
        correct = [int(line.split()[3]) for _, line in seen.lines]
        assert correct[-1] > correct[0]  # of 60 images

    def test_floor(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        program = peer("floor")
        assert program.STEPS == 422
        monkeypatch.setattr(program, "STEPS", 2)
        program.main(2, "cpu", "bf16-mixed")
        assert len(epoch_seconds(lines_of(capsys))["train"]) == 1

    def test_growth_trains_on_copies(
        self, tmp_path: Path, small_drawn: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        program, sizes = peer("growth"), []
        load = program.Copies.load

        def noting(self: Any, part: str) -> Any:
            split = load(self, part)
            sizes.append(len(split.labels))
            return split

        monkeypatch.setattr(program.Copies, "load", noting)
        program.main(3, 50, "drawn", "", str(tmp_path), 2)
        assert len(epoch_seconds(lines_of(capsys))["epoch"]) == 1
        assert sizes == [3 * 600]

    def test_commands_name_programs_that_exist(self, tmp_path: Path) -> None:
        commands = peers("python-with-keras", str(tmp_path), "fashion_mnist", tmp_path, "cpu")
        assert all(Path(command[1]).is_file() for command in commands.values())
        assert commands["keras"][0] == "python-with-keras"
        assert {name for _, _, *sides in RATIOS for name in sides} == set(commands)
        assert not [name for name in peers(None, str(tmp_path), "drawn", tmp_path, "cpu") if "keras" in name]


def test_trainer_and_bare_loop_take_turns(
    tmp_path: Path, small_drawn: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(PROGRAMS)
    program = peer("trainer_cost")
    validations = []
    monkeypatch.setattr(program.BareLoop, "validate", lambda self: validations.append(self))
    monkeypatch.setattr(program, "STEPS_IN_TURN", 2)

    def in_process(command: list[str]) -> Observation:
        *_, name, dataset, data_dir, log_dir, epochs, accelerator, precision = command
        assert Path(name) == PROGRAMS / "trainer_cost.py"
        program.main(dataset, data_dir, log_dir, int(epochs), accelerator, precision)
        return lines_of(capsys)

    monkeypatch.setattr(benchmark, "observe", in_process)
    monkeypatch.setattr(benchmark, "PRECISIONS", ("bf16-mixed",))
    [measured] = measure_trainer("drawn", "", tmp_path, 2, "cpu").values()
    assert len(measured) == 2  # the first of three is left out
    assert all(pair["bare"] > 0 and pair["trainer"] > 0 for pair in measured)
    assert len(validations) == 3


class Exited(BaseException):
    """In place of os._exit, which would end the tests."""


def test_startup_runs_from_help_to_the_test_loop(
    program: Program, tmp_path: Path, small_drawn: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, on the small drawn set."""
    startup, seen = peer("startup"), []

    def leave(status: int) -> None:
        raise Exited

    def in_process(command: list[str]) -> Observation:
        script, *arguments = command[1:]
        seen.append(arguments[0])
        if Path(script).name == "train.py":
            status, output = program(train, *arguments)
            assert status == 0, output
        elif arguments[0] == "step":
            with pytest.raises(Exited):
                startup.main(*arguments)
        else:
            startup.main(*arguments)
        return Observation([], 1.0, 2.0)

    monkeypatch.setattr(startup.os, "_exit", leave)
    monkeypatch.setattr(benchmark, "observe", in_process)
    measured = measure_startup("drawn", "", tmp_path, 2)
    assert measured["test"] == {"seconds": [1.0, 1.0], "peak_mb": [2.0, 2.0]}
    assert seen == ["--dataset", *["--help", "imports", "data", "step", "test"] * 2]
    assert (tmp_path / "version_0" / "metrics.json").is_file()
    assert not list((tmp_path / "step").rglob("*.ckpt"))  # it exited after its first step


def round_of(**epochs: float) -> dict[str, Any]:
    return {name: {"epoch": [seconds], "train": [], "peak_mb": [1.0]} for name, seconds in epochs.items()}


def test_records_become_tables(tmp_path: Path) -> None:
    seconds = ((10.0, 5.0), (10.0, 9.0), (20.0, 6.0))  # the ratio of the medians is not the median of the ratios
    rounds = [round_of(**{"keras": keras, "ours 32-true": ours}) for keras, ours in seconds]
    record = write_record(tmp_path / "speed.json", {"rounds": rounds}, "drawn", "cpu", None)
    assert record == json.loads((tmp_path / "speed.json").read_text())
    table = speed_table(record)
    assert "| **this project**, 32 bits | 6.00 (5.00 to 9.00) | 9,000 | 1 |" in table
    assert "| this project in 32 bits / Keras | 0.50 |" in table
    assert "idiomatic" not in table
    assert "DRAWN STAND-IN" in table
    pairs = {"bf16-mixed": [{"bare": 2.0, "trainer": seconds} for seconds in (2.0, 2.5, 2.2)]}
    record = write_record(tmp_path / "t.json", {"pairs": pairs}, "drawn", "cpu", None)
    assert "| bf16-mixed | 2.00 | 2.20 | 1.10 (1.00 to 1.25) | 3 |" in trainer_table(record)


def test_benchmark_writes_the_record_of_a_part(
    program: Program, tmp_path: Path, small_drawn: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"copies": 2, "batch_size": 64, "seconds": 5.25, "peak_mb": 1234.5}]
    monkeypatch.setattr(benchmark, "measure_growth", lambda *_: rows)
    arguments = ("--part", "growth", "--dataset", "drawn", "--output", tmp_path)
    status, output = program(benchmark.benchmark, *arguments)
    assert status == 0
    record = json.loads((tmp_path / "growth.json").read_text())
    assert record["growth"] == rows
    assert output == f"{growth_table(record)}\n"
    assert "| 2 x | 64 | 5.25 | 1,234 |" in output


def test_origin_outside_of_a_repository() -> None:
    record = {"device": "CPU", "versions": {}, "dataset": "Fashion-MNIST", "git": {"commit": None, "dirty": None}}
    assert origin(record).endswith("commit unknown")


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
@pytest.mark.parametrize(
    ("arguments", "installed"),
    [("--part scaling", False), ("--rounds 1 --part=trainer", False), ("", True), ("--part speed", True)],
)
def test_make_bench_installs_keras_only_to_time_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, installed: bool
) -> None:
    for name in ("MAKELEVEL", "MAKEFLAGS", "MFLAGS"):
        monkeypatch.delenv(name, raising=False)
    command = ["make", "-n", "bench", f"BENCH_VENV={tmp_path}", f"ARGS={arguments}"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert ("benchmarks/requirements.lock" in printed) == installed
