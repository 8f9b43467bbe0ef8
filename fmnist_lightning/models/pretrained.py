"""Weights that travel: safetensors with a JSON card beside them, in the package or anywhere else.

The card says how to build the net, what goes in and comes out, how it was trained and how well it does. The weights'
SHA-256 stands in it, so that a swapped or half-copied pair is noticed. Neither file can run code.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from fmnist_lightning.cli import LOG_DIR
from fmnist_lightning.data.fashion_mnist import CLASSES, FILES, IMAGE_SIZE
from fmnist_lightning.errors import UserError
from fmnist_lightning.models.layers import NUM_CLASSES
from fmnist_lightning.models.nets import MODELS
from fmnist_lightning.runs.checkpoints import read_checkpoint, training_record
from fmnist_lightning.runs.files import atomic_write
from fmnist_lightning.runs.folders import CONFIG, METRICS, find_checkpoint, find_run, read_config
from fmnist_lightning.runs.options import TrainOptions

PACKAGED = Path(__file__).parent / "weights" / "fine.safetensors"
SUFFIX = ".safetensors"
# Counts up when a card means something that older code would misread.
FORMAT = 1
# What a card must say before its weights are read.
REQUIRED = ("model", "dropout", "classes", "dataset", "weights")
# The options that make a recipe; folders of the machine and where it was computed stay there.
RECIPE_OPTIONS = (*TrainOptions.FIXED, "max_epochs", "patience")
INPUT = f"images (B, 1, {IMAGE_SIZE}, {IMAGE_SIZE}), uint8 in 0..255 or floats in 0..1; the net scales them"
OUTPUT = f"logits (B, {NUM_CLASSES}), in the order of the classes; softmax makes them probabilities"
NET_PREFIX = "net."  # of the net's weights among a Classifier's


class Pretrained(NamedTuple):
    """A trained net and what is to be known of it."""

    net: nn.Module  # in eval mode, on the CPU, float32
    card: dict[str, Any]  # plain JSON values


def load_pretrained(source: str = "packaged", log_dir: str = LOG_DIR) -> Pretrained:
    """The net that `source` names, with its card.

    `packaged` comes with this package; `last` is the newest run in `log_dir`; else a run folder, whose tested
    checkpoint is taken, a `.ckpt`, or a `.safetensors` with its card of the same name beside it.
    Raises UserError where a file is missing, damaged, another program's, or does not fit the other.
    """
    if source == "packaged" or source.endswith(SUFFIX):
        path = PACKAGED if source == "packaged" else Path(source)
        return read_pair(path, card_path(path))
    if source.endswith(".ckpt"):
        path = Path(source)
        run = path.parent.parent
        return from_checkpoint(path, run if (run / CONFIG).is_file() else None)
    if source != "last" and not Path(source).is_dir():
        kinds = f"packaged, last, a run folder such as {log_dir}/version_0, a .ckpt or a {SUFFIX}"
        raise UserError(f"{source} is no trained net: name {kinds}")
    run = find_run(source, Path(log_dir))
    return from_checkpoint(find_checkpoint(run), run)


def save_pretrained(pretrained: Pretrained, path: Path) -> Path:
    """Write the weights to `path`, which ends in .safetensors or gets that ending, and the card beside; return `path`.

    Each file is whole or not there; a pair of which only one was replaced is refused when it is loaded.
    """
    path = path if path.suffix == SUFFIX else path.with_name(path.name + SUFFIX)
    weights, card = to_files(pretrained)
    with atomic_write(path) as weights_file, atomic_write(card_path(path)) as card_file:
        weights_file.write(weights)
        card_file.write(card)
    return path


def to_files(pretrained: Pretrained) -> tuple[bytes, bytes]:
    """The content of the weights file and of its card, which names the other's SHA-256."""
    content = weights_content(pretrained.net)
    weights = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return content, f"{json.dumps({**pretrained.card, 'weights': weights}, indent=2)}\n".encode()


def weights_content(net: nn.Module) -> bytes:
    """What a .safetensors file of a net's weights holds."""
    # Channels last in the net; safetensors takes rows in plain order only.
    tensors = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
    return to_safetensors(tensors, metadata={"format": "pt"})


def weights_digest(net: nn.Module) -> str:
    """The SHA-256 of a .safetensors file of a net's weights, which tells trained nets apart."""
    return hashlib.sha256(weights_content(net)).hexdigest()


def card_path(weights: Path) -> Path:
    return weights.with_suffix(".json")


def read_pair(weights: Path, card_file: Path) -> Pretrained:
    """The net of a weights file and its card. Raises UserError where they are missing or don't fit each other."""
    if not weights.is_file():
        cure = "the package was installed without its weights" if weights == PACKAGED else "name another file"
        raise UserError(f"{weights} does not exist: {cure}, or train (python scripts/train.py) and name the run")
    card = read_card(card_file)
    content = weights.read_bytes()
    digest, expected = hashlib.sha256(content).hexdigest(), str(card["weights"].get("sha256"))
    if digest != expected:
        raise UserError(
            f"{weights} does not belong to {card_file.name}: its SHA-256 is {digest[:12]}..., expected "
            f"{expected[:12]}..., so one of them is damaged or was swapped: copy or export both files again"
        )
    try:
        tensors = parse_safetensors(content)
    except (SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{weights} can't be read as safetensors ({error}): export it again") from error
    return Pretrained(build_net(card["model"], card["dropout"], tensors, weights), card)


def read_card(path: Path) -> dict[str, Any]:
    """A card that says all that a net needs. Raises UserError where it is missing, damaged or of a newer format."""
    card = read_json(path)
    if not isinstance(card.get("format"), int):
        raise UserError(f"{path} is no card of this project: it lacks a format number; name one that export.py wrote")
    if card["format"] > FORMAT:
        raise UserError(
            f"{path} was written by a newer version of this project (format {card['format']}; this one reads up to "
            f"{FORMAT}): update the project"
        )
    if missing := [name for name in REQUIRED if name not in card]:
        raise UserError(f"{path} lacks {', '.join(missing)}: it was edited; export it again")
    if not isinstance(card["weights"], dict):
        raise UserError(f"{path} names no digest of its weights: it was edited; export it again")
    if card["classes"] != list(CLASSES):
        raise UserError(f"{path} names other classes than this project tells apart ({', '.join(CLASSES)})")
    return card


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError where it is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: copy it with its weights, or export them again") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} can't be read as JSON ({error}): it is damaged; copy or write it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds {type(content).__name__}; expected a JSON object: copy or write it again")
    return content


def from_checkpoint(path: Path, run: Path | None) -> Pretrained:
    """The net of a `.ckpt`, with a card from its run folder where there is one, else from the checkpoint alone.

    Weights that were trained in 64 bits are rounded to 32. Raises UserError where a file is damaged or not ours.
    """
    # Not at the top: it imports Lightning, which packaged weights do without.

    content = read_checkpoint(path)
    parts = [content[name] for name in ("state_dict", "hyper_parameters")]
    parts.append(content.get("datamodule_hyper_parameters", {}))
    if not all(isinstance(part, dict) for part in parts):
        raise UserError(f"{path} is no checkpoint of this project: its weights or options are not named")
    state, of_module, of_data = parts
    options = {**(read_config(run) if run else {}), **of_data, **of_module}
    net = build_net(options.get("model"), options.get("dropout"), net_tensors(state), path)
    return Pretrained(net, make_card(options, net, content, metrics_of(run, path, content) if run else None))


def net_tensors(state: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The net's tensors among those of a Classifier, floats in 32 bits; batch norm also counts its batches."""
    named = {str(name): tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    return {
        name.removeprefix(NET_PREFIX): tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in named.items()
        if name.startswith(NET_PREFIX)
    }


def make_card(
    options: Mapping[str, Any], net: nn.Module, checkpoint: Mapping[str, Any], metrics: dict[str, Any] | None
) -> dict[str, Any]:
    """All that a card says but for the digest of its weights. Without `metrics` it has none: the run was not tested."""
    dataset = options.get("dataset")
    digests = {name: spec.sha256 for name, spec in FILES.items()}
    return {
        "format": FORMAT,
        "model": options["model"],
        "dropout": options["dropout"],
        "classes": list(CLASSES),
        "input": INPUT,
        "output": OUTPUT,
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "dataset": dataset,
        **({"data_sha256": digests} if dataset == "fashion_mnist" else {}),
        "training": {name: options[name] for name in RECIPE_OPTIONS if name in options},
        **({"teacher": checkpoint["teacher"]} if "teacher" in checkpoint else {}),
        "trained_with": checkpoint.get("environment", {}),
        **({"metrics": metrics} if metrics else {}),
        "licence": "MIT",
    }


def metrics_of(run: Path, path: Path, checkpoint: dict[str, Any]) -> dict[str, Any] | None:
    """The run's metrics.json, where it tells of this very checkpoint, not of one before, and of the net alone."""
    if not (run / METRICS).is_file():
        return None
    metrics = read_json(run / METRICS)
    tested = metrics.get("checkpoint"), metrics.get("checkpoint_epoch"), bool(metrics.get("tta"))
    return metrics if tested == (path.stem, training_record(checkpoint).epochs, False) else None


def build_net(model: Any, dropout: Any, tensors: Mapping[str, Tensor], path: Path) -> nn.Module:
    """A net of MODELS with these weights, in eval mode. Raises UserError where they are not its own, or not numbers."""
    if str(model) not in MODELS:
        raise UserError(f"{path} holds the net {model}; this version has {', '.join(MODELS)}: update the project")
    try:
        net = MODELS[model](dropout).eval()
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} names no dropout rates that {model} takes ({error}): export it again") from error
    check_tensors(tensors, net, path)
    net.load_state_dict(tensors)  # copies the values and keeps the net's own memory format
    return net


def check_tensors(tensors: Mapping[str, Tensor], net: nn.Module, path: Path) -> None:
    """Raise UserError where names, shapes or dtypes are not the net's, or a value is not finite."""
    found, expected = describe(tensors), describe(net.state_dict())
    if differing := sorted(name for name in expected | found if expected.get(name) != found.get(name)):
        name = differing[0]
        raise UserError(
            f"{path} holds the weights of another net: {name} is {found.get(name, 'missing')}, expected "
            f"{expected.get(name, 'no such tensor')} ({len(differing)} differ in all); name the file of this net"
        )
    if broken := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise UserError(f"{path} holds weights that are not finite ({broken[0]}): its training failed; train again")


def describe(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Shape and dtype of each tensor, as a message names them."""
    return {
        name: f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}" for name, tensor in tensors.items()
    }
