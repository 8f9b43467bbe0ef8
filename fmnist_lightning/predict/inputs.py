"""Images from the names of files, folders, patterns, IDX files, or standard input.

Names are expanded at once, before anything is written; the files are then read lazily and in order.
"""

import glob
import io
import os
import re
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

from fmnist_lightning.data.idx import GZIP_MAGIC, MAGIC, IdxError, read_images
from fmnist_lightning.data.pictures import FORMATS, SUFFIXES, PictureError, Pixels, explain
from fmnist_lightning.data.source import DataInfo
from fmnist_lightning.errors import printable
from fmnist_lightning.predict.pictures import Invert, read_picture

STDIN = "-"
# The names of Fashion-MNIST's own files, and of MNIST's, "t10k-images.idx3-ubyte".
IDX_NAME = re.compile(r"[-.]idx\d-ubyte(\.gz)?$")
# What operating systems leave in folders.
OF_SYSTEMS = ("thumbs.db", "ehthumbs.db", "desktop.ini")
MAX_SUFFIXES = 6  # that are counted by name
# Bytes of a stream that are kept in memory: more than five times the largest file of Fashion-MNIST.
MAX_STREAM = 2**28
# Pillow releases the GIL while it decodes.
WORKERS = min(4, os.cpu_count() or 1)


class Picture(NamedTuple):
    """One image, ready for the model."""

    name: str
    image: Pixels  # (C, H, W), in the shape of the model
    note: str = ""  # why its prediction is doubtful


class Fault(NamedTuple):
    """A name that gives no image, and why: a predicate, such as "is empty"."""

    name: str
    reason: str


Result = Picture | Fault


def expand_all(
    names: Sequence[str], output: str | None = None, left_out: dict[str, list[str]] | None = None
) -> list[str | Fault]:
    """The files that the names mean, in order: files, the pictures in folders, the matches of patterns.

    `left_out` gets the other files of each folder. Patterns don't match what lies in `output`, so that a command that
    resumes finds the files that it found before.
    """
    found: list[str | Fault] = []
    left_out = {} if left_out is None else left_out
    for name in names:
        if name != STDIN and os.path.isdir(name):  # noqa: PTH112 (pathlib's raises if the name is too long)
            found += pictures_in(name, left_out)
        elif os.path.lexists(name) or not glob.has_magic(name):
            found.append(name)
        else:
            found += matches(name, output, left_out)
    return found


def matches(pattern: str, output: str | None, left_out: dict[str, list[str]]) -> Iterator[str | Fault]:
    """The files that match a pattern, in which `**` stands for any folders; no pipes."""
    found = glob.glob(pattern, recursive=True)  # noqa: PTH207 (pathlib's takes no absolute pattern)
    if output is not None:
        written = real(output)
        found = [name for name in found if not real(name).is_relative_to(written)]
    files = sorted(name for name in found if not is_stream(name))
    for name in files:
        if not os.path.isdir(name):  # noqa: PTH112 (as above)
            yield name
        elif "**" not in pattern:  # `**` has matched the content of the folder, too
            yield from pictures_in(name, left_out)
    if not files:
        yield Fault(pattern, "matches no file")


def pictures_in(folder: str, left_out: dict[str, list[str]]) -> Iterator[str | Fault]:
    """The visible pictures and IDX images in a folder and its subfolders, sorted, by their names."""
    unreadable: list[OSError] = []
    found = False
    for parent, folders, names in os.walk(folder, onerror=unreadable.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path, idx = str(Path(parent, name)), IDX_NAME.search(name)
            if name.startswith(".") or name.lower() in OF_SYSTEMS or is_stream(path):
                continue
            if "idx3" in idx[0] if idx else Path(name).suffix.lower() in SUFFIXES:
                found = True
                yield path
            elif not idx:  # labels belong to images
                left_out.setdefault(folder, []).append(path)
    yield from (Fault(str(error.filename), explain(error)) for error in unreadable)
    if not found and not unreadable:
        yield Fault(folder, f"is a folder without pictures ({', '.join(FORMATS)}) or IDX images")


def report_left_out(left_out: dict[str, list[str]]) -> None:
    """Count the files that folders hold beside pictures, in one line on standard error."""
    if not left_out:
        return
    suffixes = Counter(Path(path).suffix.lower() or "no suffix" for paths in left_out.values() for path in paths)
    counts = [f"{printable(suffix)} {count:,}" for suffix, count in suffixes.most_common()]
    if len(counts) > MAX_SUFFIXES:
        counts[MAX_SUFFIXES:] = [f"{len(counts) - MAX_SUFFIXES:,} other suffixes"]
    folders = printable(next(iter(left_out))) if len(left_out) == 1 else f"{len(left_out):,} folders"
    total = suffixes.total()
    print(
        f"left out {total:,} file{'s' * (total > 1)} in {folders}: {', '.join(counts)} "
        "(convert them to PNG or JPEG, or name a picture itself)",
        file=sys.stderr,
    )


def real(path: str | Path) -> Path:
    """Resolve symbolic links; Path.resolve fails if they form a circle."""
    return Path(os.path.realpath(path))


def is_stream(name: str) -> bool:
    """Whether this may block until somebody writes: standard input, a pipe, or a device."""
    path = Path(name)
    try:
        return name == STDIN or path.is_fifo() or path.is_char_device()
    except OSError:  # reported when the file is opened
        return False


def read_all(
    names: Iterable[str | Fault], info: DataInfo, invert: Invert = "auto", workers: int = WORKERS
) -> Iterator[Result]:
    """Read all files in order, as images of `info`; `workers` threads read ahead by a few files only.

    The caller's thread reads what may block forever. A signal handler that raises can end that, while a blocked thread
    would keep the program from ending.
    """
    pool = ThreadPoolExecutor(workers)
    pending: deque[Callable[[], Iterable[Result]]] = deque()
    try:
        for name in names:
            task = partial(read, name, info, invert)
            blocking = isinstance(name, str) and is_stream(name)
            pending.append(task if blocking else pool.submit(task).result)
            if len(pending) > 4 * workers:
                yield from pending.popleft()()
        while pending:
            yield from pending.popleft()()
    finally:
        pool.shutdown(cancel_futures=True)


def read_remaining(
    names: Iterable[str | Fault], done: int, info: DataInfo, invert: Invert = "auto"
) -> Iterator[Result]:
    """Read all files, but not the first `done` images of the first file, an IDX file.

    An earlier process read those. Yields a fault if they are no longer there.
    """
    names = iter(names)
    if done:
        name = next(names)
        file = name if isinstance(name, str) else name.name
        images = iter(read(name, info, invert))
        for index in range(done):
            image = next(images, Fault(file, f"holds only {index:,}"))
            if image.name != f"{file}[{index}]":
                reason = image.reason if isinstance(image, Fault) else "is one picture"
                yield Fault(file, f"has changed since {done:,} of its images were done: it {reason}")
                break
        else:
            yield from images
    yield from read_all(names, info, invert)


def read(name: str | Fault, info: DataInfo, invert: Invert) -> Iterable[Result]:
    """Read a picture, or the images of an IDX file; the latter lazily.

    A file is IDX by content or name; every gzipped file counts as IDX.
    """
    if isinstance(name, Fault):
        return [name]
    try:
        file = open_seekable(name)
        start = file.read(len(MAGIC))
        file.seek(0)
        if start == MAGIC or start.startswith(GZIP_MAGIC) or IDX_NAME.search(name):
            return read_idx(name, file, info)
        with file:
            return [Picture(name, *read_picture(file, info, invert))]
    except (PictureError, OSError, ValueError) as error:  # ValueError: the name holds a zero byte
        return [Fault(name, explain(error))]


def open_seekable(name: str) -> BinaryIO:
    """Open a file; read streams into memory. Raises PictureError if they are too long."""
    if name == STDIN:
        content = sys.stdin.buffer.read(MAX_STREAM + 1) if sys.stdin else b""  # None after `<&-`
    else:
        file = Path(name).open("rb")  # noqa: SIM115 (the caller closes it)
        if file.seekable():
            return file
        with file:
            content = file.read(MAX_STREAM + 1)
    if len(content) > MAX_STREAM:
        raise PictureError(f"is longer than {MAX_STREAM:,} bytes (save it as a file)")
    return io.BytesIO(content)


def read_idx(name: str, file: BinaryIO, info: DataInfo) -> Iterator[Result]:
    """Read the images of an IDX file, NAME[index]; then a fault if it is damaged or not as the model's images."""
    channels, height, width = info.image_shape
    with file:
        try:
            if channels != 1:
                raise IdxError(f"is an IDX file, whose images are gray, and the model takes {channels} channels")
            for index, image in enumerate(read_images(file, height, width)):
                yield Picture(f"{name}[{index}]", image[None])
        except IdxError as error:
            yield Fault(name, str(error))
