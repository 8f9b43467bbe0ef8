"""Fetches Fashion-MNIST's files where they are missing or broken; torchvision transfers and unpacks them."""

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

from filelock import FileLock, Timeout

from fmnist_lightning.data.fashion_mnist import (
    FILES,
    TORCHVISION_FOLDER,
    DataError,
    candidates,
    find_content,
    read_checked,
)
from fmnist_lightning.runs.files import fsync_and_rename

# After torchvision's own mirror, which is http: the https copy in the repository of the data set's authors.
AUTHORS_MIRROR = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
MIRROR_VARIABLE = "FMNIST_MIRROR"  # the address of a mirror of the user's own, tried first
ATTEMPTS = 2  # rounds over all mirrors
PAUSE_SECONDS = 1.0  # between rounds
SOCKET_TIMEOUT_SECONDS = 10.0  # urllib's default is to wait for ever
LOCK_NOTICE_SECONDS = 1.0
STAGING_PREFIX = ".download-"
CURE = "Connect to the network, or name a folder that holds the four files with --data_dir (or FMNIST_DATA_DIR)."


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def ensure_files(data_dir: Path) -> None:
    """Make sure that each of the four files is in `data_dir`, whole; fetch those that are not.

    A folder that holds them all is only read. A broken file is set aside as NAME.broken once its successor has come.
    Raises DataError where that can't be done.
    """
    if not (needed := needed_files(data_dir)):
        return
    raw = data_dir / TORCHVISION_FOLDER
    try:
        raw.mkdir(parents=True, exist_ok=True)
        with download_lock(raw):
            for stale in raw.glob(f"{STAGING_PREFIX}*"):  # a killed download's
                shutil.rmtree(stale, ignore_errors=True)
            # Looked up again: another process may have fetched them meanwhile.
            for name, problem in needed_files(data_dir).items():
                say(f"{problem}. Fetching it.")
                with TemporaryDirectory(prefix=STAGING_PREFIX, dir=raw) as staging:
                    fetched = fetch(name, problem, Path(staging))
                    set_aside(data_dir, name)
                    fsync_and_rename(fetched, raw / name)
    except OSError as error:
        problems = "; ".join(needed.values())
        raise DataError(f"{problems}; and {raw} can't be written ({error.strerror or error}). {CURE}") from error


def needed_files(data_dir: Path) -> dict[str, str]:
    """The files without a good copy, each with what is wrong. Tells of broken copies beside good ones."""
    needed = {}
    for name in FILES:
        content, faults = find_content(data_dir, name)
        if content is None:
            needed[name] = "; ".join(map(str, faults)) or f"{name} is not in {data_dir}"
        else:
            for fault in faults:
                say(f"warning: {fault}. Another copy in {data_dir} is good and is used.")
    return needed


@contextlib.contextmanager
def download_lock(raw: Path) -> Iterator[None]:
    """One process downloads into a folder at a time; another says that it waits."""
    lock = FileLock(raw / ".lock")
    try:
        lock.acquire(timeout=LOCK_NOTICE_SECONDS)
    except Timeout:
        say(f"another process is downloading into {raw}; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def fetch(name: str, problem: str, staging: Path) -> Path:
    """Download and unpack one file in the folder `staging`, from the first mirror that gives it whole.

    Raises DataError with each mirror's answer where none does.
    """
    # Here, since most runs have their data and can spare the second that the import takes.
    from torchvision.datasets import FashionMNIST
    from torchvision.datasets.utils import download_and_extract_archive

    archive = f"{name}.gz"
    own_mirror = os.environ.get(MIRROR_VARIABLE)
    mirrors = [*([own_mirror.rstrip("/") + "/"] if own_mirror else []), *FashionMNIST.mirrors, AUTHORS_MIRROR]
    answers: dict[str, Exception] = {}
    for attempt in range(ATTEMPTS):
        time.sleep(PAUSE_SECONDS if attempt else 0)
        for mirror in mirrors:
            say(f"  from {mirror}")
            try:
                with socket_timeout(SOCKET_TIMEOUT_SECONDS):
                    md5 = dict(FashionMNIST.resources)[archive]
                    download_and_extract_archive(mirror + archive, str(staging), filename=archive, md5=md5)
                read_checked(staging / name, name)
            except (OSError, RuntimeError, http.client.HTTPException, DataError) as error:
                answers[mirror] = error
            else:
                return staging / name
    tried = "".join(f"\n  {mirror}: {error}" for mirror, error in answers.items())
    raise DataError(f"{problem}, and no mirror gave it:{tried}\n{CURE}")


@contextlib.contextmanager
def socket_timeout(seconds: float) -> Iterator[None]:
    """torchvision passes no time-out to urllib, which then takes the process's default."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def set_aside(data_dir: Path, name: str) -> None:
    """Rename each broken copy of a file to NAME.broken, for its owner to look at."""
    for path in candidates(data_dir, name):
        if path.exists():
            aside = path.with_name(f"{path.name}.broken")
            path.replace(aside)
            say(f"{path} is set aside as {aside.name}")
