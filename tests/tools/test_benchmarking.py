"""The benchmark times whole programs by their lines; its peers do what they say; its tables are its records'."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import Program

from fmnist_lightning.data import datamodule
from fmnist_lightning.data.idx import read_tensor
from fmnist_lightning.errors import UserError
from tools import benchmarking
from tools.benchmarking import (
    PROGRAMS,
    SCRIPTS,
    Observation,
    figures,
    idx_bytes,
    measure_startup,
    measure_trainer,
    observe,
    peers,
    write_layout,
    write_record,
)
from tools.results_tables import marks
from tools.speed_tables import (
    RATIOS,
    growth_table,
    ratio,
    read_record,
    speed_table,
    startup_table,
    trainer_table,
)

ROOT = Path(__file__).parents[2]


def peer(name: str, folder: Path = PROGRAMS) -> ModuleType:
    """A program of benchmarks/ or scripts/, which are no packages."""
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


class TestObserve:
    def test_it_notes_when_each_line_came(self) -> None:
        code = "import time; print('a', flush=True); time.sleep(0.5); print('b', flush=True); time.sleep(0.2)"
        seen = observe(python(code))
        (first, a), (second, b) = seen.lines
        assert (a, b) == ("a\n", "b\n")
        assert second - first > 0.3  # a line may be read late
        assert seen.seconds >= second + 0.2

    def test_it_sees_the_peak_of_memory(self) -> None:
        small, large = (observe(python(f"import time; x = b'x' * {mb << 20}; time.sleep(1)")) for mb in (1, 201))
        assert large.peak_mb - small.peak_mb == pytest.approx(200, abs=20)

    def test_a_program_that_fails_is_an_error_with_its_last_words(self) -> None:
        with pytest.raises(UserError, match="status 1: ValueError: no data"):
            observe(python("raise ValueError('no data')"))


def test_the_first_epoch_warms_up_and_is_not_counted() -> None:
    lines = [(1.0, "begin"), (9.0, "epoch 1/3"), (11.0, "x epoch 2/3 train_seconds 1.5"), (14.0, "epoch 3/3")]
    assert figures(Observation(lines, 15.0, 7.0)) == {"epoch": [2.0, 3.0], "train": [1.5], "peak_mb": [7.0]}
    with pytest.raises(ValueError, match="at least two"):
        figures(Observation(lines[:2], 15.0, 7.0))


def test_all_programs_read_the_same_files(tmp_path: Path, small_drawn: None) -> None:
    """As IDX files where torchvision's own reader finds them, and the Keras program's reader too."""
    from torchvision.datasets import FashionMNIST

    write_layout(tmp_path, "drawn", "")
    drawn = datamodule.load_drawn(train=True)
    theirs = FashionMNIST(tmp_path, train=True)
    assert torch.equal(theirs.data, drawn.images.squeeze(1))
    assert torch.equal(theirs.targets, drawn.labels)
    read = peer("keras_tensorflow").read_idx(tmp_path / "FashionMNIST" / "raw" / "train-images-idx3-ubyte")
    assert torch.equal(torch.tensor(read), theirs.data)


@pytest.mark.parametrize("shape", [(7,), (2, 3, 4)])
def test_idx_bytes_are_what_read_tensor_reads(shape: tuple[int, ...]) -> None:
    values = torch.randint(0, 256, shape, dtype=torch.uint8)
    assert torch.equal(read_tensor(idx_bytes(values), values.dim()), values)


class TestPeers:
    """Each prints a line an epoch; what it trains has the original's parameters."""

    def lines(self, capsys: pytest.CaptureFixture[str]) -> list[tuple[float, str]]:
        return [(float(number), line) for number, line in enumerate(capsys.readouterr().out.splitlines())]

    def test_the_keras_program(self, tmp_path: Path, small_drawn: None, capsys: pytest.CaptureFixture[str]) -> None:
        write_layout(tmp_path, "drawn", "")
        peer("keras_tensorflow").main(tmp_path, 2)
        assert figures(Observation(self.lines(capsys), 9.0, 1.0))["epoch"] == [1.0]

    @pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:The number of training batches")
    def test_tutorial_lightning(self, tmp_path: Path, small_drawn: None, capsys: pytest.CaptureFixture[str]) -> None:
        write_layout(tmp_path, "drawn", "")
        program = peer("idiomatic_lightning")
        program.main(str(tmp_path), 2, "cpu")
        assert len(figures(Observation(self.lines(capsys), 9.0, 1.0))["epoch"]) == 1
        assert sum(parameter.numel() for parameter in program.LitClassifier(1).parameters()) == 225034

    @pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
    def test_the_bare_loop(self, precision: str, small_drawn: None, capsys: pytest.CaptureFixture[str]) -> None:
        peer("bare_loop").main("drawn", 8, "cpu", precision)
        lines = self.lines(capsys)
        assert len(figures(Observation(lines, 9.0, 1.0))["train"]) == 7
        right = [int(line.split()[3]) for _, line in lines]
        assert right[-1] > right[0]  # it learns: of 60 images

    @pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
    def test_the_floor(
        self, precision: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        program = peer("floor")
        assert program.STEPS == 422
        monkeypatch.setattr(program, "STEPS", 2)
        program.main(2, "cpu", precision)
        assert len(figures(Observation(self.lines(capsys), 9.0, 1.0))["train"]) == 1

    def test_growth_trains_on_so_many_copies(
        self, tmp_path: Path, small_drawn: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(datamodule, "FashionMNISTDataModule", datamodule.FashionMNISTDataModule)  # put back later
        peer("growth").main(3, 50, "drawn", "", str(tmp_path), 2)
        assert len(figures(Observation(self.lines(capsys), 9.0, 1.0))["epoch"]) == 1
        copies = datamodule.FashionMNISTDataModule("drawn")
        copies.setup("fit")
        assert len(copies.splits["train"].labels) == 3 * 540

    def test_their_commands_name_programs_that_exist(self, tmp_path: Path) -> None:
        commands = peers("python-with-keras", str(tmp_path), "fashion_mnist", tmp_path, "cpu")
        assert all(Path(command[1]).is_file() for command in commands.values())
        assert commands["keras"][0] == "python-with-keras"
        assert {name for _, *sides in RATIOS for name, _ in sides} == set(commands)

    def test_keras_is_left_out_where_it_is_not(self, tmp_path: Path) -> None:
        assert not [name for name in peers(None, str(tmp_path), "drawn", tmp_path, "cpu") if "keras" in name]


def test_the_trainer_and_the_bare_loop_take_turns(
    tmp_path: Path, small_drawn: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(PROGRAMS)
    program = peer("trainer_cost")
    turns = []
    monkeypatch.setattr(program.BareLoop, "validate", lambda self: turns.append("validation"))
    monkeypatch.setattr(program, "STEPS_IN_TURN", 2)

    def in_process(command: list[str]) -> Observation:
        *_, name, dataset, data_dir, log_dir, epochs, accelerator, precision = command
        assert Path(name) == PROGRAMS / "trainer_cost.py"
        program.main(dataset, data_dir, log_dir, int(epochs), accelerator, precision)
        return Observation([(0.0, line) for line in capsys.readouterr().out.splitlines()], 0.0, 0.0)

    monkeypatch.setattr(benchmarking, "observe", in_process)
    pairs = measure_trainer("drawn", "", tmp_path, 2, "cpu")
    assert list(pairs) == ["32-true", "bf16-mixed"]
    for measured in pairs.values():
        assert len(measured) == 2  # the first of three is left out
        assert all(pair["bare"] > 0 and pair["trainer"] > 0 for pair in measured)
    assert len(turns) == 6


def test_startup_is_seen_from_help_to_the_test_loop(tmp_path: Path, trained: Path) -> None:
    """Whole processes; the data is the whole drawn set."""
    measured = measure_startup("drawn", "", trained.parent, 1)
    seconds = {name: values["seconds"][0] for name, values in measured.items()}
    # Each with a wide margin; a first step comes so soon behind the imports that noise may turn their order.
    assert 0 < seconds["help"] < min(seconds["imports"], seconds["step"], seconds["test"])
    assert measured["imports"]["peak_mb"][0] < measured["data"]["peak_mb"][0]
    assert (trained / "metrics.json").is_file()
    assert not list((trained.parent / "step").rglob("*.ckpt"))  # it ended behind its first step


def round_of(**epochs: float) -> dict[str, Any]:
    return {name: {"epoch": [seconds], "train": [], "peak_mb": [1.0]} for name, seconds in epochs.items()}


def test_a_ratio_is_the_median_over_rounds() -> None:
    rounds = [round_of(a=1.0, b=2.0), round_of(a=3.0, b=2.0), round_of(a=2.0, b=2.0)]
    assert ratio(rounds, ("a", "epoch"), ("b", "epoch")) == 1.0
    assert ratio(rounds[:1], ("a", "epoch"), ("b", "epoch")) == 0.5
    assert ratio(rounds, ("a", "epoch"), ("c", "epoch")) is None


def test_a_record_becomes_tables(tmp_path: Path) -> None:
    rounds = [round_of(**{"keras": 12.0, "ours 32-true": seconds}) for seconds in (5.0, 9.0, 6.0)]
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
    growth = {"growth": [{"copies": 2, "batch_size": 64, "seconds": 5.25, "peak_mb": 1234.5}], "precision": "32-true"}
    assert "| 2 x | 64 | 5.25 | 1,234 |" in growth_table(
        write_record(tmp_path / "g.json", growth, "drawn", "cpu", None)
    )


def test_the_tables_of_speed_are_made_from_the_records() -> None:
    document = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    tables = {"speed": speed_table, "trainer": trainer_table, "startup": startup_table, "growth": growth_table}
    for name, table in tables.items():
        record = read_record(ROOT / "benchmarks" / f"{name}.json")
        assert record["dataset"] == "Fashion-MNIST"
        begin, end = marks(name)
        assert f"{begin}\n{table(record)}\n{end}" in document


def test_a_missing_record_is_an_error_with_its_cure(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="make bench"):
        read_record(tmp_path / "speed.json")


def test_the_scripts_options_reach_the_measurement(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr("tools.benchmarking.record_growth", lambda *arguments: asked.extend(arguments))
    monkeypatch.setattr("tools.speed_tables.growth_table", lambda record: "a table")
    benchmark = peer("benchmark", SCRIPTS).benchmark
    status, output = program(benchmark, "--part", "growth", "--dataset", "drawn", "--output", tmp_path)
    assert (status, output) == (0, "a table\n")
    assert asked[:2] == [tmp_path / "growth.json", "drawn"]
