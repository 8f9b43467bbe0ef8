"""The files of a prediction by several processes, each with a shard of the list.

A folder holds `plan.json`, which says what is predicted and how, and a part for each shard. A part holds rows in the
order of the list; it is named `part-00001-of-00003.csv.partial` until its last row is written. A process that is
started again resumes after the last whole row of its part.
"""

import csv
import hashlib
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from fmnist_lightning.data.source import DataInfo
from fmnist_lightning.errors import UserError
from fmnist_lightning.predict.inputs import Fault
from fmnist_lightning.predict.rows import PART_FORMATS, fault_message
from fmnist_lightning.runs.files import locked, write_text, writing

PLAN = "plan.json"
NEEDED = {"files": int, "format": str, "list": str, "shards": int}  # to find and join the parts
PARTIAL = ".partial"
RESTART = "delete it, and repeat the command that wrote it"


class Shard(NamedTuple):
    """One of `total` equal parts of the list."""

    number: int  # from 1
    total: int

    def of(self, files: int) -> tuple[int, int]:
        """Where this shard of `files` begins and ends; shards differ by one file at most."""
        return files * (self.number - 1) // self.total, files * self.number // self.total

    def part(self, kind: str) -> str:
        """The name of its file."""
        return f"part-{self.number:05d}-of-{self.total:05d}.{kind}"


def parse_shard(text: str) -> Shard:
    """The second of three shards from `2/3`. Raises UserError if the text is none."""
    number, _, count = text.partition("/")
    if number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count):
        return Shard(int(number), int(count))
    raise UserError(f"cannot use --shard {text}: expected its number and the number of shards, such as 2/3")


def listing(names: Sequence[str | Fault]) -> dict[str, Any]:
    """Length and SHA-256 of the list of files, which is the same in every process."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(written(name).encode() + b"\0")
    return {"files": len(names), "list": digest.hexdigest()}


def data_digest(info: DataInfo) -> str:
    """The SHA-256 of what a model's card says of its data set: equal weights may have other names of classes."""
    return hashlib.sha256(json.dumps(info.as_plain(), sort_keys=True).encode()).hexdigest()


def written(name: str | Fault) -> str:
    """A name as a UTF-8 file holds it."""
    text = name.name if isinstance(name, Fault) else name
    return text.encode("utf-8", "backslashreplace").decode()


def agree_on_plan(folder: Path, plan: dict[str, Any]) -> None:
    """Write the plan once. Raises UserError if the folder has another or other files."""
    path = folder / PLAN
    with locked(folder / f".{PLAN}.lock", f"another process writes {path}: waiting until it ends", wait=True):
        if not path.exists():
            if any(folder.glob("[!.]*")):
                raise UserError(f"cannot write to {folder}: it holds other files (name a new folder)")
            write_text(path, json.dumps(plan, indent=2) + "\n")
        before = read_plan(folder)
    if changed := [name for name in plan if plan[name] != before.get(name)]:
        # A digest is cut short.
        changes = ", ".join(f"{name} {before.get(name)!s:.12}, now {plan[name]!s:.12}" for name in changed)
        raise UserError(f"cannot resume {folder} with {changes} (repeat its command, or name another folder)")


def read_plan(folder: Path) -> Any:
    """The plan of a folder of parts, a dict. Raises UserError if it has none."""
    try:
        plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"cannot find a prediction in {folder}: {PLAN} is missing") from error
    except ValueError:
        plan = None
    whole = isinstance(plan, dict) and all(type(plan.get(name)) is kind for name, kind in NEEDED.items())
    if not whole or plan["format"] not in PART_FORMATS or plan["shards"] < 1:
        raise UserError(f"cannot read {folder / PLAN}: it is damaged (start anew in another folder)")
    return plan


def parts_of(folder: Path, plan: dict[str, Any]) -> list[Path]:
    """The parts of a folder, written or not, in the order of the list."""
    return [folder / Shard(number + 1, plan["shards"]).part(plan["format"]) for number in range(plan["shards"])]


def open_part(partial: Path, kind: str, header: str) -> BinaryIO:
    """Open a part without the row that a kill left half written; it begins with the header."""
    with writing(partial):
        file = partial.open("ab")
    end = sum(map(len, raw_records(partial, kind)))
    file.truncate(end)
    if not end:
        write_rows(file, header)
    return file


def write_rows(file: BinaryIO, text: str) -> None:
    """Append rows and flush them to the disk."""
    with writing(file.name):
        file.write(text.encode("utf-8", "backslashreplace"))
        file.flush()
        os.fsync(file.fileno())


def raw_records(path: Path, kind: str) -> Iterator[bytes]:
    """The whole records of a part, the header included."""
    with path.open("rb") as file:
        lines, quotes = list[bytes](), 0
        for line in file:
            lines.append(line)
            quotes += line.count(b'"')
            # A name with line breaks is quoted, and quotes in it are doubled.
            if line.endswith(b"\n") and (kind == "json" or quotes % 2 == 0):
                yield b"".join(lines)
                lines, quotes = [], 0


def rows_in(path: Path, kind: str) -> Iterator[dict[str, str]]:
    """`file` and `error` of each whole row of a part. Raises UserError if damaged."""
    columns: list[str] = []
    for number, record in enumerate(raw_records(path, kind), 0 if kind == "csv" else 1):
        try:
            if kind == "json":
                row = json.loads(record)
            else:
                # str.splitlines would also split at U+2028 and others, which a name may hold.
                fields = next(csv.reader(io.StringIO(record.decode("utf-8"), newline="")))
                columns = columns or fields
                row = dict(zip(columns, fields, strict=True))
            result = {"file": written(row["file"]), "error": row.get("error", "")}
        except (ValueError, KeyError, TypeError, AttributeError, csv.Error, StopIteration) as error:
            raise UserError(f"cannot read {path}: row {number:,} is damaged, {error!r} ({RESTART})") from error
        if number:
            yield result


def remaining(
    names: Sequence[str | Fault], done: Iterable[dict[str, str]], path: Path
) -> tuple[Sequence[str | Fault], int]:
    """Those of a shard's names that have no rows yet, and how many images of the first one, an IDX file, have.

    Both names and rows are in order. Raises UserError if they don't match.
    """
    rows = (row["file"] for row in done)
    row = next(rows, None)
    for index, name in enumerate(names):
        key = written(name)
        if row is None:
            return names[index:], 0
        images = 0
        while row == f"{key}[{images}]":
            row, images = next(rows, None), images + 1
        if row == key:  # a picture, or the fault of a file or of its rest
            row = next(rows, None)
        elif images and row is None:
            return names[index:], images
        elif not images:
            raise UserError(f"cannot resume {path}: it has {row} instead of {key} ({RESTART})")
    if row is not None:
        raise UserError(f"cannot resume {path}: it has {row} after the end of its shard ({RESTART})")
    return [], 0


def name_faults(parts: Iterable[Path], kind: str) -> tuple[int, int]:
    """Print which files could not be read, by the rows of parts. Return the numbers of rows and faults."""
    rows = faults = 0
    for part in parts:
        for row in rows_in(part, kind):
            rows += 1
            if row["error"]:
                faults += 1
                print(fault_message(row), file=sys.stderr)
    return rows, faults
