"""What a run of the tests prints."""

from types import SimpleNamespace

from conftest import pytest_terminal_summary


def test_reasons_of_skipped_tests_are_listed_once() -> None:
    reports = [
        SimpleNamespace(longrepr=("file.py", 1, f"Skipped: {reason}")) for reason in ("no GPU", "no data", "no GPU")
    ]
    lines: list[str] = []
    pytest_terminal_summary(SimpleNamespace(stats={"skipped": reports}, write_line=lines.append))
    assert lines == ["2 skipped: no GPU", "1 skipped: no data"]
