"""How a user types the project's commands, programs and paths in this installation."""

import os
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from fmnist_lightning import __version__
from fmnist_lightning.errors import SETUP, UserError

PROGRAM = "fmnist"  # the console command
PACKAGE = Path(__file__).resolve().parent.parent
SCRIPTS = PACKAGE.parent / "scripts"  # in a checkout
VERSION = f"fmnist-lightning {__version__}"


def command(name: str) -> str:
    """How a user types one of the project's commands in this installation: `train`, `test` and so on."""
    started = Path(sys.argv[0])
    if started.resolve().parent == SCRIPTS:
        return f"{python()} {quoted(started.with_name(f'{name}.py'))}"
    if started.stem == PROGRAM:
        return f"{PROGRAM if shutil.which(PROGRAM) == sys.argv[0] else quoted(sys.argv[0])} {name}"
    return f"{python()} -m {PACKAGE.name} {name}"


def python() -> str:
    """How a user types this Python: by its name if the shell finds it by that; else its path."""
    this = Path(sys.executable)
    for name in ("python", "python3", this.name):
        # In an environment it is a link to another folder's Python, which has other packages.
        found = shutil.which(name)
        if found and Path(found).parent.resolve() == this.parent.resolve() and this.samefile(found):
            return name
    return shortest(this)


def program(name: str, module: str) -> str:
    """How a user types a program of this environment, which is `python -m module` too."""
    folder = sysconfig.get_path("scripts")
    installed, found = shutil.which(name, path=folder), shutil.which(name)
    if not installed:
        return f"{python()} -m {module}"
    return name if found and Path(found).samefile(installed) else shortest(Path(installed))


def shortest(path: Path) -> str:
    """The absolute path of a program or the one from the working folder, as a user types it."""
    relative = str(path) if path.drive != Path.cwd().drive else os.path.relpath(path)
    if os.sep not in relative:
        relative = os.path.join(os.curdir, relative)  # noqa: PTH118 (pathlib's drops the dot)
    return quoted(min(str(path), relative, key=len))


def quoted(path: str | Path) -> str:
    """A path as a user types it in a shell, so that no command takes it for an option or for a home."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith(("-", "~")) else text)


def named(function: str) -> Callable[[Any], Any]:
    """The function that "package.module:function" names."""
    module, _, name = function.partition(":")
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        raise UserError(f"cannot run with {sys.executable}: {error} ({SETUP})") from error


def expanded(path: str) -> str:
    """A path with `~` and `$NAME` replaced."""
    return os.path.expandvars(os.path.expanduser(path))  # noqa: PTH111 (pathlib's refuses unknown users)


def require(packages: Sequence[str], purpose: str, extra: str) -> None:
    """Raise UserError if a package of one of the project's extras is not installed."""
    try:
        for package in packages:
            import_module(package)
    except ImportError as error:
        in_checkout = (PACKAGE.parent / "pyproject.toml").is_file()
        wanted = f"--editable '{PACKAGE.parent}[{extra}]'" if in_checkout else f"'fmnist-lightning[{extra}]'"
        raise UserError(f"{purpose} needs packages that are not installed ({error}): pip install {wanted}") from error
