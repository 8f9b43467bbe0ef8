"""Images in any form give the model the same pixels; what is no image is refused with one message."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import fmnist_lightning
from fmnist_lightning.data.pictures import PictureError
from fmnist_lightning.data.sets.drawn import draw
from fmnist_lightning.data.sets.fashion_mnist import CLASSES, FASHION_MNIST, load_split
from fmnist_lightning.errors import UserError
from fmnist_lightning.models.pretrained import PACKAGED, load_pretrained, to_safetensors
from fmnist_lightning.predict import classifier
from fmnist_lightning.predict.classifier import PictureClassifier, Prediction, choose_device, load_classifier
from fmnist_lightning.predict.pictures import load_picture

ROOT = Path(__file__).parents[2]
EXAMPLE = re.compile(r"^( *)from fmnist_lightning import load_classifier\n(?:\1\S.*\n)+", re.MULTILINE)
GARMENTS = torch.cat([draw(name, 1, torch.Generator().manual_seed(0)) for name in CLASSES])  # (10, 28, 28) uint8
BOOT = GARMENTS[9].numpy()


@pytest.fixture(scope="session")
def classify() -> PictureClassifier:
    return load_classifier(device="cpu")


def on_white(width: int = 96, height: int = 84) -> Image.Image:
    """A dark boot on white, as a shop shows it."""
    return Image.fromarray(255 - BOOT).resize((width, height), Image.Resampling.BILINEAR)


@pytest.fixture
def boot(tmp_path: Path) -> Path:
    on_white().save(tmp_path / "boot.png")
    return tmp_path / "boot.png"


def reference(classify: PictureClassifier, images: Tensor) -> Tensor:
    """Scaling and softmax spelled out; images (B, 28, 28) uint8."""
    with torch.inference_mode():
        powers = classify.net(images[:, None].float() / 255).double().exp()
    return (powers / powers.sum(dim=1, keepdim=True)).float()


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_load_classifier_loads_every_source_alike(trained: Path, tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(to_safetensors(load_pretrained(str(trained))))
    checkpoint = shutil.copy(trained / "checkpoints" / "best.ckpt", tmp_path / "alone.ckpt")
    expected = load_classifier(str(trained), device="cpu")
    for source in ("last", str(checkpoint), str(weights)):
        found = load_classifier(source, device="cpu", log_dir=str(trained.parent))
        assert found.card["dataset"] == "drawn", source
        assert torch.equal(found(GARMENTS).probs, expected(GARMENTS).probs), source
    packaged = load_classifier(device="cpu")
    assert packaged.card == load_pretrained(str(PACKAGED)).card
    assert not torch.equal(packaged(GARMENTS).probs, expected(GARMENTS).probs)


@pytest.mark.parametrize("as_type", [torch.asarray, Tensor.numpy], ids=["tensor", "array"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(28, 28), (1, 28, 28), (10, 28, 28), (10, 1, 28, 28)], ids=str)
def test_classifier_takes_data_of_any_shape_and_dtype(
    classify: PictureClassifier, shape: tuple[int, ...], dtype: torch.dtype, as_type: Callable[[Tensor], Any]
) -> None:
    images = GARMENTS if shape[0] == 10 else GARMENTS[9:]
    values = images.reshape(shape) if dtype == torch.uint8 else (images.to(dtype) / 255).reshape(shape)
    found = classify(as_type(values)).probs
    assert (found.dtype, found.device.type) == (torch.float32, "cpu")
    assert_close(found, reference(classify, images))


def test_classifier_takes_paths_images_and_pixels_alike(classify: PictureClassifier, boot: Path) -> None:
    grey = np.asarray(on_white())
    opaque = np.dstack([grey, grey, grey, np.full_like(grey, 255)])
    expected = reference(classify, torch.tensor(load_picture(boot, FASHION_MNIST).pixels))
    pixels = [grey, grey[..., None], opaque[..., :3], opaque]
    floats = [(each - 0.25).clip(0) / 255 for each in pixels]  # which are rounded
    for picture in (str(boot), boot, on_white(), *pixels, *floats, *map(torch.tensor, pixels + floats)):
        assert_close(classify(picture).probs, expected)


def test_classifier_negates_pictures_but_not_data(classify: PictureClassifier) -> None:
    expected = classify(BOOT).probs
    as_colours = np.dstack([255 - BOOT] * 3)
    assert torch.equal(classify(as_colours).probs, expected)
    assert torch.equal(classify(Image.fromarray(255 - BOOT)).probs, expected)
    assert not torch.equal(classify(255 - BOOT).probs, expected)


def test_load_classifier_passes_invert_on(classify: PictureClassifier, boot: Path) -> None:
    for invert in ("auto", "always", "never"):
        forced = load_classifier(device="cpu", invert=invert)
        assert_close(forced(boot).probs, classify(load_picture(boot, FASHION_MNIST, invert).pixels).probs)
        assert torch.equal(forced(boot).probs, classify(boot).probs) is (invert == "auto")
    with pytest.raises(ValueError, match="allways"):
        load_classifier(device="cpu", invert="allways")


def test_classifier_takes_mixed_lists_in_order(classify: PictureClassifier, boot: Path) -> None:
    parts = [boot, GARMENTS[:3], (GARMENTS[4].numpy() / 255, on_white(60, 90)), np.asarray(on_white().convert("RGB"))]
    found = classify(parts)
    assert len(found.names) == 1 + 3 + 2 + 1
    assert_close(found.probs, torch.cat([classify(part).probs for part in parts]))


@pytest.mark.parametrize("nothing", [[], (), np.zeros((0, 28, 28), np.uint8), torch.zeros(0, 1, 28, 28)], ids=repr)
def test_classifier_takes_no_images(classify: PictureClassifier, nothing: Any) -> None:
    found = classify(nothing)
    assert (found.probs.shape, found.labels.shape) == ((0, 10), (0,))
    assert (found.names, found.top(3), str(found)) == ([], [], "")


def test_classifier_copies_arrays_that_torch_cannot_share(classify: PictureClassifier) -> None:
    images = GARMENTS.numpy().copy()
    images.setflags(write=False)
    assert_close(classify(images).probs, reference(classify, GARMENTS))
    assert_close(classify(images[::-1]).probs, reference(classify, GARMENTS.flip(0)))
    assert_close(classify(images[:, :, ::-1]).probs, reference(classify, GARMENTS.flip(2)))
    assert_close(classify(images.transpose(0, 2, 1)).probs, reference(classify, GARMENTS.transpose(1, 2)))
    assert_close(classify((GARMENTS / 255).requires_grad_()).probs, reference(classify, GARMENTS))
    assert (images == GARMENTS.numpy()).all()


@pytest.mark.parametrize(("batch_size", "sizes"), [(1, [1] * 10), (4, [4, 4, 2]), (10, [10]), (256, [10])])
def test_batch_size_limits_a_step_and_changes_nothing(batch_size: int, sizes: list[int]) -> None:
    classify = load_classifier(device="cpu", batch_size=batch_size)
    seen: list[int] = []
    classify.net.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    found = classify(GARMENTS).probs
    assert seen == sizes
    assert_close(found, reference(classify, GARMENTS))


@pytest.mark.parametrize(
    ("inputs", "error", "reason"),
    [
        (np.zeros((28, 28), np.int64), TypeError, "torch.int64: expected uint8 in 0..255 or floats in 0..1"),
        (np.zeros((28, 28), bool), TypeError, "torch.bool"),
        (np.zeros((28, 28), complex), TypeError, "torch.complex128"),
        (np.full((28, 28), "0"), TypeError, "numpy.str_"),
        (np.full((28, 28), 255.0), ValueError, "from 255 to 255"),
        (torch.full((28, 28), torch.nan), ValueError, "from nan to nan"),
        (np.zeros(784, np.uint8), ValueError, r"\(784,\)"),
        (np.zeros((2, 3, 28, 28), np.uint8), ValueError, r"\(2, 3, 28, 28\)"),
        (np.zeros((3, 90, 80), np.uint8), ValueError, r"\(3, 90, 80\)"),
        (np.zeros((0, 80), np.uint8), ValueError, r"\(0, 80\)"),
        (torch.tensor(0.5), ValueError, r"\(\)"),
        (b"boot.png", TypeError, "bytes"),
        ([GARMENTS, 0.5], TypeError, "float"),
        (np.zeros((90, 80), np.uint8), PictureError, "background"),
        (__file__, PictureError, r"test_classifier\.py: it is no picture"),
        ("a\0.png", PictureError, r"a\0\.png: it can't be opened"),
    ],
)
def test_classifier_names_what_is_no_image(
    classify: PictureClassifier, inputs: Any, error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        classify(inputs)


def test_choose_device_takes_what_is_there() -> None:
    found = torch.accelerator.current_accelerator(check_available=True)
    assert choose_device("auto") == (found or torch.device("cpu"))
    assert choose_device("cpu") == torch.device("cpu")
    for name in ("cuda:99", "warp", "xpu:99", *([] if found else ["gpu"])):
        with pytest.raises(UserError, match=rf"^cannot use the device {name}: .+ \(take auto or cpu\)$"):
            choose_device(name)
    assert not found or choose_device("gpu") == found


def test_prediction_has_labels_names_and_top_classes() -> None:
    probs = torch.zeros(2, 10)
    probs[0, [9, 7, 5, 0]] = torch.tensor([0.5, 0.25, 0.1875, 0.0625])
    probs[1, [1, 3, 4]] = torch.tensor([0.875, 0.09375, 0.03125])
    prediction = Prediction(probs, CLASSES, ["", "unclear"])
    assert prediction.labels.tolist() == [9, 1]
    assert prediction.names == ["Ankle boot", "Trouser"]
    assert prediction.top(2) == [[(9, 0.5), (7, 0.25)], [(1, 0.875), (3, 0.09375)]]
    assert prediction.top() == prediction.top(3)
    assert [sorted(label for label, _ in top) for top in prediction.top(99)] == [list(range(10))] * 2
    assert (
        str(prediction)
        == "Ankle boot 50.0%, Sneaker 25.0%, Sandal 18.8%\nTrouser 87.5%, Dress 9.4%, Coat 3.1% (unclear)"
    )


def test_example_in_readme_runs_and_package_imports_fast(boot: Path) -> None:
    found = [EXAMPLE.search(text) for text in ((ROOT / "README.md").read_text("utf-8"), str(classifier.__doc__))]
    lines, same = (textwrap.dedent(example[0]) for example in found if example)
    assert lines == same
    before = "import sys, fmnist_lightning; assert not {'torch', 'numpy', 'PIL'} & sys.modules.keys()\n"
    modules = "fmnist_lightning.predict.predict, fmnist_lightning.data.sets"
    after = f"import {modules}; assert not {{'lightning', 'torchvision'}} & sys.modules.keys()\n"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", before + lines + after]
    output = subprocess.check_output(command, cwd=boot.parent, env=environment, text=True)
    name = "|".join(map(re.escape, CLASSES))
    assert re.fullmatch(rf"(({name}) \d+\.\d%(, |\n)){{3}}", output), output


def test_package_exports_its_public_names() -> None:
    for name in fmnist_lightning.__all__:
        assert getattr(fmnist_lightning, name).__name__ == name
    with pytest.raises(ImportError):
        from fmnist_lightning import no_such_name  # noqa: F401


@pytest.mark.real_data
def test_packaged_weights_reach_the_accuracy_of_their_card(real_data_dir: Path) -> None:
    images, labels = load_split(real_data_dir, "test")
    classify = load_classifier()
    accuracy = (classify(images).labels == labels).double().mean().item()
    # Rounding differs between CPUs, so an image at the decision boundary may change its class.
    assert accuracy == pytest.approx(classify.card["metrics"]["accuracy"], abs=0.0002)
