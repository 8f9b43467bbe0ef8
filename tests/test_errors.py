"""What messages say of paths."""

from pathlib import Path

import pytest

from fmnist_lightning.errors import missing


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("data/fashion_mnist", "data/fashion-mnist"),
        ("DATA/fashion-mnist", "data/fashion-mnist"),
        ("dta/fashion-mnist/file", "data/fashion-mnist/file"),
        ("data/other", None),
        ("else/fashion-mnist", None),
    ],
)
def test_missing_names_the_absolute_and_a_similar_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str, meant: str | None
) -> None:
    (tmp_path / "data" / "fashion-mnist").mkdir(parents=True)
    (tmp_path / "data" / "fashion-mnist" / "file").touch()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    hint = f"; did you mean {tmp_path / meant}?" if meant else ""
    assert missing(f"../{typed}") == f"there is no {tmp_path / typed}{hint}"


def test_missing_escapes_a_line_break() -> None:
    assert missing("/no/such\nfolder") == r"there is no /no/such\nfolder"
