"""Whatever an image comes as, the net sees the same pixels; what can't be one is refused with one clear message."""

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

from fmnist_lightning.data.drawn import draw
from fmnist_lightning.data.fashion_mnist import CLASSES, load_split
from fmnist_lightning.errors import UserError
from fmnist_lightning.models.pretrained import PACKAGED, load_pretrained, save_pretrained
from fmnist_lightning.predict import classifier as inference
from fmnist_lightning.predict.classifier import PictureClassifier, Prediction, choose_device, load_classifier
from fmnist_lightning.predict.pictures import PictureError, load_picture

ROOT = Path(__file__).parents[2]
EXAMPLE = re.compile(r"^( *)from fmnist_lightning\.inference import load_classifier\n(?:\1\S.*\n)+", re.MULTILINE)
GARMENTS = torch.cat([draw(name, 1, torch.Generator().manual_seed(0)) for name in CLASSES])  # (10, 28, 28) uint8
BOOT = GARMENTS[9].numpy()


@pytest.fixture(scope="module")
def classify() -> PictureClassifier:
    return load_classifier(device="cpu")


def on_white(width: int = 96, height: int = 84) -> Image.Image:
    """A dark boot before white, as a shop shows it."""
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


def test_the_packaged_weights_are_the_default(classify: PictureClassifier) -> None:
    expected = load_pretrained(str(PACKAGED))
    assert classify.card == expected.card
    for name, tensor in expected.net.state_dict().items():
        assert torch.equal(classify.net.state_dict()[name], tensor), name


def test_a_run_the_last_run_a_checkpoint_and_safetensors_are_the_same_net(trained: Path, tmp_path: Path) -> None:
    weights = save_pretrained(load_pretrained(str(trained)), tmp_path / "net.safetensors")
    checkpoint = shutil.copy(trained / "checkpoints" / "best.ckpt", tmp_path / "alone.ckpt")
    expected = load_classifier(str(trained), device="cpu")
    for source in ("last", str(checkpoint), str(weights)):
        found = load_classifier(source, device="cpu", log_dir=str(trained.parent))
        assert found.card["dataset"] == "drawn", source
        assert torch.equal(found(GARMENTS).probs, expected(GARMENTS).probs), source
    assert not torch.equal(load_classifier(device="cpu")(GARMENTS).probs, expected(GARMENTS).probs)


@pytest.mark.parametrize("source", ["nowhere", "nowhere.ckpt", "nowhere.safetensors"])
def test_weights_that_are_not_there_are_named(source: str) -> None:
    with pytest.raises(UserError, match="nowhere"):
        load_classifier(source)


@pytest.mark.parametrize("as_type", [torch.asarray, Tensor.numpy], ids=["tensor", "array"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(28, 28), (1, 28, 28), (10, 28, 28), (10, 1, 28, 28)], ids=str)
def test_data_of_any_shape_and_dtype_gives_the_nets_probabilities(
    classify: PictureClassifier, shape: tuple[int, ...], dtype: torch.dtype, as_type: Callable[[Tensor], Any]
) -> None:
    images = GARMENTS if shape[0] == 10 else GARMENTS[9:]
    values = images.reshape(shape) if dtype == torch.uint8 else (images.to(dtype) / 255).reshape(shape)
    found = classify(as_type(values)).probs
    assert (found.dtype, found.device.type) == (torch.float32, "cpu")
    assert_close(found, reference(classify, images))


def test_a_path_an_open_image_and_its_pixels_are_one_picture(classify: PictureClassifier, boot: Path) -> None:
    grey = np.asarray(on_white())
    opaque = np.dstack([grey, grey, grey, np.full_like(grey, 255)])
    expected = reference(classify, torch.tensor(load_picture(boot))[None])
    pixels = [grey, grey[..., None], opaque[..., :3], opaque]
    floats = [(each - 0.25).clip(0) / 255 for each in pixels]  # which are rounded
    for picture in (str(boot), boot, on_white(), *pixels, *floats, *map(torch.tensor, pixels + floats)):
        assert_close(classify(picture).probs, expected)


def test_a_picture_on_white_is_negated_and_data_is_not(classify: PictureClassifier) -> None:
    expected = classify(BOOT).probs
    as_colours = np.dstack([255 - BOOT] * 3)
    assert torch.equal(classify(as_colours).probs, expected)
    assert torch.equal(classify(Image.fromarray(255 - BOOT)).probs, expected)
    assert not torch.equal(classify(255 - BOOT).probs, expected)


@pytest.mark.parametrize("invert", ["auto", "always", "never"])
def test_who_loads_decides_about_negation(boot: Path, invert: Any) -> None:
    expected = torch.tensor(load_picture(boot, invert))
    auto, forced = load_classifier(device="cpu"), load_classifier(device="cpu", invert=invert)
    assert torch.equal(forced(boot).probs, forced(expected).probs)
    assert torch.equal(forced(boot).probs, auto(boot).probs) is (invert != "never")


def test_a_misspelt_negation_is_not_taken_for_never() -> None:
    with pytest.raises(ValueError, match=r"^invert is allways; expected auto, always, never$"):
        load_classifier(device="cpu", invert="allways")


def test_a_list_may_mix_them_all_and_keeps_their_order(classify: PictureClassifier, boot: Path) -> None:
    parts = [boot, GARMENTS[:3], (GARMENTS[4].numpy() / 255, on_white(60, 90)), np.asarray(on_white().convert("RGB"))]
    found = classify(parts)
    assert len(found.names) == 1 + 3 + 2 + 1
    assert_close(found.probs, torch.cat([classify(part).probs for part in parts]))


@pytest.mark.parametrize("nothing", [[], (), np.zeros((0, 28, 28), np.uint8), torch.zeros(0, 1, 28, 28)], ids=repr)
def test_nothing_gives_nothing(classify: PictureClassifier, nothing: Any) -> None:
    found = classify(nothing)
    assert (found.probs.shape, found.labels.shape) == ((0, 10), (0,))
    assert (found.names, found.top(3), str(found)) == ([], [], "")


def test_arrays_that_torch_cannot_share_are_taken_and_stay_as_they_are(classify: PictureClassifier) -> None:
    images = GARMENTS.numpy().copy()
    images.setflags(write=False)
    assert_close(classify(images).probs, reference(classify, GARMENTS))
    assert_close(classify(images[::-1]).probs, reference(classify, GARMENTS.flip(0)))
    assert_close(classify(images[:, :, ::-1]).probs, reference(classify, GARMENTS.flip(2)))
    assert_close(classify(images.transpose(0, 2, 1)).probs, reference(classify, GARMENTS.transpose(1, 2)))
    assert_close(classify((GARMENTS / 255).requires_grad_()).probs, reference(classify, GARMENTS))
    assert (images == GARMENTS.numpy()).all()


@pytest.mark.parametrize(("batch_size", "sizes"), [(1, [1] * 10), (4, [4, 4, 2]), (10, [10]), (256, [10])])
def test_the_batch_size_bounds_a_step_and_changes_nothing(batch_size: int, sizes: list[int]) -> None:
    classify = load_classifier(device="cpu", batch_size=batch_size)
    seen: list[int] = []
    classify.net.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    found = classify(GARMENTS).probs
    assert seen == sizes
    assert_close(found, reference(classify, GARMENTS))


@pytest.mark.parametrize(
    ("inputs", "error", "words"),
    [
        (np.zeros((28, 28), np.int64), TypeError, "values are torch.int64; expected uint8 in 0..255 or floats in 0..1"),
        (np.zeros((28, 28), bool), TypeError, "values are torch.bool; expected uint8"),
        (np.zeros((28, 28), np.uint16), TypeError, "values are torch.uint16; expected uint8"),
        (np.zeros((28, 28), complex), TypeError, "values are torch.complex128; expected uint8"),
        (np.full((28, 28), "0"), TypeError, "can't convert np.ndarray of type numpy.str_"),
        (np.full((28, 28), 255.0), ValueError, "floats are from 255 to 255; expected 0 to 1"),
        (torch.linspace(-1, 1, 784).view(28, 28), ValueError, "floats are from -1 to 1; expected 0 to 1"),
        (torch.full((28, 28), torch.nan), ValueError, "floats are from nan to nan; expected 0 to 1"),
        (np.zeros(784, np.uint8), ValueError, r"the shape is \(784,\); expected a path, a PIL image"),
        (np.zeros((2, 3, 28, 28), np.uint8), ValueError, r"the shape is \(2, 3, 28, 28\); expected"),
        (np.zeros((3, 90, 80), np.uint8), ValueError, r"the shape is \(3, 90, 80\); expected"),
        (np.zeros((90, 80, 2), np.uint8), ValueError, r"the shape is \(90, 80, 2\); expected"),
        (np.zeros((0, 80), np.uint8), ValueError, r"the shape is \(0, 80\); expected"),
        (torch.tensor(0.5), ValueError, r"the shape is \(\); expected"),
        (None, TypeError, "inputs are NoneType; expected a path, a PIL image"),
        (b"boot.png", TypeError, "inputs are bytes; expected"),
        ([[0, 255]], TypeError, "inputs are int; expected"),
        ([GARMENTS, 0.5], TypeError, "inputs are float; expected"),
        (np.zeros((90, 80), np.uint8), PictureError, "shows nothing but background"),
        ("nowhere.png", PictureError, r"nowhere\.png: does not exist"),
        (__file__, PictureError, r"test_inference\.py: is no picture"),
    ],
)
def test_what_is_no_image_is_named_with_what_was_expected(
    classify: PictureClassifier, inputs: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=f"^(?:.*/)?{words}"):
        classify(inputs)


@pytest.mark.parametrize("name", ["cuda:99", "warp", "xpu:99"])
def test_a_device_that_is_not_there_is_one_line_with_its_cure(name: str) -> None:
    with pytest.raises(UserError, match=rf"^the device {name} can't be used here \(.+\): take auto, or cpu$"):
        load_classifier(device=name)


def test_auto_takes_the_accelerator_where_there_is_one() -> None:
    found = torch.accelerator.current_accelerator(check_available=True)
    assert choose_device("auto") == (found or torch.device("cpu"))
    assert choose_device("cpu") == torch.device("cpu")
    if found:
        assert choose_device("gpu") == found
    else:
        with pytest.raises(UserError, match="the device gpu can't be used here"):
            choose_device("gpu")


def test_a_prediction_tells_labels_names_and_the_most_probable_classes() -> None:
    probs = torch.zeros(2, 10)
    probs[0, [9, 7, 5, 0]] = torch.tensor([0.5, 0.25, 0.1875, 0.0625])
    probs[1, [1, 3, 4]] = torch.tensor([0.875, 0.09375, 0.03125])
    prediction = Prediction(probs, CLASSES)
    assert prediction.labels.tolist() == [9, 1]
    assert prediction.names == ["Ankle boot", "Trouser"]
    assert prediction.top(2) == [[(9, 0.5), (7, 0.25)], [(1, 0.875), (3, 0.09375)]]
    assert prediction.top() == prediction.top(3)
    assert [sorted(label for label, _ in top) for top in prediction.top(99)] == [list(range(10))] * 2
    assert str(prediction) == "Ankle boot 50.0%, Sneaker 25.0%, Sandal 18.8%\nTrouser 87.5%, Dress 9.4%, Coat 3.1%"


def example(text: str) -> str:
    """The three lines that show the Python interface."""
    found = EXAMPLE.search(text)
    assert found, "the example is not there"
    return textwrap.dedent(found[0])


def test_the_example_in_readme_and_docstring_runs_as_printed(boot: Path) -> None:
    lines = example((ROOT / "README.md").read_text(encoding="utf-8"))
    assert lines == example(inference.__doc__)
    assert lines.count("\n") == 3
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", lines], cwd=boot.parent, env=environment, capture_output=True, text=True, check=True
    )
    name = "|".join(map(re.escape, CLASSES))
    assert re.fullmatch(rf"(({name}) \d+\.\d%(, |\n)){{3}}", result.stdout), result.stdout


@pytest.mark.real_data
def test_the_packaged_weights_are_as_good_as_their_card_says(real_data_dir: Path) -> None:
    images, labels = load_split(real_data_dir, train=False)
    classify = load_classifier()
    accuracy = (classify(images).labels == labels).double().mean().item()
    # Rounding differs between kinds of CPU: an image at the border may fall to the other side.
    assert accuracy == pytest.approx(classify.card["metrics"]["accuracy"], abs=0.0002)
