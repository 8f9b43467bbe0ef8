"""IDX files, the format of MNIST and Fashion-MNIST: uint8 values, gzipped or not.

The header is two zero bytes, the type (8 for uint8), the number of axes, and the length of each axis as a big-endian
uint32. Source: http://yann.lecun.com/exdb/mnist/.
"""

import gzip
import io
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fmnist_lightning.errors import UserError

MAGIC = bytes([0, 0, 8])  # the number of axes follows
GZIP_MAGIC = bytes([0x1F, 0x8B])
# gzip halves Fashion-MNIST at most; it shrinks blank images to 1/1000.
MAX_RATIO = 200


class IdxError(UserError):
    """The file is no IDX file of the expected shape, or it is truncated or damaged."""


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


def read_images(file: BinaryIO, height: int, width: int) -> Iterator[NDArray[np.uint8]]:
    """Yield the images of a seekable file one at a time, each (height, width) uint8.

    Memory stays that of one image, whatever the header claims. Raises IdxError if the file holds other images, ends
    early, continues after its last image, or is damaged. An unpacked file of a wrong size yields no image.
    """
    gzipped = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    try:
        stream = gzip.GzipFile(fileobj=file) if gzipped else file
        count, *shape = read_shape(stream, axes=3)
        if not count or shape != [height, width]:
            raise IdxError(f"holds {count:,} images of {shape[0]} x {shape[1]}, expected some of {height} x {width}")
        expected = stream.tell() + count * height * width
        if gzipped and expected > MAX_RATIO * size:
            raise IdxError(f"would unpack to {expected:,} bytes, more than {MAX_RATIO} times its {size:,}: a bomb")
        if not gzipped and expected != size:
            raise IdxError(f"holds {size:,} bytes; {count:,} images, as its header says, take {expected:,}")
        for index in range(count):
            content = stream.read(height * width)
            if len(content) < height * width:
                raise IdxError(f"is truncated: it ends in image {index:,} of {count:,}")
            yield np.frombuffer(content, np.uint8).reshape(height, width)
        if stream.read(1):
            raise IdxError(f"holds more than the {count:,} images of its header")
    except (OSError, EOFError, zlib.error) as error:  # gzip checks its checksum at the end
        raise IdxError(f"is truncated or damaged ({error}); images read from it may be wrong") from error
