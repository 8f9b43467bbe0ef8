"""Export a trained model as one file for other programs, verified on a full test set before it gets its name.

`torch.onnx.export(verify=True)` can't do that: it compares the images of the trace alone, black ones here, and only
logs. With a first-layer weight changed by 0.5 it said nothing, and 629 of 2,000 random images got another class.
"""

import io
import json
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from fmnist_lightning.cli import DATA_DIR, require
from fmnist_lightning.data.download import ensure_files
from fmnist_lightning.data.fashion_mnist import IMAGE_SIZE
from fmnist_lightning.data.sources import TITLES, load_images
from fmnist_lightning.errors import UserError
from fmnist_lightning.models.pretrained import SUFFIX, Pretrained, from_file, load_pretrained, to_safetensors
from fmnist_lightning.runs.files import atomic_write, remove_staged
from fmnist_lightning.runs.folders import find_checkpoint, find_run, read_config
from fmnist_lightning.runs.options import ExportOptions

INPUT_NAME, OUTPUT_NAME = "images", "probabilities"
# The operator set that torch's exporter is written in; a later one would only exclude older runtimes.
OPSET = 18
# Sums in another order change a probability by about 1e-6; another weight or a missing scaling by far more.
TOLERANCE = 1e-5

# Images (B, 1, 28, 28) uint8 to probabilities (B, 10) float32.
Predict = Callable[[Tensor], Tensor]


def export(options: ExportOptions) -> None:
    """Write a trained model, verified on the full test set. Raises UserError if it can't be written or verified."""
    source, folder, found_data = find_source(options.run, options.ckpt, Path(options.log_dir))
    if options.format == "onnx":
        require(["onnx", "onnxscript", "onnxruntime"], "ONNX", "export")
    pretrained = load_pretrained(source)
    path = Path(options.output) if options.output else folder / f"{pretrained.card['model']}.{options.format}"
    if path.suffix != f".{options.format}":
        raise UserError(f"cannot write --output {path}: its name does not end in .{options.format}")
    dataset, data_dir = pretrained.card["dataset"], Path(options.data_dir or found_data)
    if dataset not in TITLES:
        raise UserError(f"cannot verify a model of the data set {dataset}: expected one of {', '.join(TITLES)}")
    if dataset != "drawn":
        ensure_files(data_dir)
    images = load_images(dataset, data_dir, train=False).images
    print(
        write_verified(pretrained, FORMATS[options.format], path, [images[:1], *images[1:].split(options.batch_size)])
    )
    print(f"written: {path}, {path.stat().st_size:,} bytes")


def find_source(run: str, ckpt: str | None, log_dir: Path) -> tuple[str, Path, str]:
    """What `load_pretrained` is to load, the folder to write into, and the folder of the data."""
    if run == "packaged" or run.endswith((".ckpt", SUFFIX)):
        if ckpt:
            raise UserError(f"cannot use --ckpt {ckpt}: --run {run} is not a run folder (leave --ckpt out)")
        return run, Path(), DATA_DIR
    folder = find_run(run, log_dir)
    return str(find_checkpoint(folder, ckpt)), folder / "export", read_config(folder, ["data_dir"])["data_dir"]


class Format(NamedTuple):
    """How to write a model to bytes and to run a file of them."""

    runtime: str
    write: Callable[[Pretrained], bytes]
    read: Callable[[Path], Predict]


def write_verified(pretrained: Pretrained, target: Format, path: Path, batches: Sequence[Tensor]) -> str:
    """Write the model to `path` if the staged file predicts what the model predicts; return a summary.

    Raises UserError if it doesn't. Then nothing of it remains, and an earlier file at `path` stays as it was.
    """
    remove_staged(path.parent, path.name)
    with atomic_write(path) as file:
        file.write(target.write(pretrained))
        file.flush()
        probs, seconds = timed(target.read(Path(file.name)), batches)
        expected, torch_seconds = timed(with_softmax(pretrained.net), batches)
        difference = verify(probs, expected, f"cannot write {path}: {target.runtime}")
    count = len(expected)
    return (
        f"{TITLES[pretrained.card['dataset']]}, test set: {target.runtime} gives the model's class for all {count:,} "
        f"images; largest difference of a probability {difference:.1e} (limit {TOLERANCE:.0e})\n"
        f"images/s: {target.runtime} {count / seconds:,.0f}, the model in torch {count / torch_seconds:,.0f}"
    )


def timed(predict: Predict, batches: Sequence[Tensor]) -> tuple[Tensor, float]:
    """Probabilities (n, 10) of all batches, and the seconds that they took."""
    begin = time.perf_counter()
    with torch.inference_mode():
        probs = torch.cat([predict(images) for images in batches])
    return probs, time.perf_counter() - begin


def verify(probs: Tensor, expected: Tensor, subject: str) -> float:
    """The largest difference of a probability (n, 10).

    Raises UserError if it exceeds TOLERANCE or if any class differs, even one that ties within rounding.
    """
    differing = (probs.argmax(dim=1) != expected.argmax(dim=1)).nonzero().flatten().tolist()
    difference = (probs - expected).abs().max().item()
    if differing or not difference <= TOLERANCE:  # NaN is not
        raise UserError(
            f"{subject} gives another class than the model for {len(differing)} of {len(expected):,} images, numbers "
            f"{differing[:3]}, and probabilities that differ by up to {difference:.1e} (install the versions in "
            "requirements.lock, which agree)"
        )
    return difference


def with_softmax(net: nn.Module) -> nn.Module:
    """Images (B, 1, 28, 28) uint8 to probabilities (B, 10)."""
    return nn.Sequential(net, nn.Softmax(dim=1)).eval()


def traced(net: nn.Module) -> ExportedProgram:
    """The net with softmax as a graph, for any number of images from one."""
    images = torch.zeros(2, 1, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8)
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    program = torch.export.export(with_softmax(net), (images,), dynamic_shapes=shapes)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # else the file would hold paths of this machine
    return program


def to_onnx(pretrained: Pretrained) -> bytes:
    """An ONNX file: uint8 `images` to `probabilities`; classes and card are among its metadata properties."""
    import onnx

    program: Any = torch.onnx.export(
        traced(pretrained.net),
        dynamo=True,
        verbose=False,
        opset_version=OPSET,
        input_names=[INPUT_NAME],
        output_names=[OUTPUT_NAME],
    )
    model, card = program.model_proto, pretrained.card
    onnx.helper.set_model_props(model, {"classes": json.dumps(card["classes"]), "card": json.dumps(card)})
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def read_onnx(path: Path) -> Predict:
    import onnxruntime  # type: ignore[import-untyped]

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT_NAME], {INPUT_NAME: images.numpy()})[0])


def to_pt2(pretrained: Pretrained) -> bytes:
    """A torch.export archive, with the card as its extra file `card.json`."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        # torch warns about channels-last weights, but restores them unchanged.
        warnings.filterwarnings("ignore", message="No complete tensor found in the group")
        torch.export.save(traced(pretrained.net), file, extra_files={"card.json": json.dumps(pretrained.card)})
    return file.getvalue()


def read_pt2(path: Path) -> Predict:
    with path.open("rb") as file:
        return torch.export.load(file).module()


FORMATS = {
    "onnx": Format("onnxruntime", to_onnx, read_onnx),
    "pt2": Format("torch.export", to_pt2, read_pt2),
    "safetensors": Format("torch", to_safetensors, lambda path: with_softmax(from_file(path).net)),
}
