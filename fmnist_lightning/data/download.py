"""Download Fashion-MNIST's missing or damaged files. torchvision transfers and unpacks them."""

import contextlib
import http.client
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from torchvision.datasets import FashionMNIST
from torchvision.datasets.utils import download_and_extract_archive

from fmnist_lightning.data.fashion_mnist import (
    FILES,
    TORCHVISION_FOLDER,
    DataError,
    candidates,
    find_content,
    read_verified,
)
from fmnist_lightning.runs.files import fsync_and_rename, locked

# Tried after torchvision's own mirror, which has no TLS: the repository of the data set's authors.
AUTHORS_MIRROR = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
MIRROR_VARIABLE = "FMNIST_MIRROR"  # the URL of the user's own mirror, tried first
ATTEMPTS = 2  # rounds over all mirrors
PAUSE_SECONDS = 1.0  # between rounds
SOCKET_TIMEOUT_SECONDS = 10.0  # urllib's default is none
STAGING_PREFIX = ".download-"
HINT = "Connect to the network, or name a folder that holds the four files with --data_dir (or FMNIST_DATA_DIR)."


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def ensure_files(data_dir: Path) -> None:
    """Make sure that `data_dir` holds a good copy of each of the four files, and download the others.

    A complete folder is only read. A damaged file is renamed to NAME.broken once its replacement is here. Raises
    DataError if a file can't be downloaded or written.
    """
    if not (needed := needed_files(data_dir)):
        return
    raw = data_dir / TORCHVISION_FOLDER
    try:
        raw.mkdir(parents=True, exist_ok=True)
        with locked(raw / ".lock", f"another process downloads into {raw}: waiting until it ends", wait=True):
            for stale in raw.glob(f"{STAGING_PREFIX}*"):  # of a killed download
                shutil.rmtree(stale, ignore_errors=True)
            # Checked again: another process may have downloaded them meanwhile.
            for name, problem in needed_files(data_dir).items():
                say(f"{problem}: downloading it")
                with TemporaryDirectory(prefix=STAGING_PREFIX, dir=raw) as staging:
                    downloaded = download(name, problem, Path(staging))
                    set_aside(data_dir, name)
                    fsync_and_rename(downloaded, raw / name)
    except OSError as error:
        problems = "; ".join(needed.values())
        raise DataError(f"{problems}; cannot write to {raw}: {error.strerror or error}. {HINT}") from error


def needed_files(data_dir: Path) -> dict[str, str]:
    """The files without a good copy, each with what is wrong. Warns about damaged copies next to good ones."""
    needed = {}
    for name in FILES:
        content, errors = find_content(data_dir, name)
        if content is None:
            needed[name] = "; ".join(map(str, errors)) or f"cannot find {name} in {data_dir}"
        else:
            for error in errors:
                say(f"warning: {error}; another copy in {data_dir} is good and is used")
    return needed


def download(name: str, problem: str, staging: Path) -> Path:
    """Download and unpack a file into the folder `staging`, from the first mirror that has a good copy.

    Raises DataError with `problem` and each mirror's error if none has one.
    """
    archive = f"{name}.gz"
    own_mirror = os.environ.get(MIRROR_VARIABLE)
    mirrors = [*([own_mirror.rstrip("/") + "/"] if own_mirror else []), *FashionMNIST.mirrors, AUTHORS_MIRROR]
    errors: dict[str, Exception] = {}
    for attempt in range(ATTEMPTS):
        time.sleep(PAUSE_SECONDS if attempt else 0)
        for mirror in mirrors:
            say(f"  from {mirror}")
            try:
                with socket_timeout(SOCKET_TIMEOUT_SECONDS):
                    md5 = dict(FashionMNIST.resources)[archive]
                    download_and_extract_archive(mirror + archive, str(staging), filename=archive, md5=md5)
                read_verified(staging / name, name)
            except (OSError, RuntimeError, http.client.HTTPException, DataError) as error:
                errors[mirror] = error
            else:
                return staging / name
    tried = "".join(f"\n  {mirror}: {error}" for mirror, error in errors.items())
    raise DataError(f"{problem}; no mirror has a good copy:{tried}\n{HINT}")


@contextlib.contextmanager
def socket_timeout(seconds: float) -> Iterator[None]:
    """Set the process's default timeout, since torchvision passes none to urllib."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def set_aside(data_dir: Path, name: str) -> None:
    """Rename each damaged copy of a file to NAME.broken, so that the user can look at it."""
    for path in candidates(data_dir, name):
        if path.exists():
            aside = path.with_name(f"{path.name}.broken")
            path.replace(aside)
            say(f"renamed {path} to {aside.name}")
