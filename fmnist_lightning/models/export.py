"""Export a trained model as one file for other programs, verified on a full test set before it gets its name.

`torch.onnx.export(verify=True)` can't do that: it compares the images of the trace alone, black ones here, and only
logs. With a first-layer weight changed by 0.5 it said nothing, and 629 of 2,000 random images got another class.
"""

import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from fmnist_lightning.cli.parser import parse_values
from fmnist_lightning.cli.shell import require
from fmnist_lightning.cli.types import SOURCES, default_data_dir
from fmnist_lightning.data.sets import find_source, recorded_info
from fmnist_lightning.data.source import difference
from fmnist_lightning.errors import UserError
from fmnist_lightning.models.pretrained import SUFFIX, Pretrained, from_file, load_pretrained, to_safetensors
from fmnist_lightning.runs.files import atomic_write, remove_staged
from fmnist_lightning.runs.folders import find_checkpoint, find_run
from fmnist_lightning.runs.options import ExportOptions, SourceOptions, names, read_options, values_of

INPUT, OUTPUT = "images", "probabilities"
# The operator set that torch's exporter is written in; a later one would only exclude older runtimes.
OPSET = 18
# Sums in another order change a probability by about 1e-6; another weight or a missing scaling by far more.
TOLERANCE = 1e-5

Predict = Callable[[Tensor], Tensor]  # images (B, C, H, W) uint8 to probabilities (B, num_classes) float32


def export(options: ExportOptions) -> None:
    """Write a trained model, verified on the full test set. Raises UserError if it can't be written or verified."""
    source, run = find_model(options.run, options.ckpt, Path(options.log_dir))
    if options.format == "onnx":
        require(["onnx", "onnxscript", "onnxruntime"], "ONNX", "export")
    pretrained = load_pretrained(source)
    # A model of timm has a colon in its name.
    name = re.sub(r"[^\w.-]", "_", pretrained.card["model"])
    path = Path(options.output) if options.output else (run / "export" if run else Path()) / f"{name}.{options.format}"
    if path.suffix != f".{options.format}":
        raise UserError(f"cannot write --output {path}: its name does not end in .{options.format}")
    images = load_test_images(pretrained.card, run, options.data_dir, source)
    # The first batch has one image, since a graph can depend on the size of the batch.
    error = write_verified(pretrained, options.format, path, [images[:1], *images[1:].split(options.batch_size)])
    print(
        f"{recorded_info(pretrained.card).title}, test set: the {options.format} file gives the model's class for all "
        f"{len(images):,} images; largest difference of a probability {error:.1e} (limit {TOLERANCE:.0e})\n"
        f"written: {path}, {path.stat().st_size:,} bytes"
    )


def find_model(run: str, ckpt: str | None, log_dir: Path) -> tuple[str, Path | None]:
    """What `load_pretrained` is to load, and the run folder that it is from, if one is named."""
    if run == "packaged" or run.endswith((".ckpt", SUFFIX)):
        if ckpt:
            raise UserError(f"cannot use --ckpt {ckpt}: --run {run} is not a run folder (leave --ckpt out)")
        return run, None
    folder = find_run(run, log_dir)
    return str(find_checkpoint(folder, ckpt)), folder


def load_test_images(card: dict[str, Any], run: Path | None, data_dir: str | None, source: str) -> Tensor:
    """The test images (n, C, H, W) uint8 of the data set that a model was trained on, by the options of its training.

    Raises UserError if they can't be loaded, or are of other data.
    """
    info = recorded_info(card)
    if info.name not in SOURCES:
        raise UserError(
            f"cannot verify {source} on {info.title}: no --dataset loads it (use `write_verified` of {__name__} with "
            "images of yours)"
        )
    # A card can come from anybody, and its folder would be another machine's.
    training = card.get("training")
    recorded = training if isinstance(training, dict) else {}
    values = {name: recorded[name] for name in names(SourceOptions) if name in recorded}
    values |= values_of(read_options(run), SourceOptions) if run else {"data_dir": default_data_dir()}
    values |= {"dataset": info.name, **({"data_dir": data_dir} if data_dir else {})}
    data = find_source(parse_values(SourceOptions, values, source))
    data.prepare()
    if found := difference(info, data):
        raise UserError(f"cannot verify {source} on {found} (name its data with --data_dir)")
    return data.load("test").images


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
    """The largest difference of a probability (n, num_classes).

    Raises UserError if it exceeds TOLERANCE or a class differs.
    """
    differing = (probs.argmax(dim=1) != expected.argmax(dim=1)).nonzero().flatten().tolist()
    error = (probs - expected).abs().max().item()
    if differing or not error <= TOLERANCE:  # NaN is not
        raise UserError(
            f"{subject} gives another class for {len(differing)} of {len(expected):,} images, numbers {differing[:3]}, "
            f"and probabilities that differ by up to {error:.1e} (install the versions in requirements.lock)"
        )
    return error


def with_softmax(net: nn.Module) -> nn.Module:
    """Images (B, C, H, W) uint8 to probabilities (B, num_classes)."""
    return nn.Sequential(net, nn.Softmax(dim=1)).eval()


def traced(pretrained: Pretrained) -> ExportedProgram:
    """The net with softmax as a graph, for any number of images from one."""
    images = torch.zeros(2, *recorded_info(pretrained.card).image_shape, dtype=torch.uint8)
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    program = torch.export.export(with_softmax(pretrained.net), (images,), dynamic_shapes=shapes)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # else the file would hold paths of this machine
    return program


def to_onnx(pretrained: Pretrained) -> bytes:
    """An ONNX file: uint8 `images` to `probabilities`; classes and card are among its metadata properties."""
    import onnx

    program: Any = torch.onnx.export(
        traced(pretrained), verbose=False, opset_version=OPSET, input_names=[INPUT], output_names=[OUTPUT]
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
    torch.export.save(traced(pretrained), file, extra_files={"card.json": json.dumps(pretrained.card)})
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
