"""Markdown tables, made from records, between their marks in README and docs/."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fmnist_lightning.errors import UserError
from fmnist_lightning.runs.files import write_text


def markdown(rows: Sequence[Sequence[object]]) -> str:
    """A table, whose first row is its header."""
    header, *body = ["|" + "".join(f" {cell} |" if cell != "" else " |" for cell in row) for row in rows]
    return "\n".join([header, "|---" * len(rows[0]) + "|", *body])


def origin(record: dict[str, Any]) -> str:
    """Machine, versions, data and commit of a record, in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    git = record["git"]
    commit = (git["commit"] or "unknown")[:7] + (" with uncommitted changes" if git["dirty"] else "")
    return f"{record['device']}; {versions}; {record['dataset']}; commit {commit}"


def marks(name: str) -> tuple[str, str]:
    """The lines of a document between which the table `name` goes."""
    return f"<!-- {name}: begin; made by `make results` -->", f"<!-- {name}: end -->"


def update_document(path: Path, name: str, table: str) -> None:
    """Put a table between its two marks. Raises UserError if they are missing."""
    begin, end = marks(name)
    before, found_begin, rest = path.read_text(encoding="utf-8").partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        raise UserError(f"cannot update {path}: it lacks the lines {begin} and {end}")
    write_text(path, f"{before}{begin}\n{table}\n{end}{after}")
