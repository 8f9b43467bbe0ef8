"""Distillation: the literature's loss, from a teacher that stays as it is, resumed bit for bit."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import Program, metrics_of, shared_run, small_run
from scipy.stats import entropy

from fmnist_lightning.data.sets.drawn import DRAWN
from fmnist_lightning.errors import UserError
from fmnist_lightning.models.nets import SeedNet
from fmnist_lightning.models.pretrained import Pretrained, load_pretrained, to_safetensors, weights_digest
from fmnist_lightning.runs.checkpoints import read_checkpoint
from fmnist_lightning.runs.folders import read_config
from fmnist_lightning.runs.options import TrainOptions
from fmnist_lightning.training.distillation import Teacher, prepare_teacher, validation_notice
from fmnist_lightning.training.train import train
from tools.torture import result

pytestmark = pytest.mark.usefixtures("small_drawn")
IMAGES = torch.randint(0, 256, (6, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def net() -> SeedNet:
    torch.manual_seed(0)
    return SeedNet().eval()


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory, trained_once: Path) -> Path:
    """A run of two epochs whose teacher was the last run before it, a copy of `trained_once`."""
    log_dir = tmp_path_factory.mktemp("taught")
    shutil.copytree(trained_once, log_dir / "version_0")
    return shared_run(log_dir, "--teacher", "last")


@pytest.fixture
def stranger(net: SeedNet, tmp_path: Path, trained_once: Path) -> Path:
    """Weights of a model that taught nobody."""
    file = tmp_path / "stranger.safetensors"
    file.write_bytes(to_safetensors(Pretrained(net, load_pretrained(str(trained_once)).card)))
    return file


@pytest.mark.parametrize(("share", "temperature"), [(0.0, 1.0), (0.5, 1.0), (0.9, 4.0)])
def test_loss_has_scipys_divergence(net: SeedNet, share: float, temperature: float) -> None:
    """And its gradients reach the student, but not the teacher."""
    logits = torch.randn(6, 10, generator=torch.Generator().manual_seed(1)).requires_grad_()
    teacher, student = ((one / temperature).softmax(dim=1).detach().numpy() for one in (net(IMAGES), logits))
    expected = (1 - share) * 2 + share * temperature**2 * entropy(teacher, student, axis=1).mean()
    loss = Teacher(net, "seed", "", share, temperature).loss(logits, IMAGES, torch.tensor(2.0))
    assert loss.item() == pytest.approx(expected)
    loss.backward()
    assert (logits.grad.abs().max() > 0) == (share > 0)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_taught_run_saves_its_student_and_names_its_teacher(taught: Path, trained_once: Path) -> None:
    assert read_config(taught)["teacher"] == str(taught.with_name("version_0"))  # the last run at the start
    content, alone = (read_checkpoint(run / "checkpoints" / "last.ckpt") for run in (taught, trained_once))
    assert content["state_dict"].keys() == alone["state_dict"].keys()
    sha256 = weights_digest(load_pretrained(str(trained_once)).net)
    identity = {"model": "seed", "sha256": sha256, "share": 0.9, "temperature": 4.0}
    for record in (content, metrics_of(taught), load_pretrained(str(taught)).card):
        assert record["teacher"] == identity
    for record in (alone, load_pretrained(str(trained_once)).card):
        assert "teacher" not in record


def test_taught_run_resumes_bit_for_bit(program: Program, tmp_path: Path, trained: Path, taught: Path) -> None:
    stopped, _ = small_run(program, tmp_path / "stopped", "--teacher", trained, "--max_epochs", 1, "--test", "false")
    student, alone = (read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"] for run in (stopped, trained))
    assert not any(map(torch.equal, student.values(), alone.values()))  # negative control: the teacher matters
    assert program(train, "--resume", stopped, "--max_epochs", 2, "--test", "true")[0] == 0
    assert result(stopped) == result(taught)


def test_run_does_not_resume_with_another_teacher(
    program: Program, trained: Path, taught: Path, stranger: Path
) -> None:
    others = ("--teacher", stranger), ("--teacher", "null"), ("--teacher_share", 0.5), ("--temperature", 1)
    for run, other in [*((taught, other) for other in others), (trained, ("--teacher", stranger))]:
        status, output = program(train, "--resume", run, "--max_epochs", 3, *other)
        assert status == 1, (run, other)
        assert f"cannot resume {run} with the teacher" in output


@pytest.mark.parametrize("teacher", ["packaged", "gone.safetensors"])
def test_teacher_of_other_images_or_nowhere_leaves_no_run(program: Program, tmp_path: Path, teacher: str) -> None:
    status, output = program(train, "--dataset", "drawn", "--log_dir", tmp_path / "logs", "--teacher", teacher)
    assert status == 1
    assert teacher in output
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize(
    ("teachers", "own", "seen"),
    [(0.0, 0.1, True), (0.1, 0.2, True), (0.1, 0.1, False), (0.2, 0.1, False), (0.0, 0.0, False), (None, 0.1, False)],
)
def test_notice_names_a_teacher_of_validation_images(teachers: float | None, own: float, seen: bool) -> None:
    card = {"training": {"val_fraction": teachers} if teachers is not None else []}
    assert ("the teacher last.ckpt" in validation_notice("last.ckpt", card, own)) is seen


def test_notice_is_printed_once(stranger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = TrainOptions(dataset="drawn", teacher=str(stranger), val_fraction=0.2)
    for _ in range(2):
        prepare_teacher(options, L.Fabric(accelerator="cpu", devices=1), DRAWN)
    assert capsys.readouterr().err.count(f"WARNING: the teacher {stranger} was trained on validation images") == 1


def test_teacher_of_other_classes_or_shape_is_refused(stranger: Path) -> None:
    """A folder has the name of any other folder; the classes' order counts, too."""
    options, fabric = TrainOptions(dataset="drawn", teacher=str(stranger)), L.Fabric(accelerator="cpu", devices=1)
    assert prepare_teacher(options, fabric, DRAWN)[1]  # the negative control
    others: list[tuple[dict[str, Any], str]] = [
        ({"name": "folder"}, "folder"),
        ({"image_shape": (3, 28, 28)}, r"\(3, 28, 28\)"),
        ({"classes": DRAWN.classes[::-1]}, "Ankle boot, Bag"),
    ]
    for other, expected in others:
        with pytest.raises(UserError, match=expected):
            prepare_teacher(options, fabric, replace(DRAWN, **other))


def test_teacher_of_any_shape_and_classes_teaches() -> None:
    teacher = SeedNet((3, 12, 10), 2).eval()
    images = torch.rand(6, 3, 12, 10)
    loss = Teacher(teacher, "seed", "", 1.0, 1.0).loss(teacher(images), images, torch.tensor(2.0))
    assert loss.item() == pytest.approx(0, abs=1e-6)
