"""Models of timm behave as the project's own nets do."""

import sys
from pathlib import Path

import onnxruntime
import pytest
import timm
import torch

from fmnist_lightning.data.source import DataInfo
from fmnist_lightning.errors import UserError
from fmnist_lightning.models.export import FORMATS
from fmnist_lightning.models.nets import build_net
from fmnist_lightning.models.pretrained import Pretrained
from fmnist_lightning.models.timm_net import TimmNet

# A plain one; one with a fixed size and patches of 16 x 16, and of 14 x 14; one that needs at least 32 x 32.
MODELS = ("test_resnet", "vit_tiny_patch16_224", "eva02_tiny_patch14_224", "test_convnext")


def random_images(count: int, image_shape: tuple[int, int, int]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, *image_shape), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("image_shape", [(1, 28, 28), (3, 32, 32), (3, 20, 36)])
def test_timm_net_sees_each_pixel(name: str, image_shape: tuple[int, int, int]) -> None:
    """A patch of 16 x 16 would cover the upper left of 28 x 28 alone."""
    torch.manual_seed(0)
    net = build_net(f"timm:{name}", image_shape, 7).eval()
    images = random_images(2, image_shape)
    with torch.no_grad():
        assert net(images).shape == (2, 7)
        assert torch.equal(net(images), net(images / 255))
        # A fresh head may be zero, so look at the features.
        net.model.reset_classifier(0)
        features = net(images)
        for row, column in ((0, 0), (-1, 0), (0, -1), (-1, -1)):
            changed = images.clone()
            changed[:, :, row, column] = 255 - changed[:, :, row, column]
            assert not torch.equal(net(changed), features)


def test_timm_net_normalizes_by_its_pretrained_config() -> None:
    config = timm.get_pretrained_cfg("test_resnet")
    rgb, gray = (TimmNet("test_resnet", (channels, 32, 32), 7).eval() for channels in (3, 1))
    images = random_images(2, (3, 32, 32)) / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.mean, config.std))
    torch.testing.assert_close(rgb(images), rgb.model((images - mean) / std))
    torch.testing.assert_close(gray(images[:, :1]), gray.model((images[:, :1] - mean.mean()) / std.mean()))


@pytest.mark.parametrize("name", MODELS)
def test_timm_net_restores_its_weights(name: str) -> None:
    net, other = (build_net(f"timm:{name}", (1, 28, 28), 7).eval() for _ in range(2))
    images = random_images(2, (1, 28, 28))
    other.load_state_dict(net.state_dict())
    assert torch.equal(net(images), other(images))
    assert net.state_dict().keys() == {f"model.{weight}" for weight in net.model.state_dict()}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", MODELS)
def test_timm_net_is_exported(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = build_net(f"timm:{name}", (3, 32, 32), 7).eval()
    file = tmp_path / "net.onnx"
    info = DataInfo(name="own", title="Own", classes=tuple("abcdefg"), image_shape=(3, 32, 32))
    card = {"classes": list(info.classes), "data": info.as_plain()}
    file.write_bytes(FORMATS["onnx"][0](Pretrained(net, card)))
    for count in (1, 5):
        images = random_images(count, (3, 32, 32))
        [probs] = onnxruntime.InferenceSession(file).run(None, {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(probs), net(images).softmax(dim=1), rtol=0, atol=1e-5)


def test_timm_net_refuses_wrong_images_and_options() -> None:
    net = build_net("timm:test_resnet", (3, 32, 32), 7)
    for images in (random_images(2, (3, 28, 28)), random_images(2, (1, 32, 32)), random_images(2, (3, 32, 32)).float()):
        with pytest.raises(ValueError, match=r"3, 32, 32\]|255"):
            net(images)
    for name, changes, word in (
        ("resnet81", {}, "resnet18"),
        ("hf-hub:someone/model", {}, "no such model"),  # which timm would download
        ("inception_v3", {}, "28 x 28"),
        ("test_resnet", {"dropout": (0.1, 0.1, 0.1)}, "dropout"),
    ):
        with pytest.raises(ValueError, match=word):
            build_net(f"timm:{name}", (1, 28, 28), 7, **changes)


def test_timm_net_asks_for_weights_only_if_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, create = [], timm.create_model

    def offline(name: str, pretrained: bool, **arguments: object) -> torch.nn.Module:
        asked.append(pretrained)
        return create(name, **arguments)

    monkeypatch.setattr(timm, "create_model", offline)
    build_net("timm:test_resnet", (1, 28, 28), 7)
    build_net("timm:test_resnet", (1, 28, 28), 7, pretrained=True)
    assert asked == [False, True]


def test_timm_net_says_how_to_install_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"timm"):
        build_net("timm:resnet18", (1, 28, 28), 7)
