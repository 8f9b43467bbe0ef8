"""The program: `fmnist NAME`, `python -m fmnist_lightning NAME`, and the mains in scripts/.

It is ready for signals before it imports the rest, which takes 0.1 s, and torch and Lightning, which take seconds.
"""

import sys
from importlib import import_module
from typing import Any

from fmnist_lightning.errors import SETUP, begin


def commands() -> Any:
    """The module of the commands. Without the packages that it needs, the program ends."""
    begin()
    try:
        return import_module("fmnist_lightning.runs.commands")
    except ModuleNotFoundError as error:
        sys.exit(f"error: cannot run with {sys.executable}: {error} ({SETUP})")


def run(name: str) -> int:
    """Run a command with the arguments of this process, and return the exit status."""
    status: int = commands().run(name)
    return status


def main() -> int:
    """Run the command that the first argument names."""
    status: int = commands().main()
    return status


if __name__ == "__main__":
    sys.exit(main())
