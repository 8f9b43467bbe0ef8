"""Test-time augmentation: mean probabilities over an image and its mirror image, in the test loop and in prediction."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Program, metrics_of, small_run
from PIL import Image

from fmnist_lightning.data.drawn import load_drawn
from fmnist_lightning.models.nets import SeedNet
from fmnist_lightning.models.tta import MirrorAveraged, warn_if_trained_without_flip
from fmnist_lightning.predict.classifier import load_classifier
from fmnist_lightning.predict.predict import predict
from fmnist_lightning.training.evaluate import evaluate


def test_probabilities_are_the_mean_over_an_image_and_its_mirror_image() -> None:
    net = SeedNet().eval()
    images = torch.randint(0, 256, (5, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean = (net(images).softmax(dim=1) + net(images.flip(3)).softmax(dim=1)) / 2
    probs = MirrorAveraged(net)(images).softmax(dim=1)
    torch.testing.assert_close(probs, mean)
    assert (probs - net(images).softmax(dim=1)).abs().max() > 1e-4  # the control: one image alone gives other ones


@pytest.mark.usefixtures("small_drawn")
def test_pictures_too_are_warned_of(program: Program, trained: Path, tmp_path: Path) -> None:
    Image.new("L", (28, 28), 200).save(tmp_path / "x.png")
    for tta in ("true", "false"):
        output = program(predict, tmp_path / "x.png", "--weights", trained, "--tta", tta, "--accelerator", "cpu")[1]
        assert ("trained without --flip" in output) == (tta == "true")


def test_only_a_net_that_never_saw_a_mirror_image_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    for training in ({"flip": True}, {}):
        warn_if_trained_without_flip(training)
    assert capsys.readouterr().err == ""
    warn_if_trained_without_flip({"flip": False})
    assert "trained without --flip" in capsys.readouterr().err


@pytest.mark.usefixtures("small_drawn")
def test_the_test_loop_averages_when_it_is_told_to_and_says_so(program: Program, tmp_path: Path) -> None:
    run, _ = small_run(program, tmp_path, "--precision", "32-true")
    assert metrics_of(run)["tta"] is False
    status, output = program(evaluate, "--run", run, "--tta", "true", "--accelerator", "cpu")
    assert status == 0, output
    assert "averaged with its mirror images" in output
    assert "trained without --flip" in output
    metrics = metrics_of(run)
    assert metrics["tta"] is True
    assert metrics["parameters"] == 225034
    with np.load(run / "predictions.npz") as predictions:
        probs = torch.from_numpy(predictions["probs"])
    images = load_drawn(train=False).images[:, 0]
    torch.testing.assert_close(load_classifier(str(run), tta=True)(images).probs, probs, rtol=0, atol=1e-5)
    assert (load_classifier(str(run))(images).probs - probs).abs().max() > 1e-4
