"""Weights with their card: what is saved comes back bit for bit, and anything else is refused."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from conftest import shared_run
from safetensors.numpy import load_file
from torch import nn

from fmnist_lightning.data.sets import KNOWN, recorded_info
from fmnist_lightning.data.sets.fashion_mnist import CLASSES
from fmnist_lightning.errors import UserError
from fmnist_lightning.models.nets import MODELS, SeedNet, build_net
from fmnist_lightning.models.pretrained import PACKAGED, Pretrained, load_pretrained, to_safetensors, weights_digest
from fmnist_lightning.runs.checkpoints import read_checkpoint
from fmnist_lightning.runs.options import LoopOptions, names

DATA = KNOWN["drawn"].as_plain()
CARD = {"format": 1, "model": "seed", "dropout": [0.25, 0.25, 0.5], "classes": list(CLASSES), "dataset": "drawn"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch with batch norm, tested; the tests below only read it."""
    arguments = ("--model", "compact", "--max_epochs", 1, "--precision", "32-true")
    return shared_run(tmp_path_factory.mktemp("logs"), *arguments)


@pytest.fixture
def checkpoint(run: Path) -> dict[str, Any]:
    return read_checkpoint(run / "checkpoints" / "best.ckpt")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The weights and card of a new net."""
    path = tmp_path / "net.safetensors"
    path.write_bytes(to_safetensors(Pretrained(SeedNet(), CARD)))
    return path


def test_pretrained_returns_weights_bit_for_bit(file: Path) -> None:
    net = SeedNet()
    file.write_bytes(to_safetensors(Pretrained(net, CARD)))
    loaded, card = load_pretrained(str(file))
    expected, found = net.state_dict(), loaded.state_dict()
    for name, before in expected.items():
        assert torch.equal(before, found[name]), name
        assert (before.stride(), before.dtype) == (found[name].stride(), found[name].dtype), name
    assert not any(layer.training for layer in loaded.modules())
    assert card == {**CARD, "weights_sha256": weights_digest(net)}
    assert to_safetensors(Pretrained(loaded, card)) == file.read_bytes()
    others = load_file(file)  # another reader
    assert others.keys() == expected.keys()
    assert all((values == expected[name].numpy()).all() for name, values in others.items())


def test_pretrained_reads_a_run_and_its_batch_norm(run: Path, checkpoint: dict[str, Any]) -> None:
    net = load_pretrained(str(run)).net
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, checkpoint["state_dict"][f"net.{name}"]), name
    assert net.state_dict()["features.1.num_batches_tracked"] == 11


def test_card_of_a_run_is_plain_and_complete(run: Path, checkpoint: dict[str, Any]) -> None:
    card = load_pretrained(str(run)).card
    assert json.loads(json.dumps(card)) == card
    assert (card["model"], card["parameters"], card["dataset"]) == ("compact", 227_066, "drawn")
    assert (card["classes"], card["trained_with"]) == (list(CLASSES), checkpoint["environment"])
    assert card["metrics"] == json.loads((run / "metrics.json").read_text())
    assert (card["training"]["max_epochs"], card["training"]["lr"]) == (1, 1e-3)
    assert str(run.parent) not in json.dumps(card)
    assert str(run.parent) in (run / "config.yaml").read_text()  # the control: where it would come from
    assert load_pretrained("last", str(run.parent)).card == card


def test_card_has_no_metrics_of_another_test(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    metrics = json.loads((copy / "metrics.json").read_text())
    for changes in ({"checkpoint_epoch": 7}, {"checkpoint": "last"}, {"tta": True}):
        (copy / "metrics.json").write_text(json.dumps({**metrics, **changes}))
        assert "metrics" not in load_pretrained(str(copy)).card
    (copy / "metrics.json").unlink()
    assert "metrics" not in load_pretrained(str(copy)).card


def test_card_of_a_checkpoint_without_run(run: Path, checkpoint: dict[str, Any], tmp_path: Path) -> None:
    expected, alone = load_pretrained(str(run)).card["training"], tmp_path / "alone.ckpt"
    checkpoint["datamodule_hyper_parameters"]["dataset"] = "fashion_mnist"
    del checkpoint["data"]  # as in older checkpoints
    torch.save(checkpoint, alone)
    card = load_pretrained(str(alone)).card
    # Which only the run's config has.
    in_config = (*names(LoopOptions), "pretrained", "precision")
    for name in expected.keys() & in_config:
        del expected[name]
    assert card["training"] == {**expected, "dataset": "fashion_mnist"}
    assert card["trained_with"] == checkpoint["environment"]


class OwnNet(nn.Module):
    """A user's own net."""

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.dense = nn.Linear(math.prod(image_shape), num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.dense(images.flatten(1) / 255)


def plain_checkpoint(path: Path, net: nn.Module, **hparams: Any) -> str:
    """What another Trainer saves of a `Classifier`, with loaders of the user's own."""
    state = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    hparams = {"image_shape": [3, 8, 9], "num_classes": 4, "class_names": None, "dropout": None, **hparams}
    torch.save({"state_dict": state, "hyper_parameters": hparams}, path)
    return str(path)


def test_pretrained_reads_another_trainers_checkpoint(tmp_path: Path) -> None:
    net = build_net("fine", (3, 8, 9), 4)
    loaded, card = load_pretrained(plain_checkpoint(tmp_path / "plain.ckpt", net, model="fine"))
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in net.state_dict().items())
    info = recorded_info(card)
    assert (info.classes, info.image_shape) == (("0", "1", "2", "3"), (3, 8, 9))
    assert (info.title, info.framing) == ("unnamed data", "crop")
    named = plain_checkpoint(tmp_path / "named.ckpt", net, model="fine", class_names=["a", "b", "c", "d"])
    assert load_pretrained(named).card["classes"] == ["a", "b", "c", "d"]
    (tmp_path / "net.safetensors").write_bytes(to_safetensors(Pretrained(loaded, card)))
    assert load_pretrained(str(tmp_path / "net.safetensors")).card["data"] == card["data"]


def test_pretrained_loads_an_own_net_into_an_object(tmp_path: Path) -> None:
    net = OwnNet((3, 8, 9), 4)
    path = plain_checkpoint(tmp_path / "own.ckpt", net, model=None)
    with pytest.raises(UserError, match=r"load_classifier\('.*own.ckpt', net="):
        load_pretrained(path)
    given = OwnNet((3, 8, 9), 4)
    loaded, card = load_pretrained(path, net=given)
    assert loaded is given
    assert torch.equal(loaded.dense.weight, net.dense.weight)
    file = tmp_path / "own.safetensors"
    file.write_bytes(to_safetensors(Pretrained(loaded, card)))
    with pytest.raises(UserError, match="net="):
        load_pretrained(str(file))
    again = load_pretrained(str(file), net=OwnNet((3, 8, 9), 4)).net
    assert torch.equal(again.dense.weight, net.dense.weight)
    with pytest.raises(UserError, match="OwnNet"):
        load_pretrained(path, net=OwnNet((3, 8, 8), 4))


def test_pretrained_builds_an_own_net_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stubborn(image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        net = OwnNet(image_shape, num_classes)
        assert net.dense.weight.std().item() > 0  # which torch's meta device can't tell
        return net

    for build in (OwnNet, stubborn):
        monkeypatch.setitem(MODELS, "mine", build)
        net = OwnNet((3, 8, 9), 4)
        loaded = load_pretrained(plain_checkpoint(tmp_path / "own.ckpt", net, model="mine")).net
        assert torch.equal(loaded.dense.weight, net.dense.weight)


def test_pretrained_rounds_64_bits_to_32(run: Path, checkpoint: dict[str, Any], tmp_path: Path) -> None:
    state = checkpoint["state_dict"]
    state |= {name: tensor.double() for name, tensor in state.items() if tensor.is_floating_point()}
    torch.save(checkpoint, tmp_path / "double.ckpt")
    net = load_pretrained(str(tmp_path / "double.ckpt")).net
    assert weights_digest(net) == weights_digest(load_pretrained(str(run)).net)


def test_packaged_weights_and_their_readme() -> None:
    net, card = load_pretrained()
    metrics = card["metrics"]
    assert PACKAGED.stat().st_size < 1_000_000
    assert metrics["accuracy"] > 0.95
    low, high = metrics["accuracy_95_interval"]
    rows = {
        "model": card["model"],
        "parameters": f"{card['parameters']:,}",
        "data set": card["dataset"],
        "test accuracy": f"{metrics['accuracy']:.2%} (95% interval {100 * low:.2f} to {high:.2%})",
        "test ROC AUC": f"{metrics['auroc']:.2%}",
        "training": f"seed {metrics['seed']}, {metrics['epochs']} epochs, commit {metrics['git']['commit']:.12}",
        "license": card["licence"],
        "SHA-256 of the weights": weights_digest(net),
    }
    readme = PACKAGED.with_name("README.md").read_text(encoding="utf-8")
    assert "\n".join(f"| {name} | {value} |" for name, value in rows.items()) in readme


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda card, _: card.update(format=2), "format 2"),
        (lambda card, _: card.update(classes=["cat", "dog"]), "cat"),
        (lambda card, _: card.update(dataset="cifar"), "cifar"),
        (lambda card, _: card.update(dataset=["drawn"]), "unhashable"),
        (lambda card, _: card.update(data=1), "TypeError"),
        (lambda card, _: card.update(data={**DATA, "image_shape": [1, 28]}), r"\(1, 28\)"),
        (lambda card, _: card.update(data={**DATA, "image_shape": [1, 28, "28"]}), "'28'"),
        (lambda card, _: card.update(data={**DATA, "image_shape": [1, 28, 4096]}), r"layers\.9"),
        (lambda card, _: card.update(data={**DATA, "image_shape": [1, 28, 10**40]}), "0{40}"),
        (lambda card, _: card.update(model="compact", data={**DATA, "image_shape": [1, 40_000, 40_000]}), "40000"),
        (lambda card, _: card.update(data={**DATA, "classes": [*CLASSES, "hat"]}), "classes"),
        (lambda card, _: card.update(data={**DATA, "title": "\x1b[2J"}), r"x1b"),
        (lambda card, _: card.update(data={**DATA, "framing": "round"}), "round"),
        (lambda card, _: card.update(data={**DATA, "published": {"accuracy": "91"}}), "91"),
        (lambda card, _: card.update(data={**DATA, "published": [91]}), "91"),
        (lambda card, _: card.update(data={**DATA, "extra": 1}), "extra"),
        (lambda card, _: card.update(model=None), "net="),
        (lambda card, _: card.update(model="vast"), "vast"),
        (lambda card, _: card.update(dropout=[2, 0, 0]), "rate 2"),
        (lambda card, _: card.update(weights_sha256="0"), "changed or damaged"),
        (lambda card, _: card.pop("dropout"), "dropout"),
        (lambda _, tensors: tensors.pop("layers.12.bias"), r"layers\.12\.bias"),
        (lambda _, tensors: tensors.update(extra=torch.zeros(1)), "extra"),
        (lambda _, tensors: tensors.update({"layers.0.bias": torch.zeros(8)}), r"layers\.0\.bias"),
        (lambda _, tensors: tensors.update({"layers.0.bias": torch.full((32,), 0.1).double()}), "changed or damaged"),
        (lambda _, tensors: tensors["layers.0.bias"].fill_(torch.nan), r"layers\.0\.bias"),
    ],
)
def test_pretrained_refuses_what_does_not_fit(file: Path, change: Callable[..., object], word: str) -> None:
    with safetensors.safe_open(file, framework="pt") as opened:
        card = json.loads(opened.metadata()["card"])
    tensors = safetensors.torch.load_file(file)
    change(card, tensors)
    safetensors.torch.save_file(tensors, file, {"card": json.dumps(card)})
    with pytest.raises(UserError, match=rf"net\.safetensors.*{word}|{word}.*net\.safetensors"):
        load_pretrained(str(file))


def test_pretrained_refuses_a_file_without_card(file: Path) -> None:
    tensors = safetensors.torch.load_file(file)
    for metadata in (None, {"format": "pt"}, {"card": "{"}, {"card": "[]"}, {"card": "1"}):
        safetensors.torch.save_file(tensors, file, metadata)
        with pytest.raises(UserError, match=r"net\.safetensors.* card"):
            load_pretrained(str(file))


def test_pretrained_refuses_a_damaged_file(file: Path) -> None:
    content = file.read_bytes()
    for damaged in (b"", b"\x80\x04pickle", content[:-1], content[:-1] + bytes([content[-1] ^ 1])):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"net\.safetensors"):
            load_pretrained(str(file))
    with pytest.raises(UserError, match="missing"):
        load_pretrained("missing.safetensors")


def test_pretrained_refuses_a_strange_checkpoint(checkpoint: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "strange.ckpt"
    for changes in ({"state_dict": [1]}, {"hyper_parameters": "seed"}, {"hyper_parameters": {}}):
        torch.save({**checkpoint, **changes}, path)
        with pytest.raises(UserError, match=r"strange\.ckpt"):
            load_pretrained(str(path))
