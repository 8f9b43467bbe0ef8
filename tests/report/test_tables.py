"""Tables of a test and its run."""

from typing import Any

import numpy as np
import pytest

from fmnist_lightning.report.tables import Table, as_markdown, environment_table, per_class_table, result_table

RESULT = {
    "dataset": "fashion_mnist",
    "split": "test",
    "n": 200,
    **dict.fromkeys(("precision", "recall", "f1", "auroc"), 0.9),
    "accuracy": 0.9,
}
PROBS = np.full((2, 10), 0.1, np.float32)


def test_tables_are_markdown_too() -> None:
    table = Table("caption", ("class", "a|b"), [("Bag", "1"), ("Coat", "2|3")])
    assert as_markdown(table) == "| class | a&#124;b |\n| --- | --- |\n| Bag | 1 |\n| Coat | 2&#124;3 |"


def test_a_class_without_an_image_has_no_figures() -> None:
    rows = {row[0]: row[1:] for row in per_class_table(PROBS, np.array([0, 1])).rows}
    assert rows["Bag"] == ("-", "-", "-", "-", "0")
    assert rows["T-shirt/top"] == ("50.00", "100.00", "66.67", "50.00", "1")


@pytest.mark.parametrize(
    ("git", "told"),
    [
        ({"commit": "abc", "dirty": True}, "abc, with uncommitted changes"),
        ({"commit": "abc", "dirty": False}, "abc, clean"),
        ({"commit": None, "dirty": None}, "not known, state not known"),
    ],
)
def test_the_environment_tells_the_state_of_the_code(git: dict[str, Any], told: str) -> None:
    assert environment_table({"device": "a machine", "versions": {"torch": "2.15.0"}, "git": git}).rows[-1] == (
        "git commit",
        told,
    )


def test_the_stand_ins_result_table_has_no_column_of_the_original() -> None:
    assert result_table(RESULT).header == ("metric", "original", "this run", "95 % interval")
    drawn = result_table(RESULT | {"dataset": "drawn"})
    assert drawn.header == ("metric", "this run", "95 % interval")
    assert drawn.rows[0] == ("accuracy", "90.00", "85.06 to 93.43")
