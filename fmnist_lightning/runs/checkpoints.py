"""Checkpoints: written whole or not at all, read as tensors and plain values only."""

import contextlib
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fmnist_lightning.errors import UserError

# Counts up when a checkpoint of this project means something that older code would misread.
FORMAT = 2


class TrainingRecord(NamedTuple):
    """What a checkpoint says of the training up to it."""

    epochs: int
    seconds: float
    batch_size: int | None
    environment: dict[str, Any]  # of the training; empty where the checkpoint does not tell
    earlier_environments: list[dict[str, Any]]  # of a resumed training's parts before, where they were others
    teacher: dict[str, Any] | None  # `Teacher.identity` of the net that it was distilled from


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a `.ckpt` of this project, on the CPU. No code in it can run.

    Raises UserError where it is missing, damaged or not ours.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: name another checkpoint, or train first") from error
    except PermissionError as error:
        raise UserError(f"{path} can't be read ({error.strerror}): make it readable") from error
    except Exception as error:  # torch's unpickler meets damaged bytes with exceptions of many kinds
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} can't be read as a checkpoint: it is damaged or no checkpoint ({reason})") from error
    if not isinstance(checkpoint, dict) or not all(
        isinstance(checkpoint.get(name), dict) for name in ("state_dict", "hyper_parameters")
    ):
        raise UserError(f"{path} is no checkpoint of this project: state_dict and hyper_parameters are missing")
    if not isinstance(checkpoint.get("format", 0), int):
        raise UserError(f"{path} has the format {checkpoint['format']!r}; expected a number up to {FORMAT}")
    if checkpoint.get("format", 0) > FORMAT:
        raise UserError(
            f"{path} was written by a newer version of this project (format {checkpoint['format']}; this one reads up "
            f"to {FORMAT}): update the project"
        )
    return checkpoint


def newest_readable(folder: Path) -> Path | None:
    """The checkpoint in `folder` with the most steps of those that can be read; None where none can."""
    steps = {}
    for path in folder.glob("*.ckpt"):
        with contextlib.suppress(UserError):
            steps[path] = int(read_checkpoint(path).get("global_step", 0))
    return max(steps, key=lambda path: steps[path], default=None)


def load_weights(module: torch.nn.Module, checkpoint: dict[str, Any], path: Path) -> None:
    """Put a checkpoint's weights into `module`; raises UserError where they belong to another net."""
    try:
        module.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        details = " ".join(str(error).split())
        raise UserError(f"{path} holds the weights of another net than this run's: {details}") from error


def training_record(checkpoint: dict[str, Any]) -> TrainingRecord:
    """Epochs completed, seconds of training with validation by Lightning's own Timer, and where it took place.

    Raises UserError where it holds weights alone, or something else in place of them.
    """
    if not {"callbacks", "loops", "epoch"} <= checkpoint.keys():
        raise UserError("this checkpoint holds weights without their training; name one that scripts/train.py wrote")
    try:
        return told_record(checkpoint)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"this checkpoint does not tell of its training as scripts/train.py writes it ({error!r})"
        ) from error


def told_record(checkpoint: dict[str, Any]) -> TrainingRecord:
    timer = checkpoint["callbacks"].get("Timer", {"time_elapsed": {}})
    # Saved behind an epoch's validation, its number is not yet counted on; saved in the middle, it is not complete.
    at_end = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"]
    return TrainingRecord(
        epochs=checkpoint["epoch"] + at_end,
        seconds=timer["time_elapsed"].get("train", 0.0),
        batch_size=checkpoint.get("datamodule_hyper_parameters", {}).get("batch_size"),
        environment=checkpoint.get("environment", {}),
        earlier_environments=checkpoint.get("earlier_environments", []),
        teacher=checkpoint.get("teacher"),
    )
