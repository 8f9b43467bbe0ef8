"""Download Fashion-MNIST's missing or damaged files. torchvision transfers and unpacks them."""

import contextlib
import http.client
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from fmnist_lightning.data.sets.fashion_mnist import (
    FASHION_MNIST,
    FILES,
    RAW_FOLDER,
    find_content,
    find_copies,
    load_split,
    read_verified,
    refuse_other_data,
)
from fmnist_lightning.data.source import DataError, DataSource
from fmnist_lightning.runs.files import fsync_and_rename, locked
from fmnist_lightning.runs.options import SourceOptions

# Tried after torchvision's own mirror, which has no TLS: the repository of the data set's authors.
AUTHORS_MIRROR = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
MIRROR_VARIABLE = "FMNIST_MIRROR"  # the URL of the user's own mirror, tried first
ATTEMPTS = 2  # rounds over all mirrors
PAUSE_SECONDS = 1.0  # between rounds
SOCKET_TIMEOUT_SECONDS = 10.0  # urllib's default is none
STAGING_PREFIX = ".download-"
HINT = (
    "Connect to the network, name a folder that holds the four files with --data_dir (or FMNIST_DATA_DIR), or train on "
    "the drawn stand-in with --dataset drawn."
)


def fashion_mnist_source(options: SourceOptions) -> DataSource:
    options.refuse("image_size", "channels", "classes", "skip_unreadable")
    folder = Path(options.data_dir)
    return DataSource(**vars(FASHION_MNIST), load=partial(load_split, folder), prepare=partial(ensure_files, folder))


def ensure_files(data_dir: Path) -> None:
    """Download the files of which `data_dir` holds no good copy. A complete folder is only read.

    Renames a damaged file of torchvision's layout to NAME.broken once its replacement is here, and leaves all others as
    they are. Raises DataError if a file is another data set's, can't be had, or can't be written.
    """
    if not (needed := needed_files(data_dir)):
        return
    raw = data_dir / RAW_FOLDER
    try:
        with exclusive(raw):
            # Checked again: another process may have downloaded them meanwhile.
            for name, problem in needed_files(data_dir).items():
                with TemporaryDirectory(prefix=STAGING_PREFIX, dir=raw) as staging:
                    downloaded = download(name, problem, Path(staging))
                    for path in find_copies(data_dir, name):
                        if path.parent == raw:
                            path.replace(path.with_name(f"{path.name}.broken"))
                    fsync_and_rename(downloaded, raw / name)
    except OSError as error:
        problems = "; ".join(needed.values())
        raise DataError(f"{problems}; cannot write to {raw}: {error.strerror or error}. {HINT}") from error


@contextlib.contextmanager
def exclusive(raw: Path) -> Iterator[None]:
    """Make a folder of downloads, and let one process at a time write to it. Removes what a killed download left."""
    raw.mkdir(parents=True, exist_ok=True)
    with locked(raw / ".lock", f"another process downloads into {raw}: waiting until it ends", wait=True):
        for stale in raw.glob(f"{STAGING_PREFIX}*"):
            shutil.rmtree(stale, ignore_errors=True)
        yield


@contextlib.contextmanager
def socket_timeout() -> Iterator[None]:
    """Limit the wait for a server. torchvision passes no timeout to urllib, so the process's default has to change."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SOCKET_TIMEOUT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def needed_files(data_dir: Path) -> dict[str, str]:
    """The files without a good copy, each with what is wrong. Raises DataError if one is another data set's."""
    needed = {}
    for name in FILES:
        try:
            find_content(data_dir, name)
        except DataError as error:
            needed[name] = str(error)
            for path in find_copies(data_dir, name):
                refuse_other_data(path, name)
    return needed


def download(name: str, problem: str, staging: Path) -> Path:
    """Download and unpack a file into the folder `staging`, from the first mirror that has a good copy.

    Raises DataError with `problem` and each mirror's error if none has one.
    """
    # Not at the top: it takes 2 seconds, and predict and report import this module for the titles of the data sets.
    from torchvision.datasets import FashionMNIST
    from torchvision.datasets.utils import download_and_extract_archive

    archive = f"{name}.gz"
    own_mirror = os.environ.get(MIRROR_VARIABLE)
    mirrors = [*([own_mirror.rstrip("/") + "/"] if own_mirror else []), *FashionMNIST.mirrors, AUTHORS_MIRROR]
    md5 = dict(FashionMNIST.resources)[archive]
    errors: dict[str, Exception] = {}
    with socket_timeout():
        for attempt in range(ATTEMPTS):
            time.sleep(PAUSE_SECONDS if attempt else 0)
            for mirror in mirrors:
                print(f"{problem}: downloading it from {mirror}", file=sys.stderr)
                try:
                    download_and_extract_archive(mirror + archive, str(staging), filename=archive, md5=md5)
                    read_verified(staging / name, name)
                except (OSError, RuntimeError, http.client.HTTPException, DataError) as error:
                    errors[mirror] = error
                else:
                    return staging / name
    tried = "".join(f"\n  {mirror}: {error}" for mirror, error in errors.items())
    raise DataError(f"{problem}; no mirror has a good copy:{tried}\n{HINT}")
