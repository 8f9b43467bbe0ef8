"""Prediction over very many files, a share of the list for each of several processes, that a kill does not undo.

A folder holds `plan.json`, what is predicted how, and a part for each share: rows in the order of the list, one file's
behind the other's, `part-00001-of-00003.csv.partial` until the last one is written. A process that is started again
goes on behind the last whole row of its part.
"""

import csv
import hashlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, NamedTuple

from filelock import FileLock

from fmnist_lightning.errors import UserError
from fmnist_lightning.predict.inputs import Fault
from fmnist_lightning.predict.rows import PART_FORMATS, printable
from fmnist_lightning.runs.files import fsync_folder, locked, write_text

PLAN = "plan.json"
# Of a plan, to find and join its parts.
NEEDED: dict[str, Callable[[Any], bool]] = {
    "files": lambda files: type(files) is int and files >= 0,  # not True, which is an int too
    "format": lambda kind: kind in list(PART_FORMATS),  # which may be of a kind that no dict takes for a key
    "list": lambda digest: isinstance(digest, str),
    "shares": lambda shares: type(shares) is int and shares >= 1,
}
PARTIAL = ".partial"


class Share(NamedTuple):
    """One of so many parts of the list."""

    number: int  # from 1
    total: int

    def of(self, files: int) -> tuple[int, int]:
        """Where this share of a list of `files` begins and ends; shares differ by one file at most."""
        return files * (self.number - 1) // self.total, files * self.number // self.total

    def part(self, kind: str) -> str:
        """The name of its file."""
        return f"part-{self.number:05d}-of-{self.total:05d}.{kind}"


def parse_share(text: str) -> Share:
    """The second of three from `2/3`. Raises UserError where it is none."""
    number, _, count = text.partition("/")
    if number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count):
        return Share(int(number), int(count))
    raise UserError(f"--shard {text} is no share: expected its number and how many there are, such as 2/3")


def listing(names: Iterable[str | Fault]) -> dict[str, Any]:
    """How many files a list has, and its SHA-256, so that each process shares the same one."""
    digest, count = hashlib.sha256(), 0
    for count, name in enumerate(names, 1):  # noqa: B007
        digest.update(written(name).encode() + b"\0")
    return {"files": count, "list": digest.hexdigest()}


def written(name: str | Fault) -> str:
    """A name as a UTF-8 file can hold it."""
    text = name.name if isinstance(name, Fault) else name
    return text.encode("utf-8", "backslashreplace").decode()


def agree_on_plan(folder: Path, plan: dict[str, Any]) -> None:
    """Write the plan where there is none. Raises UserError where the folder has another one."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PLAN
    with FileLock(folder / f".{PLAN}.lock"):
        if not path.exists():
            if any(folder.glob("[!.]*")):
                raise UserError(f"{folder} holds something else: name a new folder, or one that a prediction began")
            write_text(path, json.dumps(plan, indent=2) + "\n")
        before = read_plan(folder)
    if changed := [name for name in plan if plan[name] != before.get(name)]:
        # A digest's beginning says as much.
        told = ", ".join(f"{name} {before.get(name)!s:.12}, now {plan[name]!s:.12}" for name in changed)
        raise UserError(f"{folder} was begun with another plan ({told}): go on as it was begun, or name another folder")


def read_plan(folder: Path) -> dict[str, Any]:
    """What a folder of parts holds. Raises UserError where it is none."""
    try:
        plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{folder} holds no prediction: {PLAN} is missing") from error
    except ValueError as error:
        raise UserError(f"{folder / PLAN} can't be read ({error}): it is damaged") from error
    if not isinstance(plan, dict) or not plan.keys() >= NEEDED.keys():
        raise UserError(f"{folder / PLAN} is no plan of a prediction: expected {', '.join(NEEDED)}")
    if wrong := [f"{name} {json.dumps(plan[name])}" for name, fits in NEEDED.items() if not fits(plan[name])]:
        raise UserError(
            f"{folder / PLAN} is no plan of a prediction: it has {', '.join(wrong)}; expected files from 0, "
            f"format {' or '.join(PART_FORMATS)}, list as text, shares from 1; begin anew in another folder"
        )
    return plan


def parts_of(folder: Path, plan: dict[str, Any]) -> list[Path]:
    """The parts of a folder, written or not, in the order of the list."""
    return [folder / Share(number + 1, plan["shares"]).part(plan["format"]) for number in range(plan["shares"])]


class Part:
    """The file of one share, while this process writes it."""

    def __init__(self, folder: Path, share: Share, kind: str, header: str) -> None:
        self.path = folder / share.part(kind)
        self.partial = self.path.with_name(self.path.name + PARTIAL)
        self.kind = kind
        self.header = header
        self.file: IO[bytes]

    def locked(self) -> AbstractContextManager[None]:
        """Raise UserError where another process writes it."""
        lock = self.path.with_name(f".{self.path.name}.lock")
        return locked(lock, f"another process writes {self.partial}: wait until it ends, or stop it")

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Cut off what a kill left half written; begin with the header."""
        with self.partial.open("ab") as self.file:
            end = sum(len(text) for text, _ in raw_records(self.partial, self.kind))
            self.file.truncate(end)
            if not end:
                self.write(self.header)
            yield

    def write(self, text: str) -> None:
        """Append rows, on the disk when this returns."""
        self.file.write(text.encode("utf-8", "backslashreplace"))
        self.file.flush()
        os.fsync(self.file.fileno())

    def finish(self) -> None:
        """Give the part its name: it is complete."""
        self.partial.replace(self.path)
        fsync_folder(self.path.parent)


def raw_records(path: Path, kind: str) -> Iterator[tuple[bytes, int]]:
    """The whole records of a part and their numbers, the header with 0; not what is cut off behind the last one."""
    with path.open("rb") as file:
        lines, quotes, number = list[bytes](), 0, 0 if kind == "csv" else 1
        for line in file:
            lines.append(line)
            quotes += line.count(b'"')
            # A name with line breaks stands in quotes, and quotes in it are doubled.
            if line.endswith(b"\n") and (kind == "json" or quotes % 2 == 0):
                yield b"".join(lines), number
                lines, quotes, number = [], 0, number + 1


def rows_in(path: Path, kind: str) -> Iterator[dict[str, str]]:
    """The `file` and the `error`, if any, of each whole row of a part. Raises UserError where it is damaged."""
    columns: list[str] = []
    for record, number in raw_records(path, kind):
        try:
            if kind == "json":
                row = json.loads(record)
            else:
                # Not by lines, of which there are more kinds than CSV knows: U+2028 in a name, for one.
                fields = next(csv.reader(io.StringIO(record.decode("utf-8"), newline="")))
                columns = columns or fields
                row = dict(zip(columns, fields, strict=True))
            told = {"file": written(row["file"]), "error": row.get("error", "")}
        except (ValueError, KeyError, TypeError, AttributeError, csv.Error, StopIteration) as error:
            raise UserError(
                f"{path} is damaged in row {number:,} ({error!r}): delete it, and its share begins anew"
            ) from error
        if number:
            yield told


class Left(NamedTuple):
    """What of a share is still to be done."""

    names: Iterator[str | Fault]
    images_done: int  # of the first name, which is a file of many


def left(names: Iterator[str | Fault], done: Iterable[dict[str, str]], path: Path) -> Left:
    """Go along a share's names and the rows that are done, both in order, to where the rows end.

    Raises UserError where they don't fit.
    """
    rows = (row["file"] for row in done)
    row = next(rows, None)
    for name in names:
        key = written(name)
        if row is None:
            return Left(chain([name], names), 0)
        images = 0
        while row == f"{key}[{images}]":
            row, images = next(rows, None), images + 1
        if row == key:  # a picture, or the fault that a file or the rest of it is
            row = next(rows, None)
        elif images and row is None:
            return Left(chain([name], names), images)
        elif not images:
            raise UserError(f"{path} has {row} where the list has {key}: delete it, and its share begins anew")
    if row is not None:
        raise UserError(f"{path} has {row} behind the end of its share: delete it, and its share begins anew")
    return Left(iter(()), 0)


def share_of(names: Iterable[str | Fault], share: Share, files: int) -> Iterator[str | Fault]:
    """The names of a share, read as they are needed."""
    return islice(iter(names), *share.of(files))


class Told(NamedTuple):
    """What parts hold."""

    rows: int
    faults: int  # those of the rows that tell why a file could not be read


def name_faults(parts: Iterable[Path], kind: str) -> Told:
    """Say which files could not be read, by the rows of parts, and count."""
    rows = faults = 0
    for part in parts:
        for row in rows_in(part, kind):
            rows += 1
            if row["error"]:
                faults += 1
                print(f"error: {printable(row['file'])}: {printable(row['error'])}", file=sys.stderr)
    return Told(rows, faults)
