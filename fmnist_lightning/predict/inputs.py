"""From what a user names to 28 x 28 images: files, folders, patterns, IDX files, standard input; lazily, in order."""

import glob
import io
import os
import re
import stat
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

from PIL import Image

from fmnist_lightning.data.fashion_mnist import IMAGE_SIZE
from fmnist_lightning.data.idx import GZIP_MAGIC, MAGIC, IdxError, read_images
from fmnist_lightning.predict.pictures import FORMATS, Grey, Invert, PictureError, explain, read_picture

STDIN = "-"
SUFFIXES = frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS)
# The names of the data set's own files, and of MNIST's, "t10k-images.idx3-ubyte".
IDX_NAME = re.compile(r"[-.]idx\d-ubyte(\.gz)?$")
# What is kept in memory of a stream that can't be searched: more than five times the largest file of the data set.
MAX_STREAM = 2**28
# Decoding runs outside Python's lock.
WORKERS = min(4, os.cpu_count() or 1)


class Picture(NamedTuple):
    """One image, ready for the net."""

    name: str
    image: Grey  # (28, 28)


class Fault(NamedTuple):
    """One name that gives no image, and why."""

    name: str
    reason: str


Result = Picture | Fault


def expand(name: str) -> Iterator[str | Fault]:
    """The files that a name means, sorted: itself, a folder's pictures, or the matches of a pattern."""
    try:
        if name != STDIN and Path(name).is_dir():
            yield from pictures_in(name)
        elif name == STDIN or os.path.lexists(name) or not glob.has_magic(name):
            yield name
        else:
            yield from matches(name)
    except (OSError, ValueError) as error:  # ValueError: of a name that holds a zero byte
        yield Fault(name, explain(name, error))


def expand_all(names: Iterable[str]) -> Iterator[str | Fault]:
    """The files that all names mean, one name's after the other's; standard input, which can be read once, once."""
    took_stdin = False
    for name in names:
        if name == STDIN and took_stdin:
            yield Fault(STDIN, "was read already: standard input can be read once, so name it once")
        else:
            yield from expand(name)
        took_stdin |= name == STDIN


def matches(pattern: str) -> Iterator[str | Fault]:
    """The files that a pattern means, streams left out; `**` stands for folders in folders."""
    found = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207, which takes no pattern that begins with /
    files = [name for name in found if not is_stream(name)]
    for name in files:
        if not Path(name).is_dir():
            yield name
        elif "**" not in pattern:  # which has matched what is in the folder too
            yield from pictures_in(name)
    if not files:
        pipes = "matches only pipes or devices, which might wait for ever: name them to read them"
        yield Fault(pattern, pipes if found else "matches no file")


def pictures_in(folder: str) -> Iterator[str | Fault]:
    """The pictures and IDX images in a folder and those below, by their names; what is hidden is left out."""
    unreadable: list[OSError] = []
    found = 0
    for parent, folders, names in os.walk(folder, onerror=unreadable.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if is_picture_name(name) and not is_stream(path := str(Path(parent, name))):
                found += 1
                yield path
    yield from (Fault(str(error.filename), explain(error.filename, error)) for error in unreadable)
    if not found and not unreadable:
        yield Fault(folder, f"is a folder without pictures ({', '.join(FORMATS)}) or IDX images")


def is_stream(name: str) -> bool:
    """Whether this may wait for ever for somebody who writes: a pipe, or a device such as a terminal."""
    try:
        mode = Path(name).stat().st_mode
    except (OSError, ValueError):  # there will be a message when it is opened
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def is_picture_name(name: str) -> bool:
    if name.startswith("."):
        return False
    idx = IDX_NAME.search(name)
    return "idx3" in idx[0] if idx else Path(name).suffix.lower() in SUFFIXES


def read_all(names: Iterable[str | Fault], invert: Invert = "auto", workers: int = WORKERS) -> Iterator[Result]:
    """The images of all files, in order; `workers` threads are a few files ahead, so memory stays bounded.

    What may block for ever is read by the caller's thread, each in its turn: a signal handler that raises ends that,
    while a thread that is blocked would keep the program from ending.
    """
    pool = ThreadPoolExecutor(workers)
    pending: deque[Callable[[], Iterable[Result]]] = deque()
    try:
        for name in names:
            blocking = not isinstance(name, Fault) and (name == STDIN or is_stream(name))
            pending.append(partial(read, name, invert) if blocking else pool.submit(read, name, invert).result)
            if len(pending) > 4 * workers:
                yield from pending.popleft()()
        while pending:
            yield from pending.popleft()()
    finally:
        pool.shutdown(cancel_futures=True)


def read_behind(names: Iterator[str | Fault], done: int, invert: Invert = "auto") -> Iterator[Result]:
    """The images of all files but the first `done` of the first file, which an earlier process read."""
    if done:
        yield from rest_of(next(names), done, invert)
    yield from read_all(names, invert)


def rest_of(name: str | Fault, done: int, invert: Invert) -> Iterator[Result]:
    """The images of an IDX file behind the first `done`; a fault where they are no longer there."""
    file = name.name if isinstance(name, Fault) else name
    images = iter(read(name, invert))
    for index in range(done):
        image = next(images, Fault(file, f"holds only {index:,}"))
        if image.name != f"{file}[{index}]":
            reason = image.reason if isinstance(image, Fault) else "is one picture"
            yield Fault(file, f"has changed since {done:,} of its images were done: {reason}")
            return
    yield from images


def read(name: str | Fault, invert: Invert) -> Iterable[Result]:
    """The image in a file, or the images of an IDX file, which are read when they are asked for."""
    if isinstance(name, Fault):
        return [name]
    try:
        file = open_searchable(name)
        if is_idx(name, file):
            return read_idx(name, file)
        with file:
            return [Picture(name, read_picture(file, invert))]
    except PictureError as error:
        return [Fault(name, str(error))]
    except (OSError, ValueError) as error:  # ValueError: of a name that holds a zero byte
        return [Fault(name, explain(name, error))]


def open_searchable(name: str) -> BinaryIO:
    """An open file. Standard input and pipes come into memory; raises PictureError where they are too long for it."""
    if name == STDIN:
        if sys.stdin is None:  # Python's answer to `<&-`
            raise PictureError("is closed")
        content = sys.stdin.buffer.read(MAX_STREAM + 1)
    else:
        file = Path(name).open("rb")  # noqa: SIM115, handed on
        if file.seekable():
            return file
        with file:
            content = file.read(MAX_STREAM + 1)
    if len(content) > MAX_STREAM:
        raise PictureError(f"is longer than {MAX_STREAM:,} bytes: save it as a file")
    return io.BytesIO(content)


def is_idx(name: str, file: BinaryIO) -> bool:
    """Whether a file holds IDX data or should, by its name. Everything packed is taken for it."""
    start = file.read(len(MAGIC))
    file.seek(0)
    return start == MAGIC or start.startswith(GZIP_MAGIC) or bool(IDX_NAME.search(name))


def read_idx(name: str, file: BinaryIO) -> Iterator[Result]:
    """The images of an IDX file, as they are: (28, 28), named NAME[index]; then a fault if the file is not whole."""
    with file:
        try:
            for index, image in enumerate(read_images(file, IMAGE_SIZE, IMAGE_SIZE)):
                yield Picture(f"{name}[{index}]", image)
        except IdxError as error:
            yield Fault(name, str(error))
