"""Trained weights with their card: one safetensors file, the packaged one or any other, or a run's checkpoint.

The card says how to build the model, what goes in and comes out, how it was trained and how well it does. It is JSON in
the file's metadata. Reading a file runs no code from it.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn

from fmnist_lightning.cli.shell import command
from fmnist_lightning.cli.types import LOG_DIR
from fmnist_lightning.data.sets import KNOWN, recorded_info
from fmnist_lightning.data.source import MAX_CLASSES, DataInfo
from fmnist_lightning.errors import UserError, missing, printable
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

    net: nn.Module  # in eval mode; one of MODELS is on the CPU, in float32
    card: dict[str, Any]  # plain JSON values; `recorded_info` reads its data set


def load_pretrained(source: str = "packaged", log_dir: str = LOG_DIR, net: nn.Module | None = None) -> Pretrained:
    """The net that `source` names, with its card.

    `packaged` comes with this package, and `last` is the newest run in `log_dir`. Any other source is a run folder,
    whose tested checkpoint is taken, a `.ckpt` or a `.safetensors` file. Weights of an own net, which has no name in
    MODELS, are loaded into `net`. Raises UserError if the source is missing, damaged, not ours, or does not fit the
    net.
    """
    if source == "packaged" or source.endswith(SUFFIX):
        return from_file(PACKAGED if source == "packaged" else Path(source), net)
    if source.endswith(".ckpt"):
        return from_checkpoint(Path(source), net)
    if source != "last" and not Path(source).is_dir():
        kinds = f"packaged, last, a run folder such as {log_dir}/version_0, a .ckpt or a {SUFFIX} file"
        reason = "it is no trained model" if Path(source).exists() else missing(source)
        raise UserError(f"cannot load {printable(source)}: {reason} (name {kinds})")
    return from_checkpoint(find_checkpoint(find_run(source, Path(log_dir))), net)


def to_safetensors(pretrained: Pretrained) -> bytes:
    """The content of a safetensors file with the card in its metadata."""
    card = {**pretrained.card, "weights_sha256": weights_digest(pretrained.net)}
    # One key only: safetensors writes several in random order, and equal weights would give unequal files.
    return serialize_net(pretrained.net, {"card": json.dumps(card)})


def weights_digest(net: nn.Module) -> str:
    """The SHA-256 that identifies trained weights: that of a safetensors file without a card."""
    return hashlib.sha256(serialize_net(net, {"format": "pt"})).hexdigest()


def serialize_net(net: nn.Module, metadata: dict[str, str]) -> bytes:
    # safetensors takes contiguous tensors only, and an own net may have others.
    return serialize({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, metadata)


def from_file(path: Path, net: nn.Module | None = None) -> Pretrained:
    """The net of a safetensors file. Raises UserError if it is missing, damaged or without a card of this version."""
    if not path.exists():
        raise UserError(f"cannot read {printable(str(path))}: {missing(path)} (name another file)")
    try:
        with safe_open(path, framework="pt") as file:
            card = json.loads(file.metadata()["card"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        found = {name: card[name] for name in REQUIRED}
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        hint = f"write it again with {command('export')} --format safetensors"
        raise UserError(f"cannot read {path} as safetensors with a card: {error!r} ({hint})") from error
    if found["format"] != FORMAT:
        raise UserError(
            f"cannot use {path}: its card has format {found['format']}, and this version reads format {FORMAT} "
            "(update the project)"
        )
    try:
        info = recorded_info(card)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"cannot use {path}: its card describes no data set: {error!r} (export it again)") from error
    if found["classes"] != list(info.classes):
        raise UserError(
            f"cannot use {path}: its card has the classes {shorten(str(found['classes']), 200)}, and its data set "
            f"{info.title} has others (export it again)"
        )
    net = restore_net(found["model"], info, found["dropout"], tensors, path, net)
    # safetensors checks names and sizes only, not values.
    if weights_digest(net) != found["weights_sha256"]:
        raise UserError(f"cannot use {path}: its weights were changed or damaged (copy or export it again)")
    return Pretrained(net, card)


def from_checkpoint(path: Path, net: nn.Module | None = None) -> Pretrained:
    """The net of a `.ckpt`, with a card from its run folder if there is one, else from the checkpoint alone.

    Weights that were trained in 64 bits are rounded to 32. Raises UserError if a file is damaged or not ours.
    """
    checkpoint, run = read_checkpoint(path), path.parent.parent
    options = read_config(run) if (run / CONFIG).is_file() else {}
    options |= checkpoint.get("datamodule_hyper_parameters", {}) | checkpoint["hyper_parameters"]
    weights, info = checkpoint["state_dict"], checkpoint_info(checkpoint, options.get("dataset"), path)
    tensors = {name.removeprefix("net."): weights[name] for name in weights if name.startswith("net.")}
    model, dropout = options.get("model"), options.get("dropout")
    net = restore_net(model, info, dropout, tensors, path, net)
    metrics = read_metrics(path, checkpoint)
    # The options that make a recipe; folders and devices of the machine stay out.
    recipe = (*TrainOptions.FIXED, "max_epochs", "patience")
    size = ", ".join(map(str, info.image_shape))
    card = {
        "format": FORMAT,
        "model": model,
        "dropout": dropout,
        "classes": list(info.classes),
        "data": info.as_plain(),
        "input": f"images (B, {size}), uint8 in 0..255 or floats in 0..1; the model scales them",
        "output": f"logits (B, {len(info.classes)}), in the order of the classes; softmax makes them probabilities",
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "dataset": info.name,
        "training": {name: options[name] for name in recipe if name in options},
        **({"teacher": checkpoint["teacher"]} if "teacher" in checkpoint else {}),
        "trained_with": checkpoint.get("environment", {}),
        **({"metrics": metrics} if metrics else {}),
        "licence": "MIT",
    }
    return Pretrained(net, card)


def checkpoint_info(checkpoint: dict[str, Any], dataset: Any, path: Path) -> DataInfo:
    """The data set of a checkpoint, also of an older one, or of one that another Trainer and other loaders made.

    Raises UserError if the checkpoint at `path` describes none.
    """
    hparams = checkpoint["hyper_parameters"]
    shape, count, names = (hparams.get(name) for name in ("image_shape", "num_classes", "class_names"))
    try:
        if "data" in checkpoint:
            return recorded_info(checkpoint)
        known = KNOWN.get(dataset)
        if known and (
            (shape is None or tuple(shape) == known.image_shape)
            and count in (None, len(known.classes))
            and (names is None or tuple(names) == known.classes)
        ):
            return known
        if not 0 < count <= MAX_CLASSES:  # before their names take memory
            raise ValueError(f"num_classes is {count}")
        classes = names or map(str, range(count))
        plain = {"name": "unnamed", "title": "unnamed data", "classes": classes, "image_shape": shape}
        return DataInfo.from_plain(plain)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"cannot use {path}: it describes no data set: {error!r} (name a checkpoint of this project)"
        ) from error


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


def restore_net(
    model: Any, info: DataInfo, dropout: Any, tensors: Mapping[str, Tensor], path: Path, net: nn.Module | None = None
) -> nn.Module:
    """`net`, or else a new one of MODELS, with these weights, in eval mode.

    Raises UserError if they don't fit it or are not finite.
    """
    if net is None and model is None:
        raise UserError(
            f"cannot build the model of {path}: it is no model of this project (give an object of its class: "
            f"load_classifier({str(path)!r}, net=MyNet(...)))"
        )
    try:
        if net is None:
            build = partial(build_net, str(model), info.image_shape, len(info.classes), dropout)
            check_sizes(build, tensors)
            net = build()
        net.load_state_dict(tensors)
    except (TypeError, ValueError, RuntimeError) as error:
        reason, name = shorten(str(error), 300), model or type(net).__name__
        raise UserError(f"cannot build the model {name} of {path}: {reason} (name another file)") from error
    if broken := [name for name, tensor in net.state_dict().items() if not tensor.isfinite().all()]:
        raise UserError(f"cannot use {path}: {broken[0]} is not finite, so its training failed (train again)")
    return net.eval()


def check_sizes(build: Callable[[], nn.Module], tensors: Mapping[str, Tensor]) -> None:
    """Raise RuntimeError if these weights don't fit the net, before it takes memory: a card can name any size."""
    try:
        with torch.device("meta"):
            net = build()
    except RuntimeError:  # an own net of MODELS may need values, which this device does not have
        return
    net.load_state_dict(tensors, assign=True)
