"""An exported file predicts what the model predicts, in its own runtime, or it does not get its name."""

import contextlib
import json
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import NOWHERE, Program, draw_few, use_mirrors
from PIL import Image

from fmnist_lightning.data.sets.fashion_mnist import CLASSES, FASHION_MNIST
from fmnist_lightning.data.source import DataInfo
from fmnist_lightning.errors import UserError
from fmnist_lightning.models.export import FORMATS, OPSET, TOLERANCE, export, verify
from fmnist_lightning.models.nets import SeedNet, build_net
from fmnist_lightning.models.pretrained import Pretrained, load_pretrained, to_safetensors
from fmnist_lightning.runs.options import ExportOptions

ROOT = Path(__file__).parents[2]


def weights_file(path: Path, net: torch.nn.Module, dataset: str = "drawn") -> Path:
    card = {"format": 1, "model": "seed", "dropout": [0.25, 0.25, 0.5], "classes": list(CLASSES), "dataset": dataset}
    path.write_bytes(to_safetensors(Pretrained(net, card)))
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the weights of a new net, and its exports in `out`; the tests below only read it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("exported")
    run = str(weights_file(folder / "net.safetensors", SeedNet()))
    with pytest.MonkeyPatch.context() as patch:
        draw_few(patch)
        for kind in FORMATS:
            export(ExportOptions(run=run, format=kind, output=str(folder / "out" / f"seed.{kind}")))
    return folder


@pytest.fixture
def here(tmp_path: Path, small_drawn: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, empty."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_export_scales_images_and_returns_probabilities(exported: Path, kind: str) -> None:
    net, predict = load_pretrained(str(exported / "net.safetensors")).net, FORMATS[kind][1]
    run = predict(exported / "out" / f"seed.{kind}")
    for count in (1, 7, 300):
        images = torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8)
        with torch.inference_mode():
            probs, logits = run(images), net(images.float() / 255).double()
        assert (probs.shape, probs.dtype) == ((count, 10), torch.float32)
        torch.testing.assert_close(probs.double(), logits.exp() / logits.exp().sum(1, True), rtol=0, atol=1e-6)


def test_exports_are_one_file_each_with_their_card(exported: Path) -> None:
    files = {path.suffix: path for path in (exported / "out").iterdir()}
    assert files.keys() == {".onnx", ".pt2", ".safetensors"}
    assert files[".safetensors"].read_bytes() == (exported / "net.safetensors").read_bytes()
    card = load_pretrained(str(files[".safetensors"])).card
    onnx.checker.check_model(files[".onnx"], full_check=True)
    model = onnx.load(files[".onnx"], load_external_data=False)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", OPSET)]
    assert all(weights.data_location == onnx.TensorProto.DEFAULT for weights in model.graph.initializer)
    session = onnxruntime.InferenceSession(files[".onnx"])
    assert [(value.name, value.type) for value in session.get_inputs()] == [("images", "tensor(uint8)")]
    properties = session.get_modelmeta().custom_metadata_map
    assert json.loads(properties["classes"]) == list(CLASSES)
    extra = {"card.json": ""}
    torch.export.load(files[".pt2"], extra_files=extra)
    assert json.loads(properties["card"]) == json.loads(extra["card.json"]) == card


def test_export_holds_no_path_of_this_machine(exported: Path) -> None:
    with zipfile.ZipFile(exported / "out" / "seed.pt2") as archive:
        pt2 = b"".join(archive.read(name) for name in archive.namelist())
    for content in (pt2, (exported / "out" / "seed.onnx").read_bytes()):
        assert b"layers.12" in content  # the control: names of layers, next to which a path would be
        for folder in (ROOT, Path(torch.__file__).parent, exported):
            assert str(folder).encode() not in content


def test_export_of_a_run_verifies_every_image(program: Program, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    write, read = FORMATS["safetensors"]

    def counting(path: Path) -> object:
        predict = read(path)
        return lambda images: (sizes.append(len(images)), predict(images))[1]

    monkeypatch.setitem(FORMATS, "safetensors", (write, counting))
    folder = trained / "export"
    folder.mkdir()
    (folder / ".seed.safetensors.abc.staged").write_text("what a killed export left")
    arguments = ("--log_dir", trained.parent, "--ckpt", "last", "--format", "safetensors", "--batch_size", 120)
    status, output = program(export, *arguments)
    assert (status, "all 200 images" in output) == (0, True)
    assert "DRAWN STAND-IN, not Fashion-MNIST" in output
    assert sizes == [1, 120, 79]  # a batch of one image, too
    assert [path.name for path in folder.iterdir()] == ["seed.safetensors"]


@pytest.mark.parametrize("kind", FORMATS)
def test_export_refuses_one_changed_weight(
    program: Program, exported: Path, here: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The file has the weights of `exported`; in the model, one of 225,034 is different."""
    net = load_pretrained(str(exported / "net.safetensors")).net
    with torch.no_grad():
        net.layers[12].bias[3] += 1e-3
    other = weights_file(here.parent / "other.safetensors", net)
    content = (exported / "out" / f"seed.{kind}").read_bytes()
    monkeypatch.setitem(FORMATS, kind, (lambda _: content, FORMATS[kind][1]))
    earlier = here / f"seed.{kind}"
    for before in ([], [earlier]):
        for path in before:
            path.write_bytes(b"earlier")
        status, output = program(export, "--run", other, "--format", kind)
        assert (status, f"cannot write seed.{kind}" in output) == (1, True)
        assert list(here.iterdir()) == before
    assert earlier.read_bytes() == b"earlier"


def test_verify_refuses_a_larger_difference_or_another_class() -> None:
    expected = torch.full((3, 10), 0.1, dtype=torch.float64)
    expected[:, 2] += 0.5
    for change in (0.0, 0.9 * TOLERANCE, 1.1 * TOLERANCE, float("nan")):
        probs = expected.clone()
        probs[1, 5] += change
        with contextlib.nullcontext() if change < TOLERANCE else pytest.raises(UserError):
            assert verify(probs, expected, "cannot write") == pytest.approx(change)
    expected[1, 5] = expected[1, 2] - 1e-7
    probs[1, 5] = expected[1, 2] + 1e-7
    with pytest.raises(UserError, match=r"1 of 3 images, numbers \[1\]"):
        verify(probs, expected, "cannot write")


@pytest.mark.parametrize(("option", "value"), [("--ckpt", "best"), ("--output", "net.pt2")])
def test_export_refuses_options_that_do_not_fit(
    program: Program, exported: Path, here: Path, option: str, value: str
) -> None:
    status, output = program(export, "--run", exported / "net.safetensors", option, value)
    assert (status, f"{option} {value}" in output) == (1, True)


@pytest.mark.parametrize(("dataset", "word"), [("fashion_mnist", "--data_dir"), ("cifar", "cifar")])
def test_export_without_test_images_writes_nothing(
    program: Program, here: Path, monkeypatch: pytest.MonkeyPatch, dataset: str, word: str
) -> None:
    use_mirrors(monkeypatch, NOWHERE)
    real = weights_file(here.parent / "real.safetensors", SeedNet(), dataset)
    status, output = program(export, "--run", real, "--format", "pt2", "--data_dir", here.parent / "empty")
    assert (status, word in output) == (1, True)
    assert list(here.iterdir()) == []


def own_weights(path: Path, model: str = "fine", **changes: object) -> Path:
    """Weights of a new net for a folder of pictures, 9 x 9 with colors, of two classes."""
    data = DataInfo(name="folder", title="Pets", classes=("cat", "dog"), image_shape=(3, 9, 9)).as_plain() | changes
    net = build_net(model, tuple(data["image_shape"]), len(data["classes"]))
    card = {"format": 1, "model": model, "dropout": None, "classes": data["classes"], "dataset": data["name"]}
    training = {"image_size": 9, "channels": 3, "data_dir": "/elsewhere"}
    path.write_bytes(to_safetensors(Pretrained(net, {**card, "data": data, "training": training})))
    return path


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """A folder with pictures of two classes."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 4), ("test", 3)):
        for name in ("cat", "dog"):
            folder = tmp_path / "pets" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(rng.integers(0, 256, (12, 10, 3), np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "pets"


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_export_takes_any_data_and_model(program: Program, here: Path, pets: Path, kind: str) -> None:
    weights = own_weights(here.parent / "pets.safetensors", "timm:test_resnet")
    status, output = program(export, "--run", weights, "--format", kind, "--data_dir", pets)
    assert (status, "all 6 images" in output) == (0, True), output
    assert "Fashion" not in output
    file = here / f"timm_test_resnet.{kind}"  # a colon in a name is no file name on Windows
    assert FORMATS[kind][1](file)(torch.zeros(2, 3, 9, 9, dtype=torch.uint8)).shape == (2, 2)
    if kind == "onnx":
        properties = onnxruntime.InferenceSession(file).get_modelmeta().custom_metadata_map
        assert json.loads(properties["classes"]) == ["cat", "dog"]
        assert json.loads(properties["card"])["data"]["image_shape"] == [3, 9, 9]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"classes": ["cat", "cow"]}, "instead of cat, cow"),
        ({"classes": ["cat", "cow", "dog"]}, "instead of cat, cow, dog"),
        ({"image_shape": [3, 8, 9]}, r"(3, 8, 9)"),
        ({"name": "unnamed", "title": "unnamed data"}, "unnamed data"),
    ],
)
def test_export_refuses_other_data(
    program: Program, here: Path, pets: Path, changes: dict[str, object], word: str
) -> None:
    weights = own_weights(here.parent / "pets.safetensors", **changes)
    status, output = program(export, "--run", weights, "--format", "pt2", "--data_dir", pets)
    assert (status, word in output) == (1, True), output
    assert list(here.iterdir()) == []


@pytest.mark.real_data
def test_export_verifies_all_real_test_images(
    program: Program, trained_once: Path, real_data_dir: Path, tmp_path: Path
) -> None:
    file, target = tmp_path / "net.safetensors", tmp_path / "out" / "seed.onnx"
    net, card = load_pretrained(str(trained_once))
    file.write_bytes(
        to_safetensors(Pretrained(net, {**card, "dataset": "fashion_mnist", "data": FASHION_MNIST.as_plain()}))
    )
    status, output = program(export, "--run", file, "--output", target, "--data_dir", real_data_dir)
    assert (status, "all 10,000 images" in output, target.is_file()) == (0, True, True), output
