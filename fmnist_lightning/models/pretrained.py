"""Trained weights with their card: one safetensors file, the packaged one or any other, or a run's checkpoint.

The card says how to build the model, what goes in and comes out, how it was trained and how well it does. It is JSON in
the file's metadata. Reading a file runs no code from it.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn

from fmnist_lightning.cli import LOG_DIR, command
from fmnist_lightning.data.sets.fashion_mnist import CLASSES, FILES, IMAGE_SIZE
from fmnist_lightning.errors import UserError
from fmnist_lightning.models.nets import build_net
from fmnist_lightning.runs.checkpoints import read_checkpoint, training_record
from fmnist_lightning.runs.folders import CONFIG, METRICS, find_checkpoint, find_run, read_config
from fmnist_lightning.runs.options import TrainOptions

PACKAGED = Path(__file__).parent / "weights" / "fine.safetensors"
SUFFIX = ".safetensors"
# Counts up when a card means something that older code would misread.
FORMAT = 1
REQUIRED = ("format", "model", "dropout", "classes", "dataset", "weights_sha256")


class Pretrained(NamedTuple):
    """A trained net and its card."""

    net: nn.Module  # in eval mode, on the CPU, float32
    card: dict[str, Any]  # plain JSON values


def load_pretrained(source: str = "packaged", log_dir: str = LOG_DIR) -> Pretrained:
    """The net that `source` names, with its card.

    `packaged` comes with this package; `last` is the newest run in `log_dir`; else a run folder, whose tested
    checkpoint is taken, a `.ckpt` or a `.safetensors` file. Raises UserError if it is missing, damaged or not ours.
    """
    if source == "packaged" or source.endswith(SUFFIX):
        return from_file(PACKAGED if source == "packaged" else Path(source))
    if source.endswith(".ckpt"):
        return from_checkpoint(Path(source))
    if source != "last" and not Path(source).is_dir():
        kinds = f"packaged, last, a run folder such as {log_dir}/version_0, a .ckpt or a {SUFFIX} file"
        raise UserError(f"cannot load {source}: it is no trained model (name {kinds})")
    return from_checkpoint(find_checkpoint(find_run(source, Path(log_dir))))


def to_safetensors(pretrained: Pretrained) -> bytes:
    """The content of a safetensors file with the card in its metadata."""
    card = {**pretrained.card, "weights_sha256": weights_digest(pretrained.net)}
    # One key only: safetensors writes several in random order, and equal weights would give unequal files.
    return serialize_net(pretrained.net, {"card": json.dumps(card)})


def weights_digest(net: nn.Module) -> str:
    """The SHA-256 that identifies trained weights: that of a safetensors file without a card."""
    return hashlib.sha256(serialize_net(net, {"format": "pt"})).hexdigest()


def serialize_net(net: nn.Module, metadata: dict[str, str]) -> bytes:
    # Channels last in the net; safetensors takes contiguous tensors only.
    return serialize({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, metadata)


def from_file(path: Path) -> Pretrained:
    """The net of a safetensors file. Raises UserError if it is missing, damaged or without a card of this version."""
    try:
        with safe_open(path, framework="pt") as file:
            card = json.loads(file.metadata()["card"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        found = {name: card[name] for name in REQUIRED}
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        hint = f"write it again: {command('export')} --format safetensors"
        raise UserError(f"cannot read {path} as safetensors with a card: {error!r} ({hint})") from error
    if (found["format"], found["classes"]) != (FORMAT, list(CLASSES)):
        raise UserError(
            f"cannot use {path}: its card has format {found['format']} and the classes {found['classes']}, and this "
            f"version reads format {FORMAT} and Fashion-MNIST's classes (update the project)"
        )
    net = restore_net(found["model"], found["dropout"], tensors, path)
    # safetensors checks names and sizes only, not values.
    if weights_digest(net) != found["weights_sha256"]:
        raise UserError(f"cannot use {path}: its weights were changed or damaged (copy or export it again)")
    return Pretrained(net, card)


def from_checkpoint(path: Path) -> Pretrained:
    """The net of a `.ckpt`, with a card from its run folder if there is one, else from the checkpoint alone.

    Weights that were trained in 64 bits are rounded to 32. Raises UserError if a file is damaged or not ours.
    """
    checkpoint, run = read_checkpoint(path), path.parent.parent
    options = read_config(run) if (run / CONFIG).is_file() else {}
    options |= checkpoint.get("datamodule_hyper_parameters", {}) | checkpoint["hyper_parameters"]
    weights = checkpoint["state_dict"]
    tensors = {name.removeprefix("net."): weights[name] for name in weights if name.startswith("net.")}
    net = restore_net(options.get("model"), options.get("dropout"), tensors, path)
    dataset, metrics = options.get("dataset"), read_metrics(path, checkpoint)
    # The options that make a recipe; folders and devices of the machine stay out.
    recipe = (*TrainOptions.FIXED, "max_epochs", "patience")
    card = {
        "format": FORMAT,
        "model": options["model"],
        "dropout": options["dropout"],
        "classes": list(CLASSES),
        "input": f"images (B, 1, {IMAGE_SIZE}, {IMAGE_SIZE}), uint8 in 0..255 or floats in 0..1; the model scales them",
        "output": f"logits (B, {len(CLASSES)}), in the order of the classes; softmax makes them probabilities",
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "dataset": dataset,
        **({"data_sha256": dict(FILES)} if dataset == "fashion_mnist" else {}),
        "training": {name: options[name] for name in recipe if name in options},
        **({"teacher": checkpoint["teacher"]} if "teacher" in checkpoint else {}),
        "trained_with": checkpoint.get("environment", {}),
        **({"metrics": metrics} if metrics else {}),
        "licence": "MIT",
    }
    return Pretrained(net, card)


def read_metrics(path: Path, checkpoint: dict[str, Any]) -> dict[str, Any] | None:
    """The run's metrics.json if it describes the checkpoint at `path`, tested without test-time augmentation."""
    file = path.parent.parent / METRICS
    if not file.is_file():
        return None
    try:
        metrics = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"cannot read {file}: {error} (test the run again)") from error
    tested = metrics.get("checkpoint"), metrics.get("checkpoint_epoch"), bool(metrics.get("tta"))
    return metrics if tested == (path.stem, training_record(checkpoint, path).epochs, False) else None


def restore_net(model: Any, dropout: Any, tensors: Mapping[str, Tensor], path: Path) -> nn.Module:
    """A net of MODELS with these weights, in eval mode. Raises UserError if they don't fit it or are not finite."""
    try:
        net = build_net(str(model), (1, IMAGE_SIZE, IMAGE_SIZE), len(CLASSES), dropout).eval()
        net.load_state_dict(tensors)  # copies the values and keeps the net's own memory format
    except (TypeError, ValueError, RuntimeError) as error:
        reason = shorten(str(error), 300)
        raise UserError(f"cannot build the model {model} of {path}: {reason} (name another file)") from error
    if broken := [name for name, tensor in net.state_dict().items() if not tensor.isfinite().all()]:
        raise UserError(f"cannot use {path}: {broken[0]} is not finite, so its training failed (train again)")
    return net
