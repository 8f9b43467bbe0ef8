"""Weights that travel come back as they were, with what is to be known of them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import IN_CI, Program, small_run

from fmnist_lightning.data import drawn
from fmnist_lightning.data.drawn import load_drawn
from fmnist_lightning.data.fashion_mnist import CLASSES, FILES
from fmnist_lightning.models.nets import SeedNet
from fmnist_lightning.models.pretrained import PACKAGED, Pretrained, load_pretrained, save_pretrained
from fmnist_lightning.runs.checkpoints import AtomicCheckpointIO, read_checkpoint
from fmnist_lightning.runs.folders import MODULE_OPTIONS
from fmnist_lightning.training.train import train

ROOT = Path(__file__).parents[2]
CARD = {
    "format": 1,
    "model": "seed",
    "dropout": [0.25, 0.25, 0.5],
    "classes": list(CLASSES),
    "dataset": "drawn",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch on the small drawn set, tested; the tests below only read it."""
    logs = tmp_path_factory.mktemp("logs")
    with pytest.MonkeyPatch.context() as patch:
        for split, count in (("train", 60), ("test", 20)):
            patch.setitem(drawn.PER_CLASS, split, count)
        train(dataset="drawn", max_epochs=1, batch_size=50, accelerator="cpu", log_dir=str(logs))
    return logs / "version_0"


@pytest.fixture
def content(run: Path) -> dict[str, Any]:
    """What the run's best checkpoint holds."""
    return read_checkpoint(run / "checkpoints" / "best.ckpt")


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """The weights file of a fresh net, with its card beside it."""
    torch.manual_seed(0)
    return save_pretrained(Pretrained(SeedNet(), CARD), tmp_path / "net.safetensors")


def test_weights_come_back_bit_for_bit_in_a_fresh_nets_memory_order(pair: Path) -> None:
    torch.manual_seed(0)
    original = SeedNet()
    loaded = load_pretrained(str(pair)).net
    for (name, before), (_, after) in zip(original.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert torch.equal(before, after), name
        assert (before.stride(), before.dtype) == (after.stride(), after.dtype), name
    assert not any(layer.training for layer in loaded.modules())


def test_another_reader_of_safetensors_finds_the_same_numbers(pair: Path) -> None:
    from safetensors.numpy import load_file

    torch.manual_seed(0)
    expected = SeedNet().state_dict()
    found = load_file(pair)
    assert found.keys() == expected.keys()
    for name, values in found.items():
        assert (values == expected[name].numpy()).all(), name


def test_saving_twice_writes_the_same_bytes(pair: Path, tmp_path: Path) -> None:
    again = save_pretrained(load_pretrained(str(pair)), tmp_path / "again")
    assert again.name == "again.safetensors"
    assert again.read_bytes() == pair.read_bytes()
    assert again.with_suffix(".json").read_bytes() == pair.with_suffix(".json").read_bytes()


def test_the_seed_net_stays_under_a_megabyte(pair: Path) -> None:
    assert pair.stat().st_size + pair.with_suffix(".json").stat().st_size < 1_000_000


def test_a_run_gives_its_best_checkpoint_and_a_card_of_plain_json(run: Path, content: dict[str, Any]) -> None:
    net, card = load_pretrained(str(run))
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, content["state_dict"][f"net.{name}"]), name
    assert json.loads(json.dumps(card)) == card
    assert card["model"] == "seed"
    assert card["classes"] == list(CLASSES)
    assert card["parameters"] == 225_034
    assert card["dataset"] == "drawn"
    assert card["training"]["max_epochs"] == 1
    assert card["training"]["lr"] == 1e-3
    assert card["trained_with"] == content["environment"]
    assert card["metrics"] == json.loads((run / "metrics.json").read_text())
    assert "data_sha256" not in card  # drawn garments have no files


def test_the_newest_run_is_last(run: Path) -> None:
    assert load_pretrained("last", str(run.parent)).card == load_pretrained(str(run)).card


def test_a_card_names_no_folder_of_the_machine(run: Path) -> None:
    assert str(run.parent) not in json.dumps(load_pretrained(str(run)).card)
    assert str(run.parent) in (run / "config.yaml").read_text()  # where it would have come from


def test_a_run_that_was_not_tested_has_no_figures_in_its_card(run: Path, tmp_path: Path) -> None:
    untested = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("metrics.json"))
    assert "metrics" not in load_pretrained(str(untested)).card


@pytest.mark.parametrize("changes", [{"checkpoint_epoch": 7}, {"checkpoint": "last"}, {"tta": True}])
def test_figures_of_another_checkpoint_or_of_mirror_images_are_left_out(
    run: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    resumed = shutil.copytree(run, tmp_path / "run")
    metrics = json.loads((run / "metrics.json").read_text())
    (resumed / "metrics.json").write_text(json.dumps({**metrics, **changes}))
    assert "metrics" not in load_pretrained(str(resumed)).card


def test_a_checkpoint_outside_a_run_tells_of_itself(run: Path, tmp_path: Path) -> None:
    alone = shutil.copy(run / "checkpoints" / "best.ckpt", tmp_path / "alone.ckpt")
    of_run, of_file = load_pretrained(str(run)).card, load_pretrained(str(alone)).card
    assert of_file["training"].items() < of_run["training"].items()
    assert {"batch_size", "seed", *MODULE_OPTIONS} <= of_file["training"].keys()
    assert "max_epochs" not in of_file["training"]  # which its run's config alone tells
    assert of_file["dataset"] == "drawn"
    assert of_file["trained_with"] == of_run["trained_with"]


def test_fashion_mnists_digests_stand_in_the_card(content: dict[str, Any], tmp_path: Path) -> None:
    content["datamodule_hyper_parameters"]["dataset"] = "fashion_mnist"
    AtomicCheckpointIO().save_checkpoint(content, tmp_path / "real.ckpt")
    card = load_pretrained(str(tmp_path / "real.ckpt")).card
    assert card["data_sha256"] == {name: spec.sha256 for name, spec in FILES.items()}


def test_weights_of_64_bits_are_rounded_to_32(run: Path, content: dict[str, Any], tmp_path: Path) -> None:
    content["state_dict"] = {name: tensor.double() for name, tensor in content["state_dict"].items()}
    AtomicCheckpointIO().save_checkpoint(content, tmp_path / "double.ckpt")
    net = load_pretrained(str(tmp_path / "double.ckpt")).net
    expected = load_pretrained(str(run)).net.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in net.state_dict().items())


def test_a_weights_file_needs_no_lightning(pair: Path) -> None:
    program = (
        "import sys; from fmnist_lightning.models.pretrained import load_pretrained; "
        "load_pretrained(sys.argv[1]); sys.exit('lightning' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, pair], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_a_net_with_batch_norm_is_loaded_from_its_run(program: Program, tmp_path: Path, small_drawn: None) -> None:
    run, _ = small_run(program, tmp_path, "--model", "compact", "--max_epochs", 1)
    net = load_pretrained(str(run)).net
    images = load_drawn(train=False).images
    with np.load(run / "predictions.npz") as predictions:
        assert (net(images).argmax(dim=1).numpy() == predictions["probs"].argmax(axis=1)).mean() > 0.95  # bf16 or not
    assert net.state_dict()["features.1.num_batches_tracked"] == 11


@pytest.mark.skipif(not PACKAGED.is_file() and not IN_CI, reason=f"{PACKAGED} is not there")
def test_the_packaged_net_is_whole_and_says_what_it_can_do() -> None:
    card = load_pretrained().card
    assert card["dataset"] == "fashion_mnist"
    assert card["data_sha256"] == {name: spec.sha256 for name, spec in FILES.items()}
    assert card["metrics"]["accuracy"] > 0.95
    assert card["metrics"]["git"]["commit"]
    assert PACKAGED.stat().st_size < 1_000_000
