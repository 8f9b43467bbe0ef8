"""IDX files, the format of MNIST and Fashion-MNIST: uint8 values, gzipped or not.

The header is two zero bytes, the type (8 for uint8), the number of axes, and the length of each axis as a big-endian
uint32. Source: http://yann.lecun.com/exdb/mnist/.
"""

import gzip
import io
import math
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fmnist_lightning.errors import UserError, full_path, missing, printable

MAGIC = bytes([0, 0, 8])  # the number of axes follows
GZIP_MAGIC = bytes([0x1F, 0x8B])
# gzip halves Fashion-MNIST at most; it shrinks blank images and sorted labels to 1/1000.
MAX_RATIO = 200
SMALL = 2**24  # bytes that a file may unpack to, whatever the ratio: 16 million labels
CHUNK = 2**20  # bytes
UNITS = {1: "labels", 3: "images"}  # by the number of axes
SHOWN = 5  # files in a message


class IdxError(UserError):
    """The file is no IDX file of the expected shape, or it is truncated or damaged; the text is a predicate."""


def find_spellings(folder: Path, name: str) -> list[Path]:
    """The files in `folder` of this name, such as train-images-idx3-ubyte, unpacked ones first.

    Also train-images.idx3-ubyte, as MNIST's authors spell it, in upper or lower case, and gzipped.
    """
    found = []
    for path in paths_in(folder):
        spelling = re.sub(r"[._]", "-", path.name.casefold())
        if spelling in (name, f"{name}-gz") and not path.is_dir():
            found.append((spelling, path.name != spelling, path))
    return [path for *_, path in sorted(found)]


def paths_in(folder: Path) -> list[Path]:
    """What lies in a folder; nothing if it can't be read."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def absence(folder: Path, name: str) -> str:
    """That `folder` has no file of this name, and what there is instead."""
    if not folder.exists():
        return f"cannot find {name}: {missing(folder)}"
    where = f"cannot find {name}, gzipped or not, in {full_path(folder)}"
    if not folder.is_dir():
        return f"{where}, which is no folder"
    names = [printable(path.name) for path in paths_in(folder) if not path.name.startswith(".")]
    listed = ", ".join([*names[:SHOWN], *([f"and {len(names) - SHOWN:,} more"] if len(names) > SHOWN else [])])
    return f"{where}, which holds {listed or 'nothing'}"


def read_shape(stream: BinaryIO | gzip.GzipFile, axes: int) -> tuple[int, ...]:
    """Read the header and return the length of each axis. Raises IdxError if it is not that of `axes` axes."""
    header = stream.read(4 + 4 * axes)
    if len(header) < 4 + 4 * axes or header[:4] != MAGIC + bytes([axes]):
        raise IdxError(f"holds no IDX data of {axes} axes: its header is {header.hex(' ')}")
    return struct.unpack(f">{axes}I", header[4:])


def read_tensor(content: bytes, axes: int) -> Tensor:
    """All values of an unpacked file that was verified, as a uint8 tensor of its shape."""
    shape = read_shape(io.BytesIO(content), axes)
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=4 + 4 * axes).view(shape)


@contextmanager
def open_values(file: BinaryIO, axes: int) -> Iterator[tuple[BinaryIO | gzip.GzipFile, tuple[int, ...]]]:
    """The stream of the values of a seekable file, and their shape.

    Raises IdxError if `open_stream` does; also for damage that the block finds.
    """
    with explaining_damage(axes):
        stream, shape = open_stream(file, axes)
        yield stream, shape
        if stream.read(1):
            raise IdxError(f"holds more than the {shape[0]:,} {UNITS[axes]} of its header")


@contextmanager
def explaining_damage(axes: int) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:  # gzip checks its checksum at the end
        raise IdxError(f"is truncated or damaged ({error}); {UNITS[axes]} read from it may be wrong") from error


def open_stream(file: BinaryIO, axes: int) -> tuple[BinaryIO | gzip.GzipFile, tuple[int, ...]]:
    """The stream of a seekable file, after its header, and the shape in that.

    Raises IdxError if an unpacked file has another size than its header says, or a gzipped one would unpack to too
    much.
    """
    gzipped = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    stream = gzip.GzipFile(fileobj=file) if gzipped else file
    shape = read_shape(stream, axes)
    expected = stream.tell() + math.prod(shape)
    if gzipped and expected > max(MAX_RATIO * size, SMALL):
        raise IdxError(f"would unpack to {expected:,} bytes, more than {MAX_RATIO} times its {size:,}: a bomb")
    if not gzipped and expected != size:
        unit = UNITS[axes]
        raise IdxError(f"holds {size:,} bytes; {shape[0]:,} {unit}, as its header says, take {expected:,}")
    return stream, shape


def header_shape(file: BinaryIO, axes: int) -> tuple[int, ...]:
    """The shape of a seekable file, gzipped or not, by its header alone. Raises IdxError if `open_stream` does."""
    with explaining_damage(axes):
        return open_stream(file, axes)[1]


def read_values(file: BinaryIO, axes: int) -> Tensor:
    """All values of a seekable file, gzipped or not, as a uint8 tensor of the shape in its header.

    Raises IdxError if the file is no whole IDX file of `axes` axes, or unpacks to more than it may.
    """
    with open_values(file, axes) as (stream, shape):
        content = bytearray(stream.read(math.prod(shape)))
        check_complete(math.prod(shape) - len(content), shape)
    return torch.from_numpy(np.frombuffer(content, np.uint8).reshape(shape))


def check_values(file: BinaryIO, axes: int) -> tuple[int, ...]:
    """The shape of a seekable file, gzipped or not, that is read to its end in little memory.

    Raises IdxError if `read_values` would.
    """
    with open_values(file, axes) as (stream, shape):
        left = math.prod(shape)
        while left and (chunk := stream.read(min(left, CHUNK))):
            left -= len(chunk)
        check_complete(left, shape)
    return shape


def check_complete(left: int, shape: tuple[int, ...]) -> None:
    if left:
        raise IdxError(f"is truncated: it ends before the last of its {shape[0]:,} {UNITS[len(shape)]}")


def read_images(file: BinaryIO, height: int, width: int) -> Iterator[NDArray[np.uint8]]:
    """Yield the images of a seekable file one at a time, each (height, width) uint8.

    Memory stays that of one image, whatever the header claims. Raises IdxError if the file holds other images, ends
    early, continues after its last image, or is damaged. An unpacked file of a wrong size yields no image.
    """
    with open_values(file, axes=3) as (stream, (count, *shape)):
        if not count or shape != [height, width]:
            raise IdxError(f"holds {count:,} images of {shape[0]} x {shape[1]}, expected some of {height} x {width}")
        for index in range(count):
            content = stream.read(height * width)
            if len(content) < height * width:
                raise IdxError(f"is truncated: it ends in image {index:,} of {count:,}")
            yield np.frombuffer(content, np.uint8).reshape(height, width)
