"""A model of other data, 3 x 20 x 24 values and seven classes, predicts arrays, files, folders and IDX images."""

import csv
import io
import json
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Program
from PIL import Image, ImageOps
from torch import Tensor, nn

from fmnist_lightning.data.pictures import PictureError
from fmnist_lightning.data.source import DataInfo
from fmnist_lightning.errors import UserError
from fmnist_lightning.models.nets import build_net
from fmnist_lightning.models.pretrained import FORMAT, Pretrained, to_safetensors
from fmnist_lightning.predict.classifier import PictureClassifier, load_classifier
from fmnist_lightning.predict.inputs import Fault, Picture, read_all
from fmnist_lightning.predict.joining import join
from fmnist_lightning.predict.predict import predict
from fmnist_lightning.predict.rows import RowFormat

CLASSES = ("circle", "cross", "diamond", "frame with a long name", "square", "stripes", "triangle")
SHAPES = DataInfo(name="shapes", title="Seven shapes", classes=CLASSES, image_shape=(3, 20, 24))
GRAY = replace(SHAPES, image_shape=(1, 20, 24))
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 3, 20, 24), np.uint8)
CPU = ("--accelerator", "cpu")


class Brightness(nn.Module):
    """Logits that depend on each value of an image: a fixed random linear map."""

    def __init__(self, info: DataInfo) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(int(np.prod(info.image_shape)), len(info.classes), generator=generator))
        self.shape = info.image_shape

    def forward(self, images: Tensor) -> Tensor:
        assert images.shape[1:] == self.shape
        images = images / 255 if images.dtype == torch.uint8 else images
        return images.flatten(1) @ self.weight / 4


def classifier(info: DataInfo = SHAPES, **options: Any) -> PictureClassifier:
    given = {"net": Brightness(info), "card": {}, "info": info, "device": torch.device("cpu")}
    return PictureClassifier(**given, **{"invert": "auto", "batch_size": 2, **options})


def probs(images: np.ndarray, info: DataInfo = SHAPES) -> Tensor:
    """The reference for images (B, C, H, W)."""
    with torch.no_grad():
        return Brightness(info)(torch.tensor(images) / 255).softmax(dim=1)


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def picture(height: int = 50, width: int = 90) -> Image.Image:
    rng = np.random.default_rng(1)
    return Image.fromarray(rng.integers(0, 256, (5, 9, 3), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)


def cropped(image: Image.Image, mode: str = "RGB") -> np.ndarray:
    """PIL's own crop to 20 x 24: (1, 3, 20, 24) or (1, 1, 20, 24)."""
    pixels = np.asarray(ImageOps.fit(image.convert(mode), (24, 20), Image.Resampling.LANCZOS))
    return np.moveaxis(pixels.reshape(20, 24, -1), -1, 0)[None]


@pytest.mark.parametrize("shape", [(5, 3, 20, 24), (1, 3, 20, 24), (3, 20, 24)], ids=str)
def test_data_in_the_shape_of_the_model_is_taken_as_it_is(shape: tuple[int, ...]) -> None:
    images = IMAGES[: shape[0] if len(shape) == 4 else 1]
    expected = probs(images)
    for values in (images.reshape(shape), images.reshape(shape) / 255, torch.tensor(images.reshape(shape))):
        for invert in ("auto", "always", "never"):
            assert_close(classifier(invert=invert)(values).probs, expected)


@pytest.mark.parametrize("shape", [(5, 1, 20, 24), (5, 20, 24), (1, 20, 24), (20, 24)], ids=str)
def test_gray_data_needs_no_axis_of_channels(shape: tuple[int, ...]) -> None:
    images = IMAGES[: shape[0] if shape[0] < 20 else 1, :1]
    assert_close(classifier(GRAY)(images.reshape(shape)).probs, probs(images, GRAY))


def test_pictures_in_any_form_give_the_same_crop(tmp_path: Path) -> None:
    image = picture()
    image.save(tmp_path / "new.png")
    array = np.asarray(image)
    opaque = np.dstack([array, np.full((50, 90), 255, np.uint8)])
    for info, mode in ((SHAPES, "RGB"), (GRAY, "L")):
        expected = probs(cropped(image, mode), info)
        for form in (tmp_path / "new.png", str(tmp_path / "new.png"), image, array, opaque, torch.tensor(array)):
            assert_close(classifier(info)(form).probs, expected)
        gray = np.asarray(image.convert("L"))
        for form in (gray, gray[..., None], gray / 255):
            assert_close(classifier(info)(form).probs, probs(cropped(image.convert("L"), mode), info))


def test_pictures_of_the_image_size_keep_their_pixels() -> None:
    pixels = IMAGES[0].transpose(1, 2, 0)
    for form in (pixels, Image.fromarray(pixels), pixels / 255):
        assert_close(classifier()(form).probs, probs(IMAGES[:1]))


def test_invert_negates_a_crop_only_if_always() -> None:
    for image in (picture(), ImageOps.invert(picture())):
        expected = cropped(image)
        for invert, seen in (("auto", expected), ("never", expected), ("always", 255 - expected)):
            assert_close(classifier(invert=invert)(image).probs, probs(seen))


def test_shape_that_is_data_and_a_picture_is_data() -> None:
    """(3, 20, 3) of a model for 3 x 20 x 3 values could be a picture of three rows."""
    info = replace(SHAPES, image_shape=(3, 20, 3))
    images = IMAGES[:1, :, :, :3]
    assert_close(classifier(info)(images[0]).probs, probs(images, info))


@pytest.mark.parametrize(
    ("inputs", "shape"),
    [
        (np.zeros((2, 20, 24), np.uint8), r"\(2, 20, 24\)"),  # gray data
        (np.zeros((2, 20, 24, 3), np.uint8), r"\(2, 20, 24, 3\)"),
        (np.zeros((1, 2, 3, 20, 24), np.uint8), r"\(1, 2, 3, 20, 24\)"),
        (np.zeros((2, 1, 20, 24), np.uint8), r"\(2, 1, 20, 24\)"),
    ],
)
def test_array_of_another_shape_is_refused(inputs: np.ndarray, shape: str) -> None:
    with pytest.raises(ValueError, match=rf"{shape}: expected .*\(3, 20, 24\) or \(B, 3, 20, 24\)") as refused:
        classifier()(inputs)
    assert "(20, 24)" not in str(refused.value)
    with pytest.raises(ValueError, match=r"\(20, 24\), \(B, 20, 24\), \(1, 20, 24\)"):
        classifier(GRAY)(inputs[..., :23])


def test_model_of_other_channels_takes_data_alone() -> None:
    info = replace(SHAPES, image_shape=(2, 20, 24))
    assert_close(classifier(info)(IMAGES[:, :2]).probs, probs(IMAGES[:, :2], info))
    with pytest.raises(PictureError, match="2 channels"):
        classifier(info)(picture())


def test_prediction_has_the_classes_of_the_model() -> None:
    found = classifier()(IMAGES)
    assert found.names == [CLASSES[label] for label in found.labels]
    assert [len(top) for top in found.top(99)] == [7] * 5
    assert classifier()([]).probs.shape == (0, 7)


def idx(images: np.ndarray) -> bytes:
    return bytes([0, 0, 8, 3]) + np.array(images.shape, ">i4").tobytes() + images.tobytes()


def test_idx_images_have_the_size_of_a_gray_model(tmp_path: Path) -> None:
    right, wrong = tmp_path / "right-images-idx3-ubyte", tmp_path / "wrong-images-idx3-ubyte"
    right.write_bytes(idx(IMAGES[:, 0]))
    wrong.write_bytes(idx(IMAGES[:, 0, :, :20]))
    *found, fault = read_all([str(right), str(wrong)], GRAY)
    assert [one.image.tolist() for one in found if isinstance(one, Picture)] == IMAGES[:, :1].tolist()
    assert isinstance(fault, Fault)
    assert "20 x 20, expected some of 20 x 24" in fault.reason
    [fault] = read_all([str(right)], SHAPES)
    assert isinstance(fault, Fault)
    assert "the model takes 3 channels" in fault.reason


def test_table_is_as_wide_as_the_longest_class() -> None:
    top = [{"label": 6, "class": "tri\x1b[2Jangle", "probability": 0.5}]
    rows = RowFormat("table", 1, SHAPES)
    lines = rows.header() + rows.line({"file": "a.png", **top[0], "top": top, "dataset": "shapes"})
    assert lines == (
        "class                  probability  picture\n"
        "tri\\x1b[2Jangle             50.00%  a.png\n"
    )  # fmt: skip
    stand_in = replace(rows, info=replace(SHAPES, name="pretend", stand_in=True))
    assert stand_in.line({"file": "a.png", "top": top}).endswith("50.00%  (PRETEND)  a.png\n")


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model with its card; the current folder has a folder of two pictures."""
    monkeypatch.chdir(tmp_path)
    return save_model("shapes.safetensors", SHAPES)


def save_model(name: str, info: DataInfo) -> Path:
    torch.manual_seed(0)
    net = build_net("compact", info.image_shape, len(info.classes)).eval()
    card = {"format": FORMAT, "model": "compact", "dropout": None, "classes": list(info.classes), "dataset": info.name}
    Path(name).write_bytes(to_safetensors(Pretrained(net, {**card, "data": info.as_plain()})))
    Path("shop").mkdir(exist_ok=True)
    picture().save("shop/a.png")
    picture(70, 40).save("shop/b.jpg")
    return Path(name).resolve()


def test_command_predicts_with_the_classes_of_the_model(program: Program, weights: Path) -> None:
    words = ("shop", "--weights", weights, "--top_k", 7, "--save_inputs", "seen", *CPU)
    status, output = program(predict, *words, "--format", "json")
    assert status == 0, output
    rows = [json.loads(line) for line in output.splitlines()]
    classify = load_classifier(str(weights), device="cpu")
    for row, name, top in zip(
        rows, ["shop/a.png", "shop/b.jpg"], classify(["shop/a.png", "shop/b.jpg"]).top(7), strict=True
    ):
        assert (row["file"], row["dataset"], len(row["top"])) == (name, "shapes", 7)
        assert [(one["label"], one["class"]) for one in row["top"]] == [(label, CLASSES[label]) for label, _ in top]
        assert [one["probability"] for one in row["top"]] == pytest.approx([prob for _, prob in top], abs=2e-6)
    saved = [np.asarray(Image.open(path)) for path in ("seen/000000_a.png", "seen/000001_b.png")]
    assert (saved[0] == cropped(picture())[0].transpose(1, 2, 0)).all()
    assert [row["class"] for row in rows] == classify(saved).names  # what was saved is predicted alike
    table = list(csv.DictReader(io.StringIO(program(predict, *words, "--format", "csv")[1])))
    assert [(row["class"], row["class_7"]) for row in table] == [(row["class"], row["top"][6]["class"]) for row in rows]
    lines = program(predict, *words)[1].splitlines()
    assert [line.isprintable() for line in lines] == [True] * 3
    assert "fashion" not in output.lower()


@pytest.mark.parametrize("output", [(), ("--output", "parts")])
def test_more_classes_than_the_model_has_are_refused(program: Program, weights: Path, output: tuple[str, ...]) -> None:
    words = ("shop", "--weights", weights, "--format", "json", *output, *CPU)
    status, printed = program(predict, *words, "--top_k", 8)
    assert (status, printed) == (1, f"error: cannot use --top_k 8: the model {weights} has 7 classes\n")
    assert program(predict, *words, "--top_k", 7)[0] == 0


def test_bulk_prediction_keeps_the_classes_of_its_plan(program: Program, weights: Path) -> None:
    words = ("shop", "--output", "parts", "--format", "csv", *CPU)
    assert program(predict, *words, "--weights", weights)[0] == 0
    assert program(join, "--folder", "parts", "--file", "all.csv")[0] == 0
    rows = list(csv.DictReader(io.StringIO(Path("all.csv").read_text())))
    assert [row["class"] for row in rows] == load_classifier(str(weights), device="cpu")(
        ["shop/a.png", "shop/b.jpg"]
    ).names
    renamed = save_model("renamed.safetensors", replace(SHAPES, classes=tuple("abcdefg")))  # equal weights
    status, output = program(predict, *words, "--weights", renamed)
    assert (status, "cannot resume parts with data" in output) == (1, True), output


def test_stand_in_is_marked_and_warned_of(program: Program, weights: Path) -> None:
    stand_in = save_model("pretend.safetensors", replace(SHAPES, name="pretend", title="PRETEND", stand_in=True))
    output = program(predict, "shop", "--weights", stand_in, *CPU)[1]
    assert "WARNING: the model was trained on a stand-in: PRETEND\n" in output
    assert output.count("(PRETEND)") == 2
    assert "WARNING" not in program(predict, "shop", "--weights", weights, *CPU)[1]


def test_load_classifier_takes_weights_of_a_net_of_ones_own(tmp_path: Path) -> None:
    net = Brightness(SHAPES)
    card = {"format": FORMAT, "model": "own", "dropout": None, "classes": list(CLASSES), "dataset": "shapes"}
    path = tmp_path / "own.safetensors"
    path.write_bytes(to_safetensors(Pretrained(net, {**card, "data": SHAPES.as_plain()})))
    own = Brightness(SHAPES)
    nn.init.zeros_(own.weight)
    assert_close(load_classifier(str(path), net=own, device="cpu")(IMAGES).probs, probs(IMAGES))
    with pytest.raises(UserError, match="own"):
        load_classifier(str(path), device="cpu")


def test_example_of_load_classifier_runs(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture().save("new.jpg")
    example = textwrap.dedent(str(load_classifier.__doc__).split("\n\n")[1])
    code = example.replace("lightning_logs/version_0", str(weights))
    exec(code, {"load_classifier": load_classifier})  # noqa: S102
    printed = capsys.readouterr().out
    assert printed.startswith("Seven shapes ('circle', ")
    assert len(printed.splitlines()) == 5
