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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from filelock import FileLock

from fmnist_lightning.errors import UserError
from fmnist_lightning.predict.inputs import Fault
from fmnist_lightning.predict.rows import PART_FORMATS, fault_message
from fmnist_lightning.runs.files import fsync_folder, locked, write_text

PLAN = "plan.json"
# What finding and joining the parts needs of a plan.
NEEDED: dict[str, Callable[[Any], bool]] = {
    "files": lambda files: type(files) is int and files >= 0,  # True is an int, too
    "format": lambda kind: kind in PART_FORMATS,
    "list": lambda digest: isinstance(digest, str),
    "shards": lambda shards: type(shards) is int and shards >= 1,
}
PARTIAL = ".partial"


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


def listing(names: Iterable[str | Fault]) -> dict[str, Any]:
    """Length and SHA-256 of the list of files, which is the same in every process."""
    digest, count = hashlib.sha256(), 0
    for count, name in enumerate(names, 1):  # noqa: B007
        digest.update(written(name).encode() + b"\0")
    return {"files": count, "list": digest.hexdigest()}


def written(name: str | Fault) -> str:
    """A name as a UTF-8 file holds it."""
    text = name.name if isinstance(name, Fault) else name
    return text.encode("utf-8", "backslashreplace").decode()


def agree_on_plan(folder: Path, plan: dict[str, Any]) -> None:
    """Write the plan once. Raises UserError if the folder has another or other files."""
    path = folder / PLAN
    with FileLock(folder / f".{PLAN}.lock"):
        if not path.exists():
            if any(folder.glob("[!.]*")):
                raise UserError(f"cannot write to {folder}: it holds other files (name a new folder)")
            write_text(path, json.dumps(plan, indent=2) + "\n")
        before = read_plan(folder)
    if changed := [name for name in plan if plan[name] != before.get(name)]:
        # A digest is cut short.
        changes = ", ".join(f"{name} {before.get(name)!s:.12}, now {plan[name]!s:.12}" for name in changed)
        raise UserError(f"cannot resume {folder} with {changes} (repeat its command, or name another folder)")


def read_plan(folder: Path) -> dict[str, Any]:
    """The plan of a folder of parts. Raises UserError if it has none."""
    try:
        plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"cannot find a prediction in {folder}: {PLAN} is missing") from error
    except ValueError as error:
        raise UserError(f"cannot read {folder / PLAN}: it is damaged ({error})") from error
    values = plan if isinstance(plan, dict) else {}
    if wrong := [
        f"{name} {json.dumps(values.get(name))}" for name, fits in NEEDED.items() if not fits(values.get(name))
    ]:
        raise UserError(f"cannot use {folder / PLAN}: it has {', '.join(wrong)} (start anew in another folder)")
    return values


def parts_of(folder: Path, plan: dict[str, Any]) -> list[Path]:
    """The parts of a folder, written or not, in the order of the list."""
    return [folder / Shard(number + 1, plan["shards"]).part(plan["format"]) for number in range(plan["shards"])]


class Part:
    """The file of one shard, while this process writes it."""

    def __init__(self, folder: Path, shard: Shard, kind: str, header: str) -> None:
        self.path = folder / shard.part(kind)
        self.partial = self.path.with_name(self.path.name + PARTIAL)
        self.kind = kind
        self.header = header
        self.file: IO[bytes]

    def locked(self) -> AbstractContextManager[None]:
        """Keep other processes from writing it. Raises UserError if one already does."""
        lock = self.path.with_name(f".{self.path.name}.lock")
        return locked(lock, f"another process writes {self.partial} (wait until it ends, or stop it)")

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Open it without the row that a kill left half written; begin with the header."""
        with self.partial.open("ab") as self.file:
            end = sum(len(text) for text, _ in raw_records(self.partial, self.kind))
            self.file.truncate(end)
            if not end:
                self.write(self.header)
            yield

    def write(self, text: str) -> None:
        """Append rows and flush them to the disk."""
        self.file.write(text.encode("utf-8", "backslashreplace"))
        self.file.flush()
        os.fsync(self.file.fileno())

    def finish(self) -> None:
        """Rename the complete part."""
        self.partial.replace(self.path)
        fsync_folder(self.path.parent)


def raw_records(path: Path, kind: str) -> Iterator[tuple[bytes, int]]:
    """The whole records of a part and their numbers; the header is 0."""
    with path.open("rb") as file:
        lines, quotes, number = list[bytes](), 0, 0 if kind == "csv" else 1
        for line in file:
            lines.append(line)
            quotes += line.count(b'"')
            # A name with line breaks is quoted, and quotes in it are doubled.
            if line.endswith(b"\n") and (kind == "json" or quotes % 2 == 0):
                yield b"".join(lines), number
                lines, quotes, number = [], 0, number + 1


def rows_in(path: Path, kind: str) -> Iterator[dict[str, str]]:
    """`file` and `error` of each whole row of a part. Raises UserError if damaged."""
    columns: list[str] = []
    for record, number in raw_records(path, kind):
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
            raise UserError(
                f"cannot read {path}: row {number:,} is damaged, {error!r} (delete it to start its shard anew)"
            ) from error
        if number:
            yield result


class Remaining(NamedTuple):
    """What of a shard is still to be done."""

    names: Sequence[str | Fault]
    images_done: int  # of the first name, an IDX file


def remaining(names: Sequence[str | Fault], done: Iterable[dict[str, str]], path: Path) -> Remaining:
    """Match a shard's names with the rows that are done, both in order.

    Raises UserError if they don't match.
    """
    hint = "delete it to start its shard anew"
    rows = (row["file"] for row in done)
    row = next(rows, None)
    for index, name in enumerate(names):
        key = written(name)
        if row is None:
            return Remaining(names[index:], 0)
        images = 0
        while row == f"{key}[{images}]":
            row, images = next(rows, None), images + 1
        if row == key:  # a picture, or the fault of a file or of its rest
            row = next(rows, None)
        elif images and row is None:
            return Remaining(names[index:], images)
        elif not images:
            raise UserError(f"cannot resume {path}: it has {row} instead of {key} ({hint})")
    if row is not None:
        raise UserError(f"cannot resume {path}: it has {row} after the end of its shard ({hint})")
    return Remaining([], 0)


class Count(NamedTuple):
    """The number of rows in parts."""

    rows: int
    faults: int  # rows of files that could not be read


def name_faults(parts: Iterable[Path], kind: str) -> Count:
    """Print which files could not be read, by the rows of parts, and count rows."""
    rows = faults = 0
    for part in parts:
        for row in rows_in(part, kind):
            rows += 1
            if row["error"]:
                faults += 1
                print(fault_message(row["file"], row["error"]), file=sys.stderr)
    return Count(rows, faults)
