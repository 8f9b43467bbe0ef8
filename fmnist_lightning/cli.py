"""From a function to a program: options from its signature and docstring, exit statuses by the project's contract."""

import inspect
import json
import math
import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import ArgumentError, ArgumentParser, auto_parser
from jsonargparse.typing import extend_base_type, restricted_number_type

from fmnist_lightning.errors import ReportedError, UserError
from fmnist_lightning.interrupts import SIGNALS, Interrupted, raise_interrupted
from fmnist_lightning.ranks import end_with_parent, is_first, is_supervised, launched, leave_last_words
from fmnist_lightning.runs import CONFIG, find_resumed

DATA_DIR = os.environ.get("FMNIST_DATA_DIR") or "data"
LOG_DIR = "lightning_logs"
# Options that name a file or folder, or may. A shell replaces no `~` behind `=`, and nothing in a recipe; Lightning and
# torchvision replace it and `$NAME` in some of the places that take a path, so here it is done for all of them.
PATH_OPTIONS = (
    "ckpt", "data_dir", "file", "folder", "log_dir", "keras_python", "output", "pictures", "recipe", "resume", "run",
    "run_folder", "save_inputs", "space", "study", "teacher", "weights",
)  # fmt: skip

Dataset = Literal["fashion_mnist", "drawn", "auto"]
Accelerator = Literal["auto", "cpu", "gpu", "cuda", "mps"]
Strategy = Literal["auto", "ddp"]
Precision = Literal["auto", "32-true", "bf16-mixed", "64-true"]


def check_rate(_: type, rate: float) -> None:
    """Raise ValueError for a rate that `models.Dropout` can't give: one random byte decides over one activation."""
    if not 0 <= rate < 1 or rate * 256 % 1:
        raise ValueError(f"expected a whole number of 256ths in [0, 1), such as 0.125 or {round(rate * 256) / 256}")


def check_mixup_alpha(_: type, alpha: float | str) -> None:
    """Raise ValueError for one that `augment.mix` can't draw with: torch's beta distribution has 32 bits.

    A quarter of its draws is exactly one half with 0.001, where it should be nearly none; with 1e300 all are nearly 0.
    """
    if not (float(alpha) == 0 or 0.01 <= float(alpha) <= 100):
        raise ValueError("expected 0, for no mixing, or 0.01 to 100, such as 0.2")


if TYPE_CHECKING:
    Seed = int
    BatchSize = int
    Shift = int
    PositiveFinite = float
    NonNegativeFinite = float
    MixupAlpha = float
    Rate = float
    Share = float
else:
    Seed = restricted_number_type("Seed", int, [(">=", 0), ("<", 2**32)])  # what NumPy takes
    BatchSize = restricted_number_type("BatchSize", int, [(">", 0), ("<", 2**31)])  # more than any memory has
    Shift = restricted_number_type("Shift", int, [(">=", 0), ("<", 28)])  # by 28 an image is out of sight
    PositiveFinite = restricted_number_type("PositiveFinite", float, [(">", 0), ("<", math.inf)])
    NonNegativeFinite = restricted_number_type("NonNegativeFinite", float, [(">=", 0), ("<", math.inf)])
    Share = restricted_number_type("Share", float, [(">=", 0), ("<", 1)])
    Rate = extend_base_type("Rate", float, check_rate)
    MixupAlpha = extend_base_type("MixupAlpha", float, check_mixup_alpha)


class Parser(ArgumentParser):
    """A list that a command can't do without is typed without its name: one word or more, each taken as it is.

    jsonargparse would ask for YAML in one word, and read a file named `[1]` or `null` as something else.
    """

    def add_argument(self, *names: Any, **kwargs: Any) -> Any:
        if names and not names[0].startswith("-"):
            kwargs = {"help": kwargs.get("help"), "type": str, "nargs": "+"}
        return super().add_argument(*names, **kwargs)


def run(command: Callable[..., Any]) -> int:
    """Parse the command line, call `command`, and return the exit status.

    0 done; 1 a problem that the printed message explains; 130 and 143 after Ctrl-C and SIGTERM. The parser itself
    exits with 2 for wrong options.
    """
    for number in SIGNALS:
        signal.signal(number, raise_interrupted)
    try:
        if launched():
            end_with_parent()
        command(**parse(command, sys.argv[1:]))
    except Interrupted as interruption:
        # Whoever started this process with others may have ended it because of one of them, and says so itself.
        if is_first() and (interruption.advice or not is_supervised()):
            print(f"\n{interruption}", file=sys.stderr)
        return interruption.exit_status
    except ReportedError as end:
        return end.exit_status
    except (UserError, OSError) as error:
        if not leave_last_words(str(error)):
            print(f"error: {error}", file=sys.stderr)
        return getattr(error, "exit_status", 1)
    return 0


def parse(command: Callable[..., Any], arguments: list[str]) -> dict[str, Any]:
    """The options of `command` as plain values; exits with 2 where they are wrong, with 0 after `--help`.

    Where a run is to go on and no `--config` is given, the run's own options hold. Raises UserError where there is
    no such run.
    """
    parser = auto_parser(command, as_positional=True, parser_class=Parser)
    arguments = complete_flags(command, arguments)
    options = plain_options(parser, arguments)
    if options.get("resume"):
        run, checkpoint = find_resumed(options["resume"], Path(options["log_dir"]))
        # Found once: the config may name another log folder, and another run may be the last a moment later.
        found = checkpoint if options["resume"].endswith(".ckpt") else run
        config = [] if options["config"] else [f"--config={run / CONFIG}"]
        options = plain_options(parser, [*config, *arguments, f"--resume={found}"])
    return {name: value for name, value in options.items() if name != "config"}


def plain_options(parser: ArgumentParser, arguments: list[str]) -> dict[str, Any]:
    """The options that `parser` finds, as values that YAML and a safe checkpoint can hold, paths in full."""
    try:
        options = parser.parse_args(arguments).as_dict()
        paths = {name: in_full(options[name]) for name in PATH_OPTIONS if isinstance(options.get(name), str)}
    except (UnicodeError, RecursionError) as error:
        parser.error(f"an option or a file of options can't be read; expected UTF-8 text: {error}")
    # jsonargparse's restricted numbers are classes of their own.
    values = {name: json.loads(json.dumps(value)) for name, value in options.items() if name != "config"}
    return {"config": options.get("config"), **values, **paths}


def checked_options(command: Callable[..., Any], values: dict[str, Any], source: Path) -> dict[str, Any]:
    """Values of options of `command` as it would have them. Raises UserError where it would not take one.

    `source` is the file that they were read from.
    """
    parser = auto_parser(command, parser_class=Parser, exit_on_error=False)
    try:
        options = parser.parse_object(values).as_dict()
    except ArgumentError as error:
        raise UserError(f"{source} was edited, or is another program's: {' '.join(str(error).split())}") from error
    return {name: json.loads(json.dumps(options[name])) for name in values}


def in_full(path: str) -> str:
    """With `~` and `$NAME` replaced. Raises UnicodeError where no YAML file can hold it."""
    path.encode()
    return os.path.expandvars(os.path.expanduser(path))  # noqa: PTH111 (pathlib's raises where no such user is)


def complete_flags(command: Callable[..., Any], arguments: list[str]) -> list[str]:
    """`--flag` alone means `--flag true`, which jsonargparse asks for in full.

    Where a command takes words without a name, only a truth value behind a flag belongs to it.
    """
    parameters = inspect.signature(command).parameters.values()
    flags = {f"--{parameter.name}" for parameter in parameters if parameter.annotation is bool}
    takes_words = any(parameter.kind is parameter.POSITIONAL_OR_KEYWORD for parameter in parameters)
    return [
        f"{argument}=true"
        if argument in flags and (after.startswith("-") or (takes_words and after.lower() not in ("true", "false")))
        else argument
        for argument, after in zip_longest(arguments, arguments[1:], fillvalue="--")
    ]


def require(packages: Sequence[str], purpose: str, extra: str) -> None:
    """Raise UserError where a package of one of the project's extras is not installed."""
    try:
        for package in packages:
            import_module(package)
    except ImportError as error:
        raise UserError(
            f"{purpose} needs packages that are not all here ({error}): in the project's folder, "
            f"pip install --editable '.[{extra}]'"
        ) from error
