"""Download Fashion-MNIST's missing or damaged files. torchvision transfers and unpacks them."""

import contextlib
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import shorten
from urllib.parse import urlsplit
from urllib.request import getproxies

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
from fmnist_lightning.errors import WriteError, full_path, printable
from fmnist_lightning.runs.files import fsync_and_rename, locked, make_folder, writing
from fmnist_lightning.runs.folders import WRITE_ERRORS
from fmnist_lightning.runs.options import SourceOptions

# Tried after torchvision's own mirror, which has no TLS: the repository of the data set's authors.
AUTHORS_MIRROR = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
MIRROR_VARIABLE = "FMNIST_MIRROR"  # the URL of the user's own mirror, tried first
ATTEMPTS = 2  # rounds over all mirrors
PAUSE_SECONDS = 1.0  # between rounds
SOCKET_TIMEOUT_SECONDS = 10.0  # urllib's default is none
STAGING_PREFIX = ".download-"
HINT = (
    f"Connect to the network, name a folder that holds {', '.join(FILES)}, gzipped or not, with --data_dir (or "
    "FMNIST_DATA_DIR), or train on the drawn stand-in with --dataset drawn."
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
    if data_dir.is_file():
        raise DataError(f"cannot use {full_path(data_dir)} as the folder of the data: it is a file (name its folder)")
    if not (needed := needed_files(data_dir)):
        return
    raw = data_dir / RAW_FOLDER
    try:
        with writing(raw), exclusive(raw):
            mirrors = find_mirrors()
            # Checked again: another process may have downloaded them meanwhile.
            for name, problem in needed_files(data_dir).items():
                with TemporaryDirectory(prefix=STAGING_PREFIX, dir=raw) as staging:
                    downloaded = download(name, needed.get(name, problem), mirrors, Path(staging))
                    for path in find_copies(data_dir, name):
                        if path.parent == raw:
                            path.replace(path.with_name(f"{path.name}.broken"))
                    fsync_and_rename(downloaded, raw / name)
    except WriteError as error:
        problems = "; ".join(needed.values())
        raise DataError(f"{problems}; cannot write {full_path(error.path)}: {error.reason}. {HINT}") from error


@contextlib.contextmanager
def exclusive(raw: Path) -> Iterator[None]:
    """Make a folder of downloads, and let one process at a time write to it. Removes what a killed download left.

    At the end it removes the lock, and the folders that it made if they are empty.
    """
    lock, made = raw / ".lock", [folder for folder in (raw, *raw.parents) if not folder.exists()]
    try:
        make_folder(raw)
        with locked(lock, f"another process downloads into {full_path(raw)}: waiting until it ends", wait=True):
            for stale in raw.glob(f"{STAGING_PREFIX}*"):
                shutil.rmtree(stale, ignore_errors=True)
            try:
                yield
            finally:
                with contextlib.suppress(OSError):  # Windows keeps an open file
                    lock.unlink()
    finally:
        with contextlib.suppress(OSError):
            for folder in made:
                folder.rmdir()


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


def find_mirrors() -> list[str]:
    """Where to download from, in this order. Warns of a mirror of the user's that is no URL, and leaves it out."""
    # Not at the top: it takes 2 seconds, and predict and report import this module for the titles of the data sets.
    from torchvision.datasets import FashionMNIST

    mirrors = [*FashionMNIST.mirrors, AUTHORS_MIRROR]
    own_mirror = os.environ.get(MIRROR_VARIABLE, "").strip()
    if own_mirror and is_mirror(own_mirror):
        mirrors.insert(0, own_mirror.rstrip("/") + "/")
    elif own_mirror:
        found = printable(re.sub("//.*@", "//***@", own_mirror))  # without a password
        print(
            f"WARNING: cannot use {MIRROR_VARIABLE}={found}: expected http://HOST/FOLDER/, without a password (name a "
            "folder of this machine with --data_dir)",
            file=sys.stderr,
        )
    return mirrors


def is_mirror(url: str) -> bool:
    """Whether urllib takes this URL with the name of a file at its end."""
    try:
        parts = urlsplit(url)
        known = bool(parts.hostname) and parts.port != 0
    except ValueError:  # a bracket without its partner, or no port
        return False
    plain = re.fullmatch(r"[!-~]+", url) and not set(url) & set("@?#")
    return parts.scheme in ("http", "https") and known and bool(plain)


def download(name: str, problem: str, mirrors: Sequence[str], staging: Path) -> Path:
    """Download and unpack a file into the folder `staging`, from the first mirror that has a good copy.

    Raises DataError with `problem` and each mirror's error if none has one.
    """
    from torchvision.datasets import FashionMNIST  # not at the top: as above
    from torchvision.datasets.utils import download_and_extract_archive

    archive = f"{name}.gz"
    md5 = dict(FashionMNIST.resources)[archive]
    errors: dict[str, str] = {}
    with socket_timeout():
        for attempt in range(ATTEMPTS):
            time.sleep(PAUSE_SECONDS if attempt else 0)
            for mirror in mirrors:
                print(f"{problem} (downloading it from {mirror})", file=sys.stderr)
                try:
                    download_and_extract_archive(mirror + archive, str(staging), filename=archive, md5=md5)
                    read_verified(staging / name, name)
                except Exception as error:
                    errors[mirror] = download_fault(error)
                else:
                    return staging / name
    tried = "".join(f"\n  {mirror}: {error}" for mirror, error in errors.items())
    raise DataError(f"{problem}\nno mirror has a good copy{proxy_notice()}:{tried}\n{HINT}")


def download_fault(error: Exception) -> str:
    """Why a download failed, in one line. Raises `error` if a file can't be written, as on a full disk.

    Beside OSError, urllib and torchvision raise many types for a malformed address, proxy or answer.
    """
    if getattr(error, "errno", None) in WRITE_ERRORS:
        raise error
    return printable(shorten(str(error) or type(error).__name__, 300))


def proxy_notice() -> str:
    """Which variables send downloads through a proxy, if any do: that may be the cause."""
    names = [f"{kind}_proxy" for kind in getproxies() if kind in ("http", "https", "all")]
    return f" (through {' and '.join(names)})" if names else ""
