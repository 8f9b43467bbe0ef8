"""A data set's description holds only what nets, terminals and records can use."""

from typing import Any

import pytest

from fmnist_lightning.data.sets.drawn import load_drawn
from fmnist_lightning.data.source import MAX_CLASSES, DataInfo, DataSource, Split, check_split

PLAIN: dict[str, Any] = {"name": "own", "title": "Own", "classes": ["a", "b"], "image_shape": [1, 28, 28]}


def test_data_info_converts_lists_and_comes_back() -> None:
    info = DataInfo(**PLAIN, published={"accuracy": 91.4})
    assert (info.classes, info.image_shape) == (("a", "b"), (1, 28, 28))
    assert DataInfo.from_plain(info.as_plain()) == info
    images, labels = load_drawn("test")
    check_split(Split(images, labels % 2), DataSource(**PLAIN, load=load_drawn))  # compares with the shape


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        ({"title": "my\u00a0data"}, ValueError, r"my\\xa0data"),
        ({"name": 1}, ValueError, "1"),
        ({"classes": "ab"}, TypeError, "'ab'"),
        ({"classes": ["a", 1]}, ValueError, "class 1"),
        ({"classes": []}, ValueError, "0 classes"),
        ({"classes": ["a"] * (MAX_CLASSES + 1)}, ValueError, "100,001"),
        ({"image_shape": 28}, TypeError, "int"),
        ({"image_shape": [28, 28]}, ValueError, r"\(28, 28\)"),
        ({"image_shape": [1, 28, 28.0]}, ValueError, r"28\.0"),
        ({"image_shape": [1, 0, 28]}, ValueError, r"\(1, 0, 28\)"),
        ({"image_shape": [1, 40_000, 2]}, ValueError, "40000"),
        ({"image_shape": [4, 4000, 4000]}, ValueError, "4000"),
        ({"framing": "round"}, ValueError, "round"),
        ({"stand_in": 1}, ValueError, "1"),
        ({"published": [91.4]}, TypeError, r"91\.4"),
        ({"published": {"accuracy": "91"}}, ValueError, "'91'"),
    ],
)
def test_data_info_refuses_what_has_no_use(change: dict[str, Any], error: type[Exception], word: str) -> None:
    for make in (DataInfo.from_plain, lambda values: DataSource(**values, load=load_drawn)):
        with pytest.raises(error, match=word):
            make({**PLAIN, **change})
