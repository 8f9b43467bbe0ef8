"""Many picture files as one tensor, decoded in parallel and cached in one safetensors file.

The cache's key is a digest of each file's name, size, times and inode. The system sets the time of a change (ctime),
and no program can set it back. Two files that were exchanged in one moment differ in their inodes. So a cache never
hides a changed, added, removed or renamed file. On Windows, which has no time of a change, a file that keeps its size
and its time of modification counts as unchanged.
"""

import hashlib
import json
import os
import stat
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import PIL
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from fmnist_lightning.data.pictures import PictureError, Pixels, explain, read_crop, silence_pillow
from fmnist_lightning.data.source import DataError
from fmnist_lightning.errors import WriteError
from fmnist_lightning.runs.files import atomic_write, remove_staged

FORMAT = 1  # of the cache; one of another format is made again
# A file that changes twice within one tick of its clock keeps its time. FAT's ticks are the longest, 2 seconds.
TICK_SECONDS = 2.0
MARGIN_SECONDS = 0.01  # of sleep, whose end is not exact
WORKERS = min(16, os.cpu_count() or 1)  # Pillow releases the GIL while it decodes
CHUNK = 16  # files that a worker decodes before it takes others
BAR_DELAY_SECONDS = 1.0

ImageShape = tuple[int, int, int]


class Decoded(NamedTuple):
    """The readable ones of a sequence of picture files, in their order."""

    images: Tensor  # (n, C, H, W) uint8
    positions: Tensor  # (n,) int64: which files they are
    faults: dict[str, str]  # the others, each with the reason, a predicate


def load_decoded(folder: Path, names: Sequence[str], image_shape: ImageShape, cache: Path) -> tuple[Decoded, bool]:
    """Read the files `names` of `folder` from the file `cache`, or else decode them and write it.

    Also returns whether the cache now holds them; if it can't be written, a line on standard error says so. Raises
    DataError if files change meanwhile.
    """
    silence_pillow()
    key, _ = fingerprint(folder, names, image_shape)
    cached = read_cache(cache, key)
    # What was unreadable by the system's rights may be readable now, with the same times.
    if cached and all(isinstance(read(folder / name, image_shape), str) for name in cached.faults):
        return cached, True
    key, settled = settled_fingerprint(folder, names, image_shape)
    decoded = decode(folder, names, image_shape)
    if fingerprint(folder, names, image_shape)[0] != key:
        raise DataError(f"cannot decode the pictures in {folder}: they changed meanwhile (try again)")
    try:
        if not settled:
            raise OSError("the clock is behind the times of the files")
        write_cache(cache, key, decoded)
    except (OSError, WriteError, SafetensorError) as error:
        reason = error.reason if isinstance(error, WriteError) else getattr(error, "strerror", None) or error
        print(
            f"cannot cache the decoded pictures in {cache.parent}: {reason}; each command decodes them again",
            file=sys.stderr,
        )
        return decoded, False
    return decoded, True


def fingerprint(folder: Path, names: Sequence[str], image_shape: ImageShape) -> tuple[str, float]:
    """A digest of what the result depends on, and the seconds since the last change of a file."""
    digest = hashlib.sha256(repr((FORMAT, PIL.__version__, image_shape)).encode())
    now, newest = time.time(), 0.0
    for name in names:
        try:
            found = (folder / name).stat()
        except OSError as error:
            digest.update(repr((os.fsencode(name), error.errno)).encode())
            continue
        newest = max(newest, found.st_ctime)
        values = (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
        digest.update(repr((os.fsencode(name), values)).encode())
    return digest.hexdigest(), now - newest


def settled_fingerprint(folder: Path, names: Sequence[str], image_shape: ImageShape) -> tuple[str, bool]:
    """The digest once a further change would make another one, and whether that is so after a wait of one tick."""
    key, age = fingerprint(folder, names, image_shape)
    if age <= TICK_SECONDS:
        time.sleep(min(TICK_SECONDS, TICK_SECONDS - age) + MARGIN_SECONDS)
        key, age = fingerprint(folder, names, image_shape)
    return key, age > TICK_SECONDS


def decode(folder: Path, names: Sequence[str], image_shape: ImageShape) -> Decoded:
    """Decode all files in parallel threads, with a progress bar on a terminal if it takes long."""
    images = torch.empty(len(names), *image_shape, dtype=torch.uint8)
    pixels = images.numpy()
    faults: dict[str, str] = {}

    def decode_chunk(start: int) -> int:
        chunk = range(start, min(start + CHUNK, len(names)))
        for index in chunk:
            found = read(folder / names[index], image_shape)
            if isinstance(found, str):
                faults[names[index]] = found
            else:
                pixels[index] = found
        return len(chunk)

    pool = ThreadPoolExecutor(WORKERS)
    try:
        with tqdm(
            total=len(names), desc=f"decoding {folder.name}", unit=" pictures", delay=BAR_DELAY_SECONDS, disable=None
        ) as bar:
            for done in pool.map(decode_chunk, range(0, len(names), CHUNK)):
                bar.update(done)
    finally:
        pool.shutdown(cancel_futures=True)
    positions = torch.tensor([index for index, name in enumerate(names) if name not in faults], dtype=torch.int64)
    ordered = {name: faults[name] for name in names if name in faults}
    return Decoded(images[positions] if faults else images, positions, ordered)


def read(path: Path, image_shape: ImageShape) -> Pixels | str:
    """An image of a file, (C, H, W) uint8, or why there is none: a predicate."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return "is no file"  # a pipe would block
        with path.open("rb") as file:
            return read_crop(file, image_shape)
    except (PictureError, OSError) as error:
        return explain(error)


def write_cache(path: Path, key: str, decoded: Decoded) -> None:
    """Raises WriteError or SafetensorError if the folder can't be written."""
    remove_staged(path.parent, path.name)
    tensors = {"images": decoded.images, "positions": decoded.positions}
    metadata = {"key": key, "faults": json.dumps(decoded.faults), "checksum": checksum(decoded)}
    with atomic_write(path) as file:
        save_file(tensors, file.name, metadata)


def read_cache(path: Path, key: str) -> Decoded | None:
    """What `write_cache` wrote under this key. None if the file is missing, damaged, or of other pictures."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("key") != key:
                return None
            faults = json.loads(metadata["faults"])
            decoded = Decoded(file.get_tensor("images"), file.get_tensor("positions"), faults)
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
    return decoded if metadata.get("checksum") == checksum(decoded) else None


def checksum(decoded: Decoded) -> str:
    """Digest of all content: safetensors finds truncation, but no changed bytes."""
    digest = hashlib.sha256(repr((decoded.images.shape, decoded.faults)).encode(errors="surrogateescape"))
    for tensor in (decoded.images, decoded.positions):
        digest.update(tensor.numpy().data)
    return digest.hexdigest()
