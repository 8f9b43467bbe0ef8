"""Turn a function into a command: options from a dataclass, exit statuses by the project's contract."""

import json
import math
import os
import signal
import sys
import threading
import time
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from dataclasses import MISSING, field, fields
from importlib import import_module
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_type_hints

from jsonargparse import ArgumentParser, set_parsing_settings
from jsonargparse.typing import PositiveInt, restricted_number_type, restricted_string_type

from fmnist_lightning.errors import SIGNALS, Interrupted, UserError, raise_interrupted

Options = TypeVar("Options")

LOG_DIR = "lightning_logs"
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # names the file in which torch's elastic agent looks for a rank's error

# The docstring below a dataclass's field is the option's help.
set_parsing_settings(docstring_parse_attribute_docstrings=True)

Dataset = Literal["fashion_mnist", "drawn", "auto", "folder", "idx", "mnist", "kmnist", "emnist_letters"]
Accelerator = Literal["auto", "cpu", "gpu", "cuda", "mps"]
Strategy = Literal["auto", "ddp"]
Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed", "64-true"]

LOGGER = "tensorboard|csv|wandb|mlflow"

if TYPE_CHECKING:
    PositiveFinite = float
    Seed = int
    Shift = int
    TopK = int
    NonNegativeFinite = float
    Fraction = float
    MixupAlpha = float
    BatchLimit = int | float
    Loggers = str
else:
    PositiveFinite = restricted_number_type("PositiveFinite", float, [(">", 0), ("<", math.inf)])
    Seed = restricted_number_type("Seed", int, [(">=", 0), ("<", 2**32)])  # what NumPy takes
    Shift = restricted_number_type("Shift", int, [(">=", 0), ("<", 1000)])
    TopK = restricted_number_type("TopK", int, [(">=", 1), ("<=", 100_000)])
    NonNegativeFinite = restricted_number_type("NonNegativeFinite", float, [(">=", 0), ("<", math.inf)])
    Fraction = restricted_number_type("Fraction", float, [(">=", 0), ("<", 1)])
    # With 0.001 a quarter of the draws of torch's beta distribution, in 32 bits, is exactly one half.
    MixupAlpha = restricted_number_type("MixupAlpha", float, [("==", 0), (">=", 0.01)], join="or")
    BatchLimit = PositiveInt | restricted_number_type("PortionOfBatches", float, [(">", 0), ("<=", 1)])
    Loggers = restricted_string_type(
        "Loggers", rf"^({LOGGER})(,({LOGGER}))*$", docstring=f"{LOGGER.replace('|', ', ')}, separated by commas"
    )


def command(name: str) -> str:
    """How a user types one of the project's commands in this installation: `train`, `test` and so on."""
    return f"python scripts/{name}.py"


def default_data_dir() -> str:
    """Where the data is if nothing else says so."""
    return os.environ.get("FMNIST_DATA_DIR") or "data"


def path_option(default: Any = MISSING, *, default_factory: Any = MISSING) -> Any:
    """A field that names a file or folder. `~` and `$NAME` are replaced, as only some libraries would do."""
    if default_factory is not MISSING:
        return field(default_factory=default_factory, metadata={"path": True})
    return field(default=default, metadata={"path": True})


class Parser(ArgumentParser):
    """A required list is typed as plain words without its name. jsonargparse would ask for YAML in one word."""

    def add_argument(self, *names: Any, **kwargs: Any) -> Any:
        if names and not names[0].startswith("-"):
            kwargs = {"help": kwargs.get("help"), "type": str, "nargs": "+"}
        return super().add_argument(*names, **kwargs)


def main(options: type[Any], command: str | Callable[[Any], object]) -> int:
    """Parse the command line into `options`, call `command` with them, and return the exit status.

    `command` is "package.module:function", which is imported once the options are right, or the function itself.
    0 done; 1 a problem that the printed message explains; 130 and 143 after Ctrl-C and SIGTERM. The parser itself
    exits with 2 for wrong options.
    """
    for number in SIGNALS:
        signal.signal(number, raise_interrupted)
    if ERROR_FILE in os.environ:
        threading.Thread(target=end_with_launcher, args=(os.getppid(),), daemon=True).start()
    arguments = sys.argv[1:]
    try:
        parsed = options.parse(arguments) if hasattr(options, "parse") else parse(options, arguments)
        if isinstance(command, str):
            module, _, name = command.partition(":")
            getattr(import_module(module), name)(parsed)
        else:
            command(parsed)
    except Interrupted as interruption:
        # Torch's elastic agent says itself why it ended its ranks.
        if is_rank_zero() and (interruption.advice or ERROR_FILE not in os.environ):
            print(f"\n{interruption}", file=sys.stderr)
        return interruption.exit_status
    except (UserError, OSError) as error:
        report(str(error))
        return getattr(error, "exit_status", 1)
    return 0


def end_with_launcher(launcher: int) -> None:
    """Send this rank SIGTERM once its launcher, which else would do so, was killed."""
    while os.getppid() == launcher:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


def is_rank_zero() -> bool:
    """Whether this process is the only one, or the one of several that speaks for all."""
    # torchrun, which may run in a SLURM job, sets RANK; SLURM's srun sets the other.
    return (os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or "0") == "0"


def report(message: str) -> None:
    """Print an error, or hand it to torch's elastic agent, which prints that of the rank that failed first."""
    if path := os.environ.get(ERROR_FILE):
        Path(path).write_text(json.dumps({"message": message, "timestamp": int(time.time())}), encoding="utf-8")
    else:
        print(f"error: {message}", file=sys.stderr)


def build_parser(options: type[Any], *, exit_on_error: bool = True) -> ArgumentParser:
    """A parser of the fields of a dataclass, flat, with `--config`."""
    parser = Parser(description=options.__doc__, exit_on_error=exit_on_error)
    parser.add_argument("--config", action="config", help="A YAML file of these options.")
    parser.add_class_arguments(options, as_group=False, as_positional=True)
    return parser


def parse(options: type[Options], arguments: Sequence[str]) -> Options:
    """The options on a command line; exits with 2 if one is wrong, with 0 after `--help`."""
    parser = build_parser(options)
    try:
        values = parser.parse_args(with_flags_completed(options, arguments)).as_dict()
        return typed(options, values)
    except (UnicodeError, RecursionError) as error:
        parser.error(f"an option or a file of options can't be read; expected UTF-8 text: {error}")


def parse_values(options: type[Options], values: dict[str, Any], source: str | Path) -> Options:
    """Options from a mapping, such as the content of `source`, a file.

    Raises UserError that names `source` if an option is unknown or ill-typed.
    """
    parser = build_parser(options, exit_on_error=False)
    try:
        return typed(options, parser.parse_object(values).as_dict())
    except (ArgumentError, TypeError) as error:
        raise UserError(f"cannot use {source}: {' '.join(str(error).split())}") from error


def typed(options: type[Options], values: dict[str, Any]) -> Options:
    """The dataclass with plain values, not jsonargparse's. Raises UnicodeError for text that YAML can't hold."""
    plain: dict[str, Any] = {}
    for one in fields(options):  # type: ignore[arg-type]
        value = json.loads(json.dumps(values[one.name]))
        if isinstance(value, str):
            value.encode()
        if value and one.metadata.get("path"):
            value = os.path.expandvars(os.path.expanduser(value))  # noqa: PTH111 (pathlib's refuses unknown users)
        plain[one.name] = tuple(value) if isinstance(value, list) and one.default is not MISSING else value
    return options(**plain)


def with_flags_completed(options: type[Any], arguments: Sequence[str]) -> list[str]:
    """Write `--flag` alone, or before plain words, as jsonargparse wants it: `--flag=true`."""
    hints = get_type_hints(options)
    flags = {f"--{name}" for name, hint in hints.items() if hint is bool}
    takes_words = any(hint == list[str] for hint in hints.values())
    return [
        f"{argument}=true"
        if argument in flags and (after.startswith("-") or (takes_words and after.lower() not in ("true", "false")))
        else argument
        for argument, after in zip_longest(arguments, arguments[1:], fillvalue="--")
    ]


def require(packages: Sequence[str], purpose: str, extra: str) -> None:
    """Raise UserError if a package of one of the project's extras is not installed."""
    try:
        for package in packages:
            import_module(package)
    except ImportError as error:
        raise UserError(
            f"{purpose} needs packages that are not installed ({error}): in the project's folder, "
            f"pip install --editable '.[{extra}]'"
        ) from error
