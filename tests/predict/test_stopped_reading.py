"""A signal ends predict.py while it waits for somebody who writes, and what it waits for is read in its turn."""

import io
import os
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_prediction import script
from test_sources import assert_reads, folder, png

from fmnist_lightning.predict import inputs as sources
from fmnist_lightning.predict.inputs import Fault, Picture, expand, expand_all, read_all

__all__ = ["folder"]  # a fixture

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and named pipes")


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("name", ["-", "pipe"])
def test_one_signal_ends_a_program_that_waits_for_its_input(
    folder: Path, name: str, signum: signal.Signals, status: int
) -> None:
    os.mkfifo("pipe")
    Path("a.png").write_bytes(png(0))
    command = script("a.png", name, "--format", "csv")
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.stdout.readline().startswith(b"file,")  # the header, before anything is read
        time.sleep(1)
        process.send_signal(signum)
        assert process.wait(20) == status
        assert process.stderr.read().decode().strip() == f"stopped by {signum.name}"
    finally:
        process.kill()
        process.communicate()


def test_standard_input_keeps_its_place_among_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("a.png").write_bytes(png(0))
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(png(1))))
    assert_reads(read_all(["a.png", "-", "a.png"]), [("a.png", 0), ("-", 1), ("a.png", 0)])


def test_standard_input_named_twice_is_read_once_and_told_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(png(1))))
    first, second = read_all(expand_all(["-", "-"]))
    assert_reads([first], [("-", 1)])
    assert second == Fault("-", "was read already: standard input can be read once, so name it once")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that were opened; each gives a picture at once."""
    names: list[str] = []
    monkeypatch.setattr(sources, "open_searchable", lambda name: names.append(name) or io.BytesIO(png(0)))
    return names


def test_pipes_come_into_memory_one_at_a_time(folder: Path, opened: list[str]) -> None:
    pipes = ["one", "two", "three"]
    for name in pipes:
        os.mkfifo(name)
    for number, result in enumerate(read_all(pipes), 1):
        assert isinstance(result, Picture)
        assert opened == pipes[:number]


def test_a_pattern_leaves_pipes_out_and_says_so_where_nothing_is_left(folder: Path) -> None:
    Path("a.png").write_bytes(png(0))
    os.mkfifo("b.png")
    assert list(expand("*.png")) == ["a.png"]
    [fault] = expand("b*")
    assert isinstance(fault, Fault)
    assert (fault.name, fault.reason.partition(",")[0]) == ("b*", "matches only pipes or devices")
    assert list(expand("b.png")) == ["b.png"]  # named, so it is read
