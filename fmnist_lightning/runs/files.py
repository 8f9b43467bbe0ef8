"""Atomic file writes (temporary file, fsync, rename), and lock files."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO

from filelock import FileLock, Timeout

from fmnist_lightning.errors import UserError, WriteError

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
def writing(path: str | Path) -> Iterator[None]:
    """Raise WriteError that names `path` if the system refuses what the block does with it."""
    try:
        yield
    except OSError as error:
        raise WriteError(path, error) from error


@contextlib.contextmanager
def atomic_write(path: Path, *, new_folder: bool = True) -> Iterator[IO[bytes]]:
    """A binary file that becomes `path` if the block succeeds, and is removed if it fails.

    Raises WriteError if it can't be written. Its folder is made, unless `new_folder` is false: a run that was deleted
    stays deleted.
    """
    with writing(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if new_folder:
            make_folder(path.parent)
        staged = NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=STAGED, delete=False)  # noqa: SIM115
    try:
        try:
            with staged:
                yield staged
        except OSError as error:
            if error.filename in (None, staged.name):  # else it is of a file that the block reads
                raise WriteError(path, error) from error
            raise
        with writing(path):
            # NamedTemporaryFile lets only its owner read the file.
            umask = os.umask(0)
            os.umask(umask)
            Path(staged.name).chmod(0o666 & ~umask)
            fsync_and_rename(Path(staged.name), path)
    finally:
        with contextlib.suppress(OSError):  # the error that ended the block says more
            Path(staged.name).unlink()


def make_folder(folder: Path) -> None:
    """Make the folder and those above it. Raises WriteError if a file is in its place, or it can't be made."""
    with writing(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from error


def write_text(path: Path, text: str, *, new_folder: bool = True) -> None:
    """Write UTF-8 text atomically."""
    with atomic_write(path, new_folder=new_folder) as file:
        file.write(text.encode())


def remove_staged(folder: Path, pattern: str = "*") -> None:
    """Remove the temporary files that a killed `atomic_write` left in `folder`, for file names like `pattern`."""
    for staged in folder.glob(f".{pattern}.*{STAGED}"):
        staged.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path, message: str, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock file `path`. The operating system releases it if the process dies.

    If another process holds it, raises UserError with `message`, or with `wait` prints `message` and waits. Raises
    WriteError if the file can't be written.
    """
    lock = FileLock(path)
    try:
        # Another process may hold it for a moment, to see whether a third one does.
        lock.acquire(timeout=0 if wait else 0.5)
    except Timeout as error:
        if not wait:
            raise UserError(message) from error
        print(message, file=sys.stderr, flush=True)
        lock.acquire()
    except OSError as error:
        raise WriteError(path, error) from error
    try:
        yield
    finally:
        lock.release()
