"""Export a trained model as one file for other programs, verified on a full test set before it gets its name.

`torch.onnx.export(verify=True)` can't do that: it compares the images of the trace alone, black ones here, and only
logs. With a first-layer weight changed by 0.5 it said nothing, and 629 of 2,000 random images got another class.
"""

import io
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from fmnist_lightning.cli import default_data_dir, require
from fmnist_lightning.data.sets import TITLES, load_images
from fmnist_lightning.data.sets.download import ensure_files
from fmnist_lightning.data.sets.fashion_mnist import IMAGE_SIZE
from fmnist_lightning.errors import UserError
from fmnist_lightning.models.pretrained import SUFFIX, Pretrained, from_file, load_pretrained, to_safetensors
from fmnist_lightning.runs.files import atomic_write, remove_staged
from fmnist_lightning.runs.folders import find_checkpoint, find_run, read_config
from fmnist_lightning.runs.options import ExportOptions

INPUT, OUTPUT = "images", "probabilities"
# The operator set that torch's exporter is written in; a later one would only exclude older runtimes.
OPSET = 18
# Sums in another order change a probability by about 1e-6; another weight or a missing scaling by far more.
TOLERANCE = 1e-5

Predict = Callable[[Tensor], Tensor]  # images (B, 1, 28, 28) uint8 to probabilities (B, 10) float32


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
    images = load_images(dataset, data_dir, "test").images
    # The first batch has one image, since a graph can depend on the size of the batch.
    difference = write_verified(pretrained, options.format, path, [images[:1], *images[1:].split(options.batch_size)])
    print(
        f"{TITLES[dataset]}, test set: the {options.format} file gives the model's class for all {len(images):,} "
        f"images; largest difference of a probability {difference:.1e} (limit {TOLERANCE:.0e})\n"
        f"written: {path}, {path.stat().st_size:,} bytes"
    )


def find_source(run: str, ckpt: str | None, log_dir: Path) -> tuple[str, Path, str]:
    """What `load_pretrained` is to load, the folder to write into, and the folder of the data."""
    if run == "packaged" or run.endswith((".ckpt", SUFFIX)):
        if ckpt:
            raise UserError(f"cannot use --ckpt {ckpt}: --run {run} is not a run folder (leave --ckpt out)")
        return run, Path(), default_data_dir()
    folder = find_run(run, log_dir)
    return (
        str(find_checkpoint(folder, ckpt)),
        folder / "export",
        read_config(folder).get("data_dir", default_data_dir()),
    )


def write_verified(pretrained: Pretrained, kind: str, path: Path, batches: Sequence[Tensor]) -> float:
    """Write the model to `path`, and return the largest difference of a probability between file and model.

    Raises UserError if they differ. Then nothing of the export remains, and an earlier file at `path` stays as it was.
    """
    write, read = FORMATS[kind]
    remove_staged(path.parent, path.name)
    with atomic_write(path) as file:
        file.write(write(pretrained))
        file.flush()
        runs = read(Path(file.name)), with_softmax(pretrained.net)
        with torch.inference_mode():
            probs, expected = (torch.cat([run(images) for images in batches]) for run in runs)
        return verify(probs, expected, f"cannot write {path}: its {kind} model")


def verify(probs: Tensor, expected: Tensor, subject: str) -> float:
    """The largest difference of a probability (n, 10). Raises UserError if it exceeds TOLERANCE or a class differs."""
    differing = (probs.argmax(dim=1) != expected.argmax(dim=1)).nonzero().flatten().tolist()
    difference = (probs - expected).abs().max().item()
    if differing or not difference <= TOLERANCE:  # NaN is not
        raise UserError(
            f"{subject} gives another class for {len(differing)} of {len(expected):,} images, numbers {differing[:3]}, "
            f"and probabilities that differ by up to {difference:.1e} (install the versions in requirements.lock)"
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
        traced(pretrained.net), verbose=False, opset_version=OPSET, input_names=[INPUT], output_names=[OUTPUT]
    )
    model, card = program.model_proto, pretrained.card
    onnx.helper.set_model_props(model, {"classes": json.dumps(card["classes"]), "card": json.dumps(card)})
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def read_onnx(path: Path) -> Predict:
    import onnxruntime  # type: ignore[import-untyped]

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


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


# How to write a model to bytes, and how to run a file of them.
FORMATS: dict[str, tuple[Callable[[Pretrained], bytes], Callable[[Path], Predict]]] = {
    "onnx": (to_onnx, read_onnx),
    "pt2": (to_pt2, read_pt2),
    "safetensors": (to_safetensors, lambda path: with_softmax(from_file(path).net)),
}
