"""The benchmark measures whole epochs, and its table says what was measured."""

import json
from pathlib import Path

from fmnist_lightning.benchmarking import measure, speed_table, write_record
from fmnist_lightning.drawn import load_drawn


def test_a_measurement_has_a_figure_for_each_repeat_and_becomes_a_record(tmp_path: Path, small_drawn: None) -> None:
    split = load_drawn(train=False)
    figures = measure(split, batch_size=50, accelerator="cpu", repeats=2)
    assert {name: len(values) for name, values in figures.items()} == {"bare loop": 2, "Trainer": 2}
    assert all(value > 0 for values in figures.values() for value in values)
    write_record(tmp_path / "speed.json", figures, split, 50)
    record = json.loads((tmp_path / "speed.json").read_text())
    assert record["images_per_second"] == figures
    assert record["images"] == 200
    assert set(record["git"]) == {"commit", "dirty"}


def test_the_table_has_medians_and_the_median_of_the_ratios_of_pairs() -> None:
    lines = speed_table({"bare loop": [100.0, 300.0, 200.0], "Trainer": [50.0, 200.0, 160.0]}).splitlines()
    assert lines[1].split()[:4] == ["bare", "loop", "200", "270.00"]
    assert lines[2].split()[:3] == ["Trainer", "160", "337.50"]
    assert lines[3].endswith(": 1.500")  # of 2.0, 1.5 and 1.25
