"""An exported file answers as the net does, in its own runtime, or it does not get its name."""

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import NOWHERE, Program, use_mirrors
from torch.nn import functional as F

from fmnist_lightning.cli import parse
from fmnist_lightning.data.drawn import load_drawn
from fmnist_lightning.data.fashion_mnist import CLASSES, load_split
from fmnist_lightning.models import export as exporting
from fmnist_lightning.models.export import OPSET, export
from fmnist_lightning.models.nets import SeedNet
from fmnist_lightning.models.pretrained import Pretrained, load_pretrained, save_pretrained

ROOT = Path(__file__).parents[2]
FORMATS = ("onnx", "pt2", "safetensors")


def weights_file(path: Path, net: torch.nn.Module, dataset: str) -> Path:
    card = {"format": 1, "model": "seed", "dropout": [0.25, 0.25, 0.5], "classes": list(CLASSES), "dataset": dataset}
    return save_pretrained(Pretrained(net, card), path)


@pytest.fixture
def net_file(tmp_path: Path, small_drawn: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The weights of a fresh net, said to be trained on drawn garments; the current folder is another one."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    torch.manual_seed(0)
    return weights_file(tmp_path / "net.safetensors", SeedNet(), "drawn")


def reference_probs(net_file: Path, images: torch.Tensor) -> np.ndarray:
    """Scaling and softmax spelled out."""
    with torch.inference_mode():
        logits = load_pretrained(str(net_file)).net(images.float() / 255).double().numpy()
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def run_onnx(path: Path, images: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images.numpy()})[0]


def run_pt2(path: Path, images: torch.Tensor) -> np.ndarray:
    with torch.inference_mode():
        return torch.export.load(path).module()(images).numpy()


RUNNERS = {"onnx": run_onnx, "pt2": run_pt2}


@pytest.mark.parametrize("kind", RUNNERS)
def test_scaling_and_softmax_are_inside_for_any_number_of_images(program: Program, net_file: Path, kind: str) -> None:
    assert program(export, "--run", net_file, "--format", kind)[0] == 0
    images = load_drawn(train=False).images
    for count in (1, 2, 7, 1000):
        batch = images.repeat(5, 1, 1, 1)[:count]
        probs = RUNNERS[kind](Path(f"seed.{kind}"), batch)
        assert probs.shape == (count, 10)
        assert probs.dtype == np.float32
        np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-6)
        np.testing.assert_allclose(probs, reference_probs(net_file, batch), atol=1e-6)


def test_exported_weights_are_the_nets_bit_for_bit(program: Program, net_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "mine.safetensors"
    assert program(export, "--run", net_file, "--format", "safetensors", "--output", other)[0] == 0
    assert other.read_bytes() == net_file.read_bytes()
    assert {path.name for path in other.parent.iterdir()} == {"mine.safetensors", "mine.json"}
    assert load_pretrained(str(other)).card == load_pretrained(str(net_file)).card


@pytest.mark.parametrize("kind", FORMATS)
def test_three_lines_say_how_the_file_compared(program: Program, net_file: Path, kind: str) -> None:
    status, output = program(export, "--run", net_file, "--format", kind)
    assert status == 0
    proof, speed, written = output.splitlines()
    assert proof.startswith("DRAWN STAND-IN, not Fashion-MNIST, test set: 200 images;")
    assert "gives another class for 0 of them;" in proof
    assert "limit 1e-05" in proof
    assert speed.startswith("images/s: ")
    assert written == f"written: seed.{kind}, {Path(f'seed.{kind}').stat().st_size:,} bytes"


def test_an_onnx_file_is_one_file_that_the_checker_passes(program: Program, net_file: Path) -> None:
    assert program(export, "--run", net_file)[0] == 0
    assert [path.name for path in Path().iterdir()] == ["seed.onnx"]
    onnx.checker.check_model("seed.onnx", full_check=True)
    model = onnx.load("seed.onnx", load_external_data=False)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", OPSET)]
    assert all(weights.data_location == onnx.TensorProto.DEFAULT for weights in model.graph.initializer)


def test_a_program_without_torch_runs_the_onnx_file_and_finds_the_classes_in_it(
    program: Program, net_file: Path
) -> None:
    assert program(export, "--run", net_file)[0] == 0
    images = load_drawn(train=False).images[:3]
    np.save("images.npy", images.numpy())
    user = """
import json, sys, numpy, onnxruntime
session = onnxruntime.InferenceSession("seed.onnx", providers=["CPUExecutionProvider"])
[probs] = session.run(["probabilities"], {"images": numpy.load("images.npy")})
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
card = json.loads(session.get_modelmeta().custom_metadata_map["card"])
assert "torch" not in sys.modules
print(json.dumps({"classes": [classes[label] for label in probs.argmax(axis=1)], "dataset": card["dataset"]}))
"""
    printed = subprocess.run([sys.executable, "-c", user], check=True, capture_output=True, text=True).stdout
    expected = [CLASSES[label] for label in reference_probs(net_file, images).argmax(axis=1)]
    assert json.loads(printed) == {"classes": expected, "dataset": "drawn"}


def test_a_pt2_file_has_the_card_in_it(program: Program, net_file: Path) -> None:
    assert program(export, "--run", net_file, "--format", "pt2")[0] == 0
    extra = {"card.json": ""}
    torch.export.load("seed.pt2", extra_files=extra)
    assert json.loads(extra["card.json"]) == load_pretrained(str(net_file)).card


@pytest.mark.parametrize("kind", RUNNERS)
def test_no_path_of_this_machine_travels_with_a_net(program: Program, net_file: Path, kind: str) -> None:
    assert program(export, "--run", net_file, "--format", kind)[0] == 0
    content = Path(f"seed.{kind}").read_bytes()
    if kind == "pt2":
        with zipfile.ZipFile("seed.pt2") as archive:
            content = b"".join(archive.read(name) for name in archive.namelist())
    assert b"layers.12" in content  # what it would stand beside
    for folder in (ROOT, Path(torch.__file__).parent, net_file.parent):
        assert str(folder).encode() not in content


def test_a_runs_export_goes_into_its_folder(program: Program, trained: Path) -> None:
    status, output = program(export, "--log_dir", trained.parent, "--format", "pt2", "--ckpt", "last")
    assert status == 0, output
    assert [path.name for path in (trained / "export").iterdir()] == ["seed.pt2"]


def tampered(write: Callable[[Pretrained], list[bytes]]) -> Callable[[Pretrained], list[bytes]]:
    """Writes a net of which one of 225,034 weights is another one."""

    def write_tampered(pretrained: Pretrained) -> list[bytes]:
        net = SeedNet().eval()
        net.load_state_dict(pretrained.net.state_dict())
        with torch.no_grad():
            net.layers[12].bias[3] += 1e-3
        return write(Pretrained(net, pretrained.card))

    return write_tampered


@pytest.mark.parametrize("kind", FORMATS)
def test_one_tampered_weight_is_refused_and_leaves_no_file(
    program: Program, net_file: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setitem(exporting.WRITERS, kind, tampered(exporting.WRITERS[kind]))
    status, output = program(export, "--run", net_file, "--format", kind)
    assert status == 1
    assert f"seed.{kind} was not written" in output
    assert list(Path().iterdir()) == []


def test_a_refused_file_leaves_the_one_before_as_it_was(
    program: Program, net_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert program(export, "--run", net_file, "--format", "pt2")[0] == 0
    before = Path("seed.pt2").read_bytes()
    monkeypatch.setitem(exporting.WRITERS, "pt2", tampered(exporting.WRITERS["pt2"]))
    assert program(export, "--run", net_file, "--format", "pt2")[0] == 1
    assert Path("seed.pt2").read_bytes() == before


def test_what_a_killed_export_left_is_swept(program: Program, net_file: Path) -> None:
    for name in (".seed.safetensors.abc.staged", ".seed.json.abc.staged"):
        Path(name).write_text("half")
    assert program(export, "--run", net_file, "--format", "safetensors")[0] == 0
    assert {path.name for path in Path().iterdir()} == {"seed.safetensors", "seed.json"}


def test_a_swapped_weights_file_is_not_exported(program: Program, net_file: Path, tmp_path: Path) -> None:
    net_file.write_bytes(weights_file(tmp_path / "other", SeedNet(), "drawn").read_bytes())
    status, output = program(export, "--run", net_file)
    assert status == 1
    assert "damaged or was swapped" in output


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_its_cure(
    program: Program, net_file: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    status, output = program(export, "--run", net_file)
    assert status == 1
    assert f"import of {package} halted" in output
    assert "pip install --editable '.[export]'" in output


@pytest.mark.parametrize("ckpt", ["best", "last"])
def test_a_checkpoint_is_chosen_of_a_run_alone(program: Program, net_file: Path, ckpt: str) -> None:
    status, output = program(export, "--run", net_file, "--ckpt", ckpt)
    assert status == 1
    assert f"--ckpt {ckpt} chooses among the checkpoints of a run" in output


def test_an_unknown_format_ends_with_2(program: Program) -> None:
    status, output = program(export, "--format", "tflite")
    assert status == 2
    assert 'key "format"' in output


def test_an_output_of_another_ending_is_refused(program: Program, net_file: Path) -> None:
    status, output = program(export, "--run", net_file, "--output", "net.pt2")
    assert status == 1
    assert "--output net.pt2 does not end in .onnx" in output


def test_without_the_test_set_nothing_is_written(
    program: Program, net_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_mirrors(monkeypatch, NOWHERE)
    real = weights_file(tmp_path / "real.safetensors", SeedNet(), "fashion_mnist")
    status, output = program(export, "--run", real, "--data_dir", tmp_path / "empty")
    assert status == 1
    assert "--data_dir" in output
    assert "--dataset" not in output  # which export.py does not have
    assert list(Path().iterdir()) == []


def test_a_net_of_an_unknown_data_set_is_refused(program: Program, net_file: Path, tmp_path: Path) -> None:
    other = weights_file(tmp_path / "other.safetensors", SeedNet(), "cifar")
    status, output = program(export, "--run", other)
    assert status == 1
    assert "data set is cifar; expected fashion_mnist or drawn" in output


def test_help_waits_for_no_heavy_import() -> None:
    program = "import sys, fmnist_lightning.exporting; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_help_names_every_option(program: Program) -> None:
    status, output = program(export, "--help")
    assert status == 0
    assert all(f"--{option}" in output for option in parse(export, []))


@pytest.fixture(scope="module")
def quick_net() -> SeedNet:
    """A net after 40 steps on real images, if they are there: a fresh net's classes are all but ties."""
    folder = os.environ.get("FMNIST_DATA_DIR")
    torch.manual_seed(0)
    net = SeedNet()
    if folder:
        images, labels = load_split(Path(folder), train=True)
        optimizer = torch.optim.Adam(net.parameters())
        for step in torch.arange(40 * 100).split(100):
            optimizer.zero_grad()
            F.cross_entropy(net(images[step]), labels[step]).backward()
            optimizer.step()
    return net


@pytest.mark.real_data
@pytest.mark.parametrize("kind", FORMATS)
def test_on_the_whole_genuine_test_set_each_class_is_the_same(
    program: Program, real_data_dir: Path, quick_net: SeedNet, tmp_path: Path, kind: str
) -> None:
    file = weights_file(tmp_path / "net.safetensors", quick_net, "fashion_mnist")
    target = tmp_path / "out" / f"seed.{kind}"
    status, output = program(export, "--run", file, "--format", kind, "--output", target, "--data_dir", real_data_dir)
    assert status == 0, output
    assert output.startswith("Fashion-MNIST, test set: 10,000 images;")
    assert target.is_file()
