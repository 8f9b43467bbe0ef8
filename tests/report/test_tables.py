"""Tables of a test and its run."""

import numpy as np

from fmnist_lightning.data.sets.fashion_mnist import CLASSES, FASHION_MNIST
from fmnist_lightning.metrics import METRIC_NAMES
from fmnist_lightning.report.tables import (
    Table,
    as_markdown,
    as_text,
    duration,
    facts_table,
    per_class_table,
    result_table,
)


def test_as_markdown_aligns_and_escapes() -> None:
    table = Table("caption", ("class", "a|b"), [("Bag", "1"), ("Ankle boot", "20")])
    assert as_markdown(table).splitlines() == [
        "| class      | a&#124;b |",
        "| ---------- | -------: |",
        "| Bag        |        1 |",
        "| Ankle boot |       20 |",
    ]


def test_as_text_aligns_wide_letters_and_numbers() -> None:
    table = Table("caption", ("class", "recall", "text"), [("鞋", "9.50", "-"), ("boot", "100.00", "1 to 2")])
    assert as_text(table).splitlines() == [
        "class  recall  text",
        "-----  ------  ------",
        "鞋       9.50  -",
        "boot   100.00  1 to 2",
    ]


def test_as_markdown_prints_no_codes_and_line_breaks() -> None:
    assert as_markdown(Table("caption", ("a\nb",), [("\x1b[31m",)])).splitlines()[::2] == ["| a b   |", "|  [31m |"]


def test_result_table_has_what_is_published() -> None:
    metrics = dict.fromkeys(METRIC_NAMES, 0.5) | {"n": 100, "split": "test", "dataset": "fashion_mnist"}
    assert result_table(metrics).header == ("metric", "published", "this run", "95% interval")
    plain = FASHION_MNIST.as_plain() | {"published": {"f1": 70}}
    assert [row[1] for row in result_table(metrics | {"data": plain}).rows] == ["", "", "", "70.00", ""]
    none = result_table(metrics | {"data": plain | {"published": {}}})
    assert none.header == ("metric", "this run", "95% interval")


def test_per_class_table_leaves_undefined_values_out() -> None:
    probs = np.full((2, 10), 0.1, np.float32)
    rows = {row[0]: row[1:] for row in per_class_table(probs, np.array([0, 1]), CLASSES).rows}
    assert rows["Bag"] == ("-", "-", "-", "-", "-", "0")
    assert rows["T-shirt/top"] == ("50.00", "100.00", "66.67", "50.00", "50.00", "1")


def test_facts_table_flattens_nested_values() -> None:
    table = facts_table({"device": "a machine", "git": {"commit": "abc", "dirty": None}}, "caption")
    assert table.rows == [("device", "a machine"), ("git commit", "abc"), ("git dirty", "null")]


def test_duration_has_two_units_at_most() -> None:
    shown = [duration(seconds) for seconds in (0.2, 59.4, 59.6, 1476, 3599.6, 4320, 90_000)]
    assert shown == ["1 s", "59 s", "1 min 0 s", "24 min 36 s", "1 h 0 min", "1 h 12 min", "25 h 0 min"]
