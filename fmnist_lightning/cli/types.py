"""The types that options have: what each takes, and how messages and `--help` say it."""

import json
import math
import os
from dataclasses import MISSING, field, fields
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from jsonargparse.typing import PositiveInt, extend_base_type, restricted_number_type, restricted_string_type

LOG_DIR = "lightning_logs"

# Each data set's name, and the function of SourceOptions that makes it. It is imported when it is used: torch is slow.
SETS = "fmnist_lightning.data.sets"
SOURCES = {
    "fashion_mnist": f"{SETS}.download:fashion_mnist_source",
    "drawn": f"{SETS}.drawn:drawn_source",
    "folder": f"{SETS}.folder:folder_source",
    "idx": f"{SETS}.idx_files:idx_source",
    "mnist": f"{SETS}.torchvision_sets:mnist_source",
    "kmnist": f"{SETS}.torchvision_sets:kmnist_source",
    "emnist_letters": f"{SETS}.torchvision_sets:emnist_letters_source",
}

Accelerator = Literal["auto", "cpu", "gpu", "cuda", "mps"]
Strategy = Literal["auto", "ddp"]
Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed", "64-true"]
LOGGER = "tensorboard|csv|wandb|mlflow"


def check_count(_type: type, value: Any) -> None:
    """Refuse what is no integer above 0. PositiveInt would take a file's 1.0, all batches, for 1."""
    if isinstance(value, (bool, float)) or int(value) < 1:
        raise ValueError(f"{value} does not conform to a positive integer")


if TYPE_CHECKING:
    Dataset = str
    PositiveFinite = float
    Seed = int
    Shift = int
    TopK = int
    NonNegativeFinite = float
    Fraction = float
    MixupAlpha = float
    BatchLimit = int | float
    Loggers = str
    Devices = int | str
    Rates = tuple[float, float, float]
else:
    Dataset = Literal[(*SOURCES, "auto")]
    # The last argument is what `--help` and messages say that an option takes.
    PositiveFinite = restricted_number_type(
        "PositiveFinite", float, [(">", 0), ("<", math.inf)], docstring="a number above 0"
    )
    # What NumPy takes.
    Seed = restricted_number_type("Seed", int, [(">=", 0), ("<", 2**32)], docstring="an integer from 0 to 4294967295")
    Shift = restricted_number_type("Shift", int, [(">=", 0), ("<", 1000)], docstring="an integer from 0 to 999")
    TopK = restricted_number_type("TopK", int, [(">=", 1), ("<=", 100_000)], docstring="an integer from 1 to 100000")
    NonNegativeFinite = restricted_number_type(
        "NonNegativeFinite", float, [(">=", 0), ("<", math.inf)], docstring="a number from 0"
    )
    Fraction = restricted_number_type("Fraction", float, [(">=", 0), ("<", 1)], docstring="a number from 0 to below 1")
    # With 0.001 a quarter of the draws of torch's beta distribution, in 32 bits, is exactly one half.
    MixupAlpha = restricted_number_type(
        "MixupAlpha", float, [("==", 0), (">=", 0.01)], join="or", docstring="0 or a number from 0.01"
    )
    BatchLimit = extend_base_type("BatchCount", int, check_count, docstring="a positive integer")
    BatchLimit |= restricted_number_type(
        "PortionOfBatches", float, [(">", 0), ("<=", 1)], docstring="a fraction up to 1.0"
    )
    Loggers = restricted_string_type(
        "Loggers", rf"^({LOGGER})(,({LOGGER}))*$", docstring=f"{LOGGER.replace('|', ', ')}, separated by commas"
    )
    Devices = restricted_number_type(
        "DeviceCount", int, [(">", 0), ("==", -1)], join="or", docstring="a number or -1 (all)"
    )
    Devices |= restricted_string_type("DeviceList", r"^(auto|\d+,(\d+(,\d+)*)?)$", docstring="auto or ids such as 0,1")
    Rates = Fraction | tuple[Fraction, Fraction, Fraction]


PHRASES = {PositiveInt: "a positive integer", int: "an integer", str: "text", bool: "true or false"}


def default_data_dir() -> str:
    """Where the data is if nothing else says so."""
    return os.environ.get("FMNIST_DATA_DIR") or "data"


def path_option(default: Any = MISSING, *, default_factory: Any = MISSING) -> Any:
    """A field that names a file or folder. `~` and `$NAME` are replaced, as only some libraries would do."""
    if default_factory is not MISSING:
        return field(default_factory=default_factory, metadata={"path": True})
    return field(default=default, metadata={"path": True})


def required_words(options: type[Any]) -> list[str]:
    """How the options without a default are typed. A list is typed as plain words."""
    required = [one for one in fields(options) if one.default is MISSING and one.default_factory is MISSING]
    return [
        f"{one.name} [{one.name} ...]" if one.type == list[str] else f"--{one.name} {one.name.upper()}"
        for one in required
    ]


def expected(hint: Any) -> str:
    """The values of a type, in words. Null, the default of an option that need not be given, is left out."""
    inner = [one for one in get_args(hint) if one is not NoneType]
    if get_origin(hint) is Literal:
        return " or ".join([", ".join(str(value) for value in inner[:-1]), str(inner[-1])][len(inner) == 1 :])
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(expected(one) for one in inner)
    if get_origin(hint) is tuple and inner[-1] is not Ellipsis:
        return f'a list of {len(inner)}, such as "[{", ".join(["0.5"] * len(inner))}]"'
    if get_origin(hint) in (tuple, list):
        example = "a, b" if inner[0] is str else "0.5, 0.5"
        return f'a list such as "[{example}]", each {expected(inner[0])}'
    return PHRASES.get(hint) or hint.__doc__


def plain_text(value: Any) -> str:
    """A value as one types it."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return str(list(value) if isinstance(value, tuple) else value)
