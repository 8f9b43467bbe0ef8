"""Files that are whole or not there: temporary name in the same folder, flush to disk, rename."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO

from filelock import FileLock, Timeout

from fmnist_lightning.errors import UserError

STAGED = ".staged"


def fsync_folder(folder: Path) -> None:
    """Make renames in `folder` last through a power cut; systems that can't open a folder (Windows) have no need."""
    with contextlib.suppress(PermissionError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def fsync_and_rename(staged: Path, path: Path) -> None:
    """Flush the complete file `staged` and give it its name, on the same file system."""
    with staged.open("rb+") as file:
        os.fsync(file.fileno())
    staged.replace(path)
    fsync_folder(path.parent)


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that takes the name `path` when the block ends well, and vanishes when it does not.

    Raises OSError where the folder can't be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=STAGED, delete=False)  # noqa: SIM115
    try:
        with staged:
            yield staged
        # NamedTemporaryFile makes private files; this one is to be read like any other.
        umask = os.umask(0)
        os.umask(umask)
        Path(staged.name).chmod(0o666 & ~umask)
        fsync_and_rename(Path(staged.name), path)
    finally:
        Path(staged.name).unlink(missing_ok=True)


@contextlib.contextmanager
def locked(lock: Path, taken: str, *, wait: bool = False) -> Iterator[None]:
    """Hold the file `lock` alone. The system ends the claim with the process.

    Where another process holds it, raises UserError with the message `taken`, or with `wait` prints it and waits.
    Raises UserError also where it can't be written.
    """
    claim = FileLock(lock)
    try:
        claim.acquire(timeout=0)
    except Timeout as error:
        if not wait:
            raise UserError(taken) from error
        print(taken, file=sys.stderr)
        claim.acquire()
    except OSError as error:
        raise UserError(f"{lock.parent} can't be written ({error.strerror}): make it writable") from error
    try:
        yield
    finally:
        claim.release()


def remove_staged(folder: Path, pattern: str = "*") -> None:
    """Remove what a killed `atomic_write` of files named like `pattern` left in `folder`."""
    for staged in folder.glob(f".{pattern}.*{STAGED}"):
        staged.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_write(path) as file:
        file.write(text.encode())
