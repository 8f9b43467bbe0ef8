"""Read checkpoints as tensors and plain values only: no code in a file can run."""

import contextlib
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fmnist_lightning.errors import UserError, missing, printable

# Increased when older code would misread a newer checkpoint.
FORMAT = 3


class TrainingRecord(NamedTuple):
    """What a checkpoint says about the training up to it."""

    epochs: int  # completed
    seconds: float  # of training and validation, by Lightning's Timer
    saved_at: str | None  # date and time of the checkpoint
    batch_size: int | None
    environment: dict[str, Any]  # of the training; empty if the checkpoint has none
    earlier_environments: list[dict[str, Any]]  # other environments that a resumed training ran in before
    teacher: dict[str, Any] | None  # `Teacher.identity` of the model that it was distilled from


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a `.ckpt` of this project, on the CPU.

    Raises UserError if the file is missing, damaged, of a newer format or not of this project.
    """
    if not path.exists():
        raise UserError(f"cannot read {printable(str(path))}: {missing(path)} (name another checkpoint)")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises exceptions of many types for damaged bytes
        reason = str(error).partition("\n")[0]
        raise UserError(f"cannot read {path} as a checkpoint: it is damaged or something else ({reason})") from error
    if not isinstance(checkpoint, dict) or not all(
        isinstance(checkpoint.get(name), dict) for name in ("state_dict", "hyper_parameters")
    ):
        raise UserError(f"cannot use {path}: it is no checkpoint of this project (no state_dict or hyper_parameters)")
    found = checkpoint.get("format", 0)
    if not isinstance(found, int) or found > FORMAT:
        raise UserError(f"cannot use {path}: its format is {found!r}, newer than {FORMAT} (update this project)")
    return checkpoint


def newest_readable(folder: Path) -> Path | None:
    """The readable checkpoint in `folder` with the most steps; None if there is none."""
    steps = {}
    for path in folder.glob("*.ckpt"):
        with contextlib.suppress(UserError):
            steps[path] = int(read_checkpoint(path).get("global_step", 0))
    return max(steps, key=lambda path: steps[path], default=None)


def load_weights(module: torch.nn.Module, checkpoint: dict[str, Any], path: Path) -> None:
    """Load a checkpoint's weights into `module`. Raises UserError if they belong to another model."""
    try:
        module.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        details = str(error).partition(": ")[2]
        raise UserError(f"cannot load {path}: its weights are of another model than this run's ({details})") from error


def training_record(checkpoint: dict[str, Any], path: Path) -> TrainingRecord:
    """What the checkpoint at `path` says about its training. Raises UserError if it holds weights alone."""
    try:
        timer = checkpoint["callbacks"].get("Timer", {"time_elapsed": {}})
        # A checkpoint after validation still has its epoch's number; one within an epoch has it too, but is incomplete.
        at_end = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"]
        return TrainingRecord(
            epochs=checkpoint["epoch"] + at_end,
            seconds=timer["time_elapsed"].get("train", 0.0),
            saved_at=checkpoint.get("saved_at"),
            batch_size=checkpoint.get("datamodule_hyper_parameters", {}).get("batch_size"),
            environment=checkpoint.get("environment", {}),
            earlier_environments=checkpoint.get("earlier_environments", []),
            teacher=checkpoint.get("teacher"),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"cannot use {path}: it lacks a record of the training ({error!r})") from error
