"""Atomic file writes (temporary file, fsync, rename), lock files, and YAML files."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, Any

import yaml
from filelock import FileLock, Timeout

from fmnist_lightning.errors import UserError

STAGED = ".staged"  # suffix of temporary files


def fsync_folder(folder: Path) -> None:
    """Make renames in `folder` durable. Windows can't open a folder, and needs no fsync of it."""
    with contextlib.suppress(PermissionError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def fsync_and_rename(staged: Path, path: Path) -> None:
    """Flush the complete file `staged` to disk and rename it to `path`, on the same file system."""
    with staged.open("rb+") as file:
        os.fsync(file.fileno())
    staged.replace(path)
    fsync_folder(path.parent)


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that becomes `path` if the block succeeds, and is removed if it fails.

    Raises OSError if the folder can't be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=STAGED, delete=False)  # noqa: SIM115
    try:
        with staged:
            yield staged
        # NamedTemporaryFile lets only its owner read the file.
        umask = os.umask(0)
        os.umask(umask)
        Path(staged.name).chmod(0o666 & ~umask)
        fsync_and_rename(Path(staged.name), path)
    finally:
        Path(staged.name).unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_write(path) as file:
        file.write(text.encode())


def read_yaml(path: Path, hint: str) -> dict[str, Any]:
    """The names and values in a YAML file; no code in it can run. Raises UserError with `hint` if it holds none."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    # PyYAML raises ValueError for a date such as 2020-13-01, and RecursionError for a list that contains itself.
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {error} ({hint})") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise UserError(f"cannot use {path}: it holds no `name: value` lines ({hint})")
    return content


def remove_staged(folder: Path, pattern: str = "*") -> None:
    """Remove the temporary files that a killed `atomic_write` left in `folder`, for file names like `pattern`."""
    for staged in folder.glob(f".{pattern}.*{STAGED}"):
        staged.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path, message: str, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock file `path`. The operating system releases it if the process dies.

    If another process holds it, raises UserError with `message`, or with `wait` prints `message` and waits. Raises
    OSError if the file can't be written.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        if not wait:
            raise UserError(message) from error
        print(message, file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
