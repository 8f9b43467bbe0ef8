"""predict.py on many files: memory that does not grow with them, and a progress bar that is not in the way."""

import io
import re
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
from conftest import Program
from test_prediction import CPU, GARMENTS, IDX, files, shop

from fmnist_lightning.predict import inputs as sources
from fmnist_lightning.predict.predict import FEW, predict, progress_bar

__all__ = ["shop"]  # a fixture, which each test here uses


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures were alive whenever one of 2,000 was read, which needs no file."""
    living: weakref.WeakValueDictionary[int, np.ndarray] = weakref.WeakValueDictionary()
    counts: list[int] = []
    counting = threading.Lock()  # or two of the threads that read take one number, and a picture is not counted

    def read_picture(*_: object) -> np.ndarray:
        with counting:
            image = living[len(counts)] = GARMENTS[0].copy()
            counts.append(len(living))
        return image

    monkeypatch.setattr(sources, "open_searchable", lambda name: io.BytesIO(b"picture"))
    monkeypatch.setattr(sources, "read_picture", read_picture)
    monkeypatch.setattr(sources, "expand_all", lambda _: (f"{number}.png" for number in range(2000)))
    return counts


def test_memory_is_that_of_two_batches_however_many_pictures(program: Program, alive: list[int]) -> None:
    assert files(program, "many", "--batch_size", 20) == [f"{number}.png" for number in range(2000)]
    assert len(alive) == 2000
    assert max(alive) <= 2 * 20 + 5 * 4 + 2  # and what four threads are ahead


def test_the_count_of_living_pictures_would_tell(alive: list[int]) -> None:
    kept = list(sources.read_all(sources.expand_all([])))
    assert len(kept) == max(alive) == 2000


def set_terminals(monkeypatch: pytest.MonkeyPatch, messages: bool, rows: bool) -> None:
    """Say whether messages and rows go to a terminal."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: messages)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: rows)


@pytest.mark.parametrize(
    ("messages", "rows", "count", "shown"),
    [(True, False, FEW + 1, True), (True, False, FEW, False), (True, True, FEW + 1, False), (False, False, 99, False)],
)
def test_many_files_have_a_progress_bar_where_it_is_not_in_the_way(
    monkeypatch: pytest.MonkeyPatch, messages: bool, rows: bool, count: int, shown: bool
) -> None:
    set_terminals(monkeypatch, messages, rows)
    with progress_bar(["b.png"] * count) as bar:
        assert bar.disable is not shown


def test_the_bar_counts_every_file_and_leaves_the_rows_alone(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    set_terminals(monkeypatch, messages=True, rows=False)
    Path("x-images-idx3-ubyte").write_bytes(IDX)
    status, output = program(predict, *["b.png"] * 29, "nowhere.png", *CPU)
    assert status == 1
    assert all(line.endswith("  b.png") for line in output.split("\n")[1:30])
    assert "30/30" in output
    assert re.search(r"[\r\n]error: nowhere\.png: does not exist\n", output)
    assert "10 pictures" in program(predict, "x-images-idx3-ubyte", *CPU)[1]  # whose number is not known beforehand
