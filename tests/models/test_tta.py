"""Test-time augmentation: mean probabilities over an image and its mirror image, in the test loop and in prediction."""

from pathlib import Path

import numpy as np
import torch
from conftest import Program, metrics_of
from PIL import Image

from fmnist_lightning.data.sets.drawn import load_drawn
from fmnist_lightning.models.nets import SeedNet
from fmnist_lightning.models.tta import MirrorAveraged
from fmnist_lightning.predict.classifier import load_classifier
from fmnist_lightning.predict.predict import predict
from fmnist_lightning.runs.folders import write_metrics
from fmnist_lightning.training.evaluate import evaluate


def test_mirror_averaged_returns_mean_probabilities() -> None:
    net = SeedNet().eval()
    images = torch.randint(0, 256, (5, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean = (net(images).softmax(dim=1) + net(images.flip(3)).softmax(dim=1)) / 2
    probs = MirrorAveraged(net)(images).softmax(dim=1)
    torch.testing.assert_close(probs, mean)
    assert (probs - net(images).softmax(dim=1)).abs().max() > 1e-4  # the control: one image alone


def test_predict_warns_with_tta_alone(program: Program, trained: Path, tmp_path: Path) -> None:
    Image.new("L", (28, 28), 200).save(tmp_path / "x.png")
    for tta in ("true", "false"):
        output = program(predict, tmp_path / "x.png", "--weights", trained, "--tta", tta, "--accelerator", "cpu")[1]
        assert ("trained without --flip" in output) == (tta == "true")


def test_evaluate_warns_if_the_test_images_were_replaced(program: Program, trained: Path) -> None:
    arguments = ("--run", trained, "--accelerator", "cpu", "--precision", "32-true")
    for _ in range(2):
        assert "last test" not in program(evaluate, *arguments)[1]
    write_metrics(trained, metrics_of(trained) | {"images_sha256": "other"})
    status, output = program(evaluate, *arguments)
    assert (status, "last test" in output) == (0, True)


def test_evaluate_with_tta_averages_but_replaces_no_better_test(program: Program, trained: Path) -> None:
    arguments = ("--run", trained, "--accelerator", "cpu", "--precision", "32-true")
    assert program(evaluate, *arguments)[0] == 0
    assert metrics_of(trained)["tta"] is False
    status, output = program(evaluate, *arguments, "--tta", "true")
    assert (status, metrics_of(trained)["tta"], "trained without --flip" in output) == (1, False, True)
    (trained / "metrics.json").unlink()
    status, output = program(evaluate, *arguments, "--tta", "true")
    assert (status, metrics_of(trained)["tta"], metrics_of(trained)["parameters"]) == (0, True, 225_034), output
    assert "trained without --flip" in output
    assert "mirror images" in output
    with np.load(trained / "predictions.npz") as predictions:
        probs = torch.from_numpy(predictions["probs"])
    images = load_drawn("test").images[:, 0]
    torch.testing.assert_close(load_classifier(str(trained), tta=True)(images).probs, probs, rtol=0, atol=1e-5)
    assert (load_classifier(str(trained))(images).probs - probs).abs().max() > 1e-4
