"""A trained net as one file for other programs, proven over a whole test set before it gets its name.

Heavy imports stand inside the functions, so that `--help` answers at once.
"""

import io
import json
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from fmnist_lightning.cli import DATA_DIR, require
from fmnist_lightning.data.fashion_mnist import IMAGE_SIZE
from fmnist_lightning.errors import UserError
from fmnist_lightning.models.pretrained import Pretrained, card_path, load_pretrained, read_pair, to_files
from fmnist_lightning.models.proving import Predict, Proof, check_proof, compare, describe_proof, proving_images
from fmnist_lightning.runs.files import atomic_write, remove_staged
from fmnist_lightning.runs.folders import find_checkpoint, find_run, read_config
from fmnist_lightning.runs.options import ExportOptions

Format = Literal["onnx", "pt2", "safetensors"]
RUNTIMES = {"onnx": "onnxruntime", "pt2": "torch.export", "safetensors": "torch"}
INPUT_NAME, OUTPUT_NAME = "images", "probabilities"
# The set of operators that torch's exporter is written in; later ones would only shut older runtimes out.
OPSET = 18


def export(options: ExportOptions) -> None:
    """Write a trained model, verified on the full test set. Raises UserError if it can't be written or verified."""
    source, folder, found_data = find_source(options.run, options.ckpt, Path(options.log_dir))
    if options.format == "onnx":
        require(["onnx", "onnxscript", "onnxruntime"], "ONNX", "export")
    pretrained = load_pretrained(source)
    path = Path(options.output) if options.output else folder / f"{pretrained.card['model']}.{options.format}"
    if path.suffix != f".{options.format}":
        raise UserError(f"cannot write --output {path}: it does not end in .{options.format}, as its format does")
    images = proving_images(pretrained.card["dataset"], Path(options.data_dir or found_data))
    proof = write_proven(pretrained, options.format, path, images.split(options.batch_size))
    print(describe_proof(proof, RUNTIMES[options.format], pretrained.card["dataset"]))
    print(f"written: {path}, {path.stat().st_size:,} bytes")


def find_source(run: str, ckpt: str | None, log_dir: Path) -> tuple[str, Path, str]:
    """What `load_pretrained` is to load, the folder to write into, and the folder of the data."""
    if run == "packaged" or run.endswith((".ckpt", ".safetensors")):
        if ckpt:
            raise UserError(
                f"--ckpt {ckpt} chooses among the checkpoints of a run, and --run {run} is none: leave it out"
            )
        return run, Path(), DATA_DIR
    folder = find_run(run, log_dir)
    options = read_config(folder, required=["data_dir"])
    return str(find_checkpoint(folder, ckpt)), folder / "export", options["data_dir"]


def write_proven(pretrained: "Pretrained", format: Format, path: Path, batches: Sequence["Tensor"]) -> "Proof":  # noqa: A002
    """Write the net to `path`, and a card beside safetensors, when the staged files give what the net gives.

    Raises UserError where they don't; then nothing is left of them, and what had the name before keeps it.
    """
    contents = WRITERS[format](pretrained)
    with ExitStack() as stack:
        staged = []
        for place, content in zip((path, card_path(path)), contents, strict=False):
            remove_staged(place.parent, place.name)
            file = stack.enter_context(atomic_write(place))
            file.write(content)
            file.flush()
            staged.append(Path(file.name))
        proof = compare(READERS[format](*staged), with_softmax(pretrained.net), batches)
        check_proof(proof, RUNTIMES[format], path)
    return proof


def with_softmax(net: "nn.Module") -> "nn.Module":
    """Images (B, 1, 28, 28) uint8 to probabilities (B, 10)."""
    return nn.Sequential(net, nn.Softmax(dim=1)).eval()


def traced(net: "nn.Module") -> "ExportedProgram":
    """The net with softmax as a graph, for any number of images from one."""
    images = torch.zeros(2, 1, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8)
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    program = torch.export.export(with_softmax(net), (images,), dynamic_shapes=shapes)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # else the paths of this machine's files travel with the net
    return program


def to_onnx(pretrained: "Pretrained") -> list[bytes]:
    """An ONNX file's content: uint8 `images` to `probabilities`, classes and card among its metadata properties."""
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
    return [model.SerializeToString()]


def to_pt2(pretrained: "Pretrained") -> list[bytes]:
    """A torch.export archive's content, with the card as its extra file `card.json`."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        # Said of channels-last weights, which come back as they were.
        warnings.filterwarnings("ignore", message="No complete tensor found in the group")
        torch.export.save(traced(pretrained.net), file, extra_files={"card.json": json.dumps(pretrained.card)})
    return [file.getvalue()]


def to_safetensors(pretrained: "Pretrained") -> list[bytes]:
    """The content of a weights file and of its card."""
    return list(to_files(pretrained))


def read_onnx(path: Path) -> "Predict":
    import onnxruntime  # type: ignore[import-untyped]

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT_NAME], {INPUT_NAME: images.numpy()})[0])


def read_pt2(path: Path) -> "Predict":
    with path.open("rb") as file:
        return torch.export.load(file).module()


def read_safetensors(weights: Path, card: Path) -> "Predict":
    return with_softmax(read_pair(weights, card).net)


WRITERS = {"onnx": to_onnx, "pt2": to_pt2, "safetensors": to_safetensors}
READERS: dict[str, Callable[..., "Predict"]] = {"onnx": read_onnx, "pt2": read_pt2, "safetensors": read_safetensors}
