"""What a training shows: the progress bar, a line per epoch, and the summary at the end."""

import io
import logging
import os
import pty
import re
import struct
import sys
import termios
from fcntl import ioctl
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from conftest import SMALL, Program, small_run
from several import start_rank
from tqdm import tqdm

from fmnist_lightning.cli.shell import command
from fmnist_lightning.cli.shell import program as program_name
from fmnist_lightning.report.console import epoch_line, summary_text
from fmnist_lightning.runs.options import TrainOptions
from fmnist_lightning.training import callbacks
from fmnist_lightning.training.callbacks import NetSummary, ProgressBar, has_bar
from fmnist_lightning.training.module import Classifier
from fmnist_lightning.training.train import train

pytestmark = pytest.mark.usefixtures("small_drawn")
ROW = {"train/loss": 0.34912, "train/accuracy": 0.9098, "val/loss": 0.3135, "val/accuracy": 0.9171, "lr": 0.001}


def test_epoch_line_shows_the_row() -> None:
    row = {"epoch": 3, **ROW, "images_per_second": 12_350.4}
    line = "epoch  3/40  train 0.349 90.98%  val 0.314 91.71%  lr 0.001  12k img/s"
    assert [epoch_line(row, 40, best) for best in (False, True)] == [line, line + " *"]


PERFECT = {**ROW, "train/accuracy": 1.0, "val/accuracy": 1.0, "lr": 1.234e-5, "epoch": 100}


@pytest.mark.parametrize(
    ("speed", "shown"), [(950, "950"), (999.6, "1k"), (999_400, "999k"), (999_600, "1.0M"), (1.23e6, "1.2M")]
)
def test_epoch_line_fits_into_80_columns(speed: float, shown: str) -> None:
    line = epoch_line({**PERFECT, "images_per_second": speed}, 100, True)
    assert line.endswith(f"  lr 1.23e-05  {shown} img/s *")
    assert len(line) <= 80


def test_epoch_line_leaves_out_the_speed_if_it_is_full() -> None:
    line = epoch_line({**PERFECT, "train/loss": 10.0, "images_per_second": 1.23e6}, 100, True)
    assert line.endswith("  lr 1.23e-05 *")


def test_epoch_line_leaves_out_what_is_missing() -> None:
    assert epoch_line({"epoch": 1, "lr": 0.1}, 2, False) == "epoch 1/2  lr 0.1"


def shown_in_terminal(*arguments: object) -> list[str]:
    """What a training writes to a terminal of 80 columns, split where the cursor goes back or a line ends."""
    main, side = pty.openpty()
    ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = start_rank(Path(os.ttyname(side)), train, arguments)
    written = b""
    while process.is_alive():
        os.set_blocking(main, False)
        try:
            written += os.read(main, 65536)
        except BlockingIOError:
            process.join(0.05)
    os.close(side)
    os.close(main)
    assert process.exitcode == 0, written.decode()
    return re.split(r"[\r\n]+", written.decode())


def test_terminal_shows_live_metrics_and_keeps_a_line_per_epoch(tmp_path: Path) -> None:
    shown = shown_in_terminal(*SMALL, "--batch_size", 5, "--log_dir", tmp_path, "--logger", "csv")
    lines = [text for text in shown if text.startswith("epoch ")]
    assert [line[:17] for line in lines] == ["epoch 1/2  train ", "epoch 2/2  train "]
    assert lines[0].endswith("*")
    bars = [text for text in shown if text.startswith("DRAWN STAND-IN, not Fashion-MNIST 1/2:")]
    live = [text for text in bars if re.search(r"loss \d\.\d{3}, acc \d+\.\d%", text)]
    assert len(live) >= 2
    assert shown.index(live[0]) < shown.index(lines[0])
    start = shown.index(f"run folder: {tmp_path / 'version_0'}") + 1
    assert max(map(len, shown[start : shown.index(lines[1])])) <= 80
    assert not [text for text in shown if "\x1b[A" in text]  # a bar in a second line, which flickers


def test_lines_stand_alone_without_a_terminal(program: Program, tmp_path: Path) -> None:
    run, output = small_run(program, tmp_path)
    assert [line[:11] for line in output.splitlines() if line.startswith("epoch ")] == ["epoch 1/2  ", "epoch 2/2  "]
    assert "%|" not in output
    summary = output[output.index("DRAWN STAND-IN, not Fashion-MNIST: 2 epochs in ") :]
    assert f"checkpoint  {run / 'checkpoints' / 'best.ckpt'}, tested, of epoch" in summary
    assert f"report      {run / 'report.html'}" in summary
    assert re.search(r"best epoch  [12], with val/accuracy \d\d\.\d\d%", summary)
    assert summary.splitlines()[-3:] == [
        f"  {program_name('tensorboard', 'tensorboard.main')} --logdir {tmp_path}",
        f"  {command('predict')} PICTURE --weights {run}",
        f"  {command('export')} --run {run}",
    ]


@pytest.mark.parametrize(
    ("ckpt", "steps", "where"), [("last", 7, "step 7"), ("last", 5, "epoch 1"), ("best", 7, "epoch 1")]
)
def test_summary_says_what_was_tested(tmp_path: Path, ckpt: str, steps: int, where: str) -> None:
    """A last checkpoint within an epoch is of none."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / f"{ckpt}.ckpt").touch()
    options = TrainOptions(dataset="drawn", ckpt=ckpt, max_steps=steps)
    text = summary_text(tmp_path, options, "drawn", [{"epoch": 1, "step": 5}], steps, 1.0, {"checkpoint_epoch": 1})
    assert f"{ckpt}.ckpt, tested, of {where}\n" in text


def test_summary_without_a_test_names_the_command_that_tests(program: Program, tmp_path: Path) -> None:
    run, output = small_run(program, tmp_path, "--max_steps", 3, "--test", "false")
    assert "0 epochs, and a part of the next up to --max_steps 3," in output
    assert f"checkpoint  {run / 'checkpoints' / 'last.ckpt'}\n" in output
    assert f"  {command('test')} --run {run} --ckpt last\n" in output


def test_bar_of_a_resumed_epoch_begins_at_its_place(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And ends where --max_steps does; 11 steps, each of one batch, or 6 of two."""
    stages: list[tuple[str, int, int]] = []
    for module in ("callbacks", "train"):
        monkeypatch.setattr(f"fmnist_lightning.training.{module}.has_bar", lambda: True)
    monkeypatch.setattr(ProgressBar, "begin", lambda _, stage, total, done=0: stages.append((stage, total, done)))
    monkeypatch.setattr(ProgressBar, "is_due", lambda *_: False)
    options = ("--accumulate_grad_batches", 2, "--test", "false")
    run, _ = small_run(program, tmp_path, *options, "--max_steps", 2)
    assert stages == [(" 1/2", 4, 0)]
    stages.clear()
    assert program(train, "--resume", run, "--max_steps", 7)[0] == 0
    assert stages == [(" 1/2", 11, 4), (" 1/2, validation", 2, 0), (" 2/2", 2, 0)]
    stages.clear()
    assert program(train, "--resume", run, "--max_steps", 12)[0] == 0
    assert stages == [(" 2/2", 11, 2), (" 2/2, validation", 2, 0)]


def test_bar_counts_the_time_left_from_where_it_began() -> None:
    bar = ProgressBar()
    bar._trainer = SimpleNamespace(datamodule=SimpleNamespace(source=SimpleNamespace(title="Set")))
    bar.train_progress_bar = tqdm(file=io.StringIO(), bar_format=bar.BAR_FORMAT)
    bar.begin(" 1/2", 11, 4)
    assert bar.is_due(5)
    shown = bar.train_progress_bar.format_dict | {"elapsed": 3.0}  # for one batch
    assert tqdm.format_meter(**shown | {"ncols": 40}).startswith("Set 1/2:  45% |")
    assert tqdm.format_meter(**shown).endswith("| 00:18")


def test_summary_shows_the_model_alone_in_80_columns(caplog: pytest.LogCaptureFixture) -> None:
    module = Classifier("compact")
    with caplog.at_level(logging.INFO, "lightning.pytorch"):
        NetSummary().on_fit_start(L.Trainer(logger=False), module)
    shown = caplog.messages[-1].splitlines()
    assert [line.split(" | ")[1].strip() for line in shown if " | " in line] == ["Name", "net"]
    assert max(map(len, shown)) <= 80


def test_bar_waits_for_the_gpu_only_a_few_times_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor that holds no value plays the GPU: reading it fails."""
    now = [0.0]
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(monotonic=lambda: now[0]))
    bar: Any = ProgressBar()
    bar.train_progress_bar, bar.next_look = tqdm(total=9, file=io.StringIO()), 0.15
    outputs = SimpleNamespace(
        labels=[torch.zeros(2, dtype=torch.int64, device="meta")], logits=[torch.zeros(2, 3, device="meta")]
    )
    module: Any = SimpleNamespace(train_metrics=outputs)
    for now[0] in (0.05, 0.1):
        bar.on_train_batch_end(None, module, None, None, 0)
    now[0] = 0.15
    with pytest.raises(RuntimeError, match="meta"):
        bar.on_train_batch_end(None, module, None, None, 0)


def test_bar_is_shown_in_a_notebook_with_widgets(monkeypatch: pytest.MonkeyPatch) -> None:
    shell = SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "ipywidgets", SimpleNamespace())
    assert has_bar()
    monkeypatch.delitem(sys.modules, "ipywidgets")
    assert not has_bar()
