"""Refuses to write pictures and rows where the same command reads them, now or the next time."""

import glob
import os
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatch
from itertools import takewhile
from pathlib import Path

from fmnist_lightning.errors import UserError


def refuse_overlap(option: str, folder: str, files: Callable[[], Iterable[str]], images: Iterable[str]) -> None:
    """Raise UserError where a folder lies in one that is read, or files of these names in it fit a pattern."""
    for image in images:
        if Path(image).is_dir():
            if real(folder).is_relative_to(real(image)):
                raise UserError(f"{option} {folder} lies in {image}, which is read: name another folder")
        elif glob.has_magic(image) and not os.path.lexists(image) and reads(image, folder, files):
            raise UserError(f"{option} {folder} would be read too, by {image}: name another folder")


def real(path: str | Path) -> Path:
    """Without links; Path.resolve fails where they go round in a circle."""
    return Path(os.path.realpath(path))


def reads(pattern: str, folder: str, files: Callable[[], Iterable[str]]) -> bool:
    """Whether `sources.matches` would find a folder that need not be there yet, or a file of these names in it."""
    parts = Path(pattern).parts
    fixed = list(takewhile(lambda part: not glob.has_magic(part), parts))
    wild = parts[len(fixed) :]
    # A link may lead into what is read, or stand there.
    for base, path in {(whole(Path(*fixed)), whole(Path(folder))) for whole in (real, Path.absolute)}:
        if path.is_relative_to(base):
            below = path.relative_to(base).parts
            if "**" not in pattern and any(fits(below[:depth], wild) for depth in range(1, len(below) + 1)):
                return True
            if not pattern.endswith("/") and any(fits((*below, file), wild) for file in files()):
                return True
    return False


def fits(path: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether glob would find a path, part by part; `**` stands for any number of folders that are not hidden."""
    if not path or not pattern:
        return not path and all(part == "**" for part in pattern)
    if pattern[0] == "**" and fits(path, pattern[1:]):
        return True
    if path[0].startswith(".") and not pattern[0].startswith("."):
        return False
    if pattern[0] == "**":
        return fits(path[1:], pattern)
    return fnmatch(path[0], pattern[0]) and fits(path[1:], pattern[1:])
