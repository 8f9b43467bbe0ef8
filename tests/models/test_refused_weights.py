"""Weights and cards that don't fit each other, this project or the truth are refused, each with its reason."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from test_pretrained import CARD, content, pair, run

from fmnist_lightning.errors import UserError
from fmnist_lightning.models import pretrained
from fmnist_lightning.models.nets import SeedNet
from fmnist_lightning.models.pretrained import Pretrained, load_pretrained, save_pretrained
from fmnist_lightning.runs import files
from fmnist_lightning.runs.checkpoints import AtomicCheckpointIO

__all__ = ["content", "pair", "run"]  # fixtures


def change_card(pair: Path, **changes: object) -> None:
    card = pair.with_suffix(".json")
    card.write_text(json.dumps({**json.loads(card.read_text()), **changes}))


def replace_weights(pair: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Other weights under the same name, and their digest in the card."""
    tensors = safetensors.torch.load_file(pair)
    change(tensors)
    safetensors.torch.save_file(tensors, pair)
    change_card(pair, weights={"sha256": hashlib.sha256(pair.read_bytes()).hexdigest()})


def test_one_flipped_bit_is_noticed(pair: Path) -> None:
    content = bytearray(pair.read_bytes())
    content[-1] ^= 1
    pair.write_bytes(content)
    with pytest.raises(UserError, match=r"does not belong to net\.json: its SHA-256"):
        load_pretrained(str(pair))


def test_weights_swapped_for_another_nets_of_the_same_shape_are_noticed(pair: Path, tmp_path: Path) -> None:
    other = save_pretrained(Pretrained(SeedNet(), CARD), tmp_path / "other")
    pair.write_bytes(other.read_bytes())
    with pytest.raises(UserError, match="damaged or was swapped"):
        load_pretrained(str(pair))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 2}, r"newer version of this project .format 2"),
        ({"format": None}, "lacks a format number"),
        ({"model": "vast"}, "the net vast; this version has seed"),
        ({"model": ["seed"]}, "this version has seed"),
        ({"classes": ["cat", "dog"]}, "other classes"),
        ({"dropout": [2, 0, 0]}, "dropout rate is 2"),
        ({"dropout": None}, "no dropout rates that seed takes"),
        ({"weights": "0123"}, "names no digest"),
        ({"weights": {}}, "does not belong"),
    ],
)
def test_a_card_that_means_something_else_is_refused(pair: Path, changes: dict[str, Any], words: str) -> None:
    change_card(pair, **changes)
    with pytest.raises(UserError, match=words):
        load_pretrained(str(pair))


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"{", "can't be read as JSON"), (b"\xff", "as JSON"), (b"[" * 100_000, "as JSON"), (b"[]", "holds list")],
)
def test_a_damaged_card_is_named(pair: Path, content: bytes, words: str) -> None:
    pair.with_suffix(".json").write_bytes(content)
    with pytest.raises(UserError, match=rf"net\.json.*{words}"):
        load_pretrained(str(pair))


def test_a_card_that_lacks_what_the_net_needs_is_refused(pair: Path) -> None:
    card = json.loads(pair.with_suffix(".json").read_text())
    del card["dropout"]
    pair.with_suffix(".json").write_text(json.dumps(card))
    with pytest.raises(UserError, match=r"net\.json lacks dropout"):
        load_pretrained(str(pair))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.pop("layers.12.bias"), "layers.12.bias is missing, expected .10,. float32"),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), "extra is .1,. float32, expected no such tensor"),
        (lambda tensors: tensors.update({"layers.0.bias": torch.zeros(8)}), "is .8,. float32, expected .32,. float32"),
        (lambda tensors: tensors.update({"layers.0.bias": torch.zeros(32).double()}), "is .32,. float64"),
        (lambda tensors: tensors["layers.0.bias"].fill_(torch.nan), "not finite .layers.0.bias"),
    ],
)
def test_weights_that_are_not_the_nets_are_refused(
    pair: Path, change: Callable[[dict[str, torch.Tensor]], object], words: str
) -> None:
    replace_weights(pair, change)
    with pytest.raises(UserError, match=words):
        load_pretrained(str(pair))


@pytest.mark.parametrize("content", [b"", b"\x80\x04pickle", b"\xff" * 100])
def test_weights_that_are_no_safetensors_are_named(pair: Path, content: bytes) -> None:
    pair.write_bytes(content)
    change_card(pair, weights={"sha256": hashlib.sha256(content).hexdigest()})
    with pytest.raises(UserError, match="can't be read as safetensors"):
        load_pretrained(str(pair))


def test_a_card_alone_and_weights_alone_are_named(pair: Path) -> None:
    pair.with_suffix(".json").rename(pair.parent / "elsewhere.json")
    with pytest.raises(UserError, match=r"net\.json does not exist: copy it with its weights"):
        load_pretrained(str(pair))
    pair.unlink()
    with pytest.raises(UserError, match=r"net\.safetensors does not exist"):
        load_pretrained(str(pair))


def test_a_package_without_weights_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "PACKAGED", tmp_path / "weights" / "seed.safetensors")
    with pytest.raises(UserError, match=r"installed without its weights, or train .*scripts/train\.py"):
        load_pretrained()


@pytest.mark.parametrize(
    "changes",
    [{"state_dict": [1]}, {"hyper_parameters": "seed"}, {"datamodule_hyper_parameters": 3}, {"hyper_parameters": {}}],
)
def test_a_strange_checkpoint_is_refused(content: dict[str, Any], tmp_path: Path, changes: dict[str, Any]) -> None:
    AtomicCheckpointIO().save_checkpoint({**content, **changes}, tmp_path / "strange.ckpt")
    with pytest.raises(UserError, match=r"strange\.ckpt"):
        load_pretrained(str(tmp_path / "strange.ckpt"))


def test_a_kill_between_weights_and_card_is_noticed(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed_behind_the_first(staged: Path, path: Path) -> None:
        installed.append(path)
        if len(installed) == 2:
            raise KeyboardInterrupt
        staged.replace(path)

    installed: list[Path] = []
    monkeypatch.setattr(files, "fsync_and_rename", killed_behind_the_first)
    with pytest.raises(KeyboardInterrupt):
        save_pretrained(Pretrained(SeedNet(), CARD), pair)
    with pytest.raises(UserError, match="does not belong"):
        load_pretrained(str(pair))
