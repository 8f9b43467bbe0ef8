"""The commands by name, the list of them, and their tab completion.

A command's function is named by text, and imported once its options are right: torch takes seconds.
"""

import re
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, NoReturn

from fmnist_lightning.cli.main import exit_status
from fmnist_lightning.cli.main import main as run_command
from fmnist_lightning.cli.parser import Parser, build_parser, fail
from fmnist_lightning.cli.shell import PROGRAM, VERSION, command, require
from fmnist_lightning.runs.options import (
    CompareOptions,
    ExportOptions,
    JoinOptions,
    PredictOptions,
    TestOptions,
    TrainOptions,
    TuneOptions,
)

# The first sentence of an options class describes its command in the list.
COMMANDS: dict[str, tuple[type[Any], str]] = {
    "train": (TrainOptions, "fmnist_lightning.training.train:train"),
    "test": (TestOptions, "fmnist_lightning.training.evaluate:evaluate"),
    "predict": (PredictOptions, "fmnist_lightning.predict.predict:predict"),
    "join": (JoinOptions, "fmnist_lightning.predict.joining:join"),
    "compare": (CompareOptions, "fmnist_lightning.report.compare:compare"),
    "export": (ExportOptions, "fmnist_lightning.models.export:export"),
    "tune": (TuneOptions, "fmnist_lightning.tune.tune:tune"),
}
SHELLS = ("bash", "zsh", "tcsh")


class Program(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        fail(f"cannot run {self.prog}: {message} (see {self.prog} --help)")


def build_program(prog: str) -> Program:
    """The parser of what precedes a command: options such as `--version`. A wrong one is one line."""
    parser = Program(prog=prog, usage="%(prog)s COMMAND [options]", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=VERSION, help="show the version and exit")
    parser.add_argument(
        "--print_completion",
        metavar="SHELL",
        choices=SHELLS,
        help=f"print the script for tab completion in {', '.join(SHELLS)}, and exit; needs the extra completion",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=False)
    for name, (options, _) in COMMANDS.items():
        commands.add_parser(name, help=first_sentence(options))
    return parser


def first_sentence(options: type[Any]) -> str:
    return re.split(r"\.\s", options.__doc__ or "")[0].removesuffix(".")


def completion(shell: str) -> str:
    """The script by which a shell completes commands, options, choices and file names.

    Raises UserError if shtab is not installed.
    """
    require(["shtab"], "tab completion", "completion")
    from shtab import FILE

    parser = Parser(prog=PROGRAM)
    commands = parser.add_subcommands()
    for name, (options, _) in COMMANDS.items():
        subparser = build_parser(options)
        files = {one.name for one in fields(options) if one.metadata.get("path") or one.type == list[str]}
        for action in subparser._actions:
            if action.dest in files:
                action.complete = FILE  # type: ignore[attr-defined]
        commands.add_subcommand(name, subparser, help=first_sentence(options))
    return parser.get_completion_script(f"shtab-{shell}")


def run(name: str, arguments: Sequence[str] | None = None) -> int:
    """Run a command with `arguments`, by default those of this process, and return the exit status."""
    options, function = COMMANDS[name]
    return run_command(options, function, arguments, command(name))


def main() -> int:
    """Run the command that the first argument names."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in COMMANDS:
        return run(name, arguments)

    def act() -> None:
        shell = build_program(command("").strip()).parse_args([name, *arguments]).print_completion
        print(completion(shell))

    return exit_status(act)
