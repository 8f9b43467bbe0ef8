"""A net that learns from another one: by the literature's loss, from a teacher that stays as it is, on to the bit."""

import math
from pathlib import Path

import pytest
import torch
from conftest import Program, metrics_of, small_run
from scipy.stats import entropy

from fmnist_lightning.data.batches import Batch
from fmnist_lightning.models.nets import SeedNet
from fmnist_lightning.models.pretrained import Pretrained, load_pretrained, save_pretrained, weights_digest
from fmnist_lightning.runs.checkpoints import read_checkpoint
from fmnist_lightning.runs.folders import read_config
from fmnist_lightning.training.distillation import Teacher
from fmnist_lightning.training.module import Classifier
from fmnist_lightning.training.train import train
from tools.torturing import result

pytestmark = pytest.mark.usefixtures("small_drawn")
IMAGES = torch.randint(0, 256, (6, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS_LOSS = torch.tensor(2.0)


@pytest.fixture
def net() -> SeedNet:
    torch.manual_seed(0)
    return SeedNet().eval()


@pytest.fixture
def taught(program: Program, tmp_path: Path, trained: Path) -> Path:
    """A run of two epochs that learned from `trained`."""
    return small_run(program, tmp_path / "taught", "--teacher", trained)[0]


@pytest.fixture
def stranger(net: SeedNet, tmp_path: Path, trained: Path) -> Path:
    """Weights of a net that taught nobody."""
    return save_pretrained(Pretrained(net, load_pretrained(str(trained)).card), tmp_path / "stranger")


@pytest.mark.parametrize(("share", "temperature"), [(0.0, 1.0), (0.5, 1.0), (0.9, 4.0)])
def test_the_loss_is_that_of_the_labels_and_scipys_divergence(net: SeedNet, share: float, temperature: float) -> None:
    logits = torch.randn(6, 10, generator=torch.Generator().manual_seed(1))
    theirs, ours = ((one / temperature).softmax(dim=1).detach() for one in (net(IMAGES), logits))
    divergence = entropy(theirs.numpy(), ours.numpy(), axis=1).mean()
    expected = (1 - share) * 2 + share * temperature**2 * divergence
    assert Teacher(net, "seed", "", share, temperature).loss(logits, IMAGES, LABELS_LOSS).item() == pytest.approx(
        expected
    )


def test_who_agrees_with_the_teacher_has_the_labels_loss_alone_and_who_does_not_has_more(net: SeedNet) -> None:
    teacher = Teacher(net, "seed", "", 0.75, 4.0)
    assert teacher.loss(net(IMAGES), IMAGES, LABELS_LOSS).item() == pytest.approx(0.25 * 2)
    assert teacher.loss(-9 * net(IMAGES), IMAGES, LABELS_LOSS).item() > 0.25 * 2 + 0.1


def test_gradients_reach_the_learner_and_not_the_teacher(net: SeedNet) -> None:
    logits = torch.zeros(6, 10, requires_grad=True)
    Teacher(net, "seed", "", 0.9, 4.0).loss(logits, IMAGES, LABELS_LOSS).backward()
    assert logits.grad is not None
    assert logits.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_run_learns_from_its_teacher_and_keeps_the_learner_alone(
    program: Program, tmp_path: Path, trained: Path, taught: Path
) -> None:
    alone, _ = small_run(program, tmp_path / "alone")
    assert result(taught)["tensors"] != result(alone)["tensors"]
    content = read_checkpoint(taught / "checkpoints" / "last.ckpt")
    assert content["state_dict"].keys() == read_checkpoint(alone / "checkpoints" / "last.ckpt")["state_dict"].keys()
    assert content["teacher"] == {
        "model": "seed",
        "sha256": weights_digest(load_pretrained(str(trained)).net),
        "share": 0.9,
        "temperature": 4.0,
    }
    for say in (metrics_of(taught), load_pretrained(str(taught)).card):
        assert say["teacher"] == content["teacher"]
    for say in (metrics_of(alone), load_pretrained(str(alone)).card):
        assert "teacher" not in say


def test_a_learner_that_hears_the_teacher_alone_comes_to_agree_with_it(net: SeedNet) -> None:
    torch.manual_seed(1)
    learner = SeedNet((0.0, 0.0, 0.0))
    optimizer = torch.optim.Adam(learner.parameters(), lr=1e-3)
    losses = []
    for _ in range(30):
        loss = Teacher(net, "seed", "", 0.9, 4.0).loss(learner(IMAGES), IMAGES, torch.tensor(0.0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 10


def test_of_blended_images_the_teacher_judges_the_blend_and_the_labels_count_by_their_shares(
    program: Program, tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[Batch] = []
    judged = []

    def step(self: Classifier, batch: Batch, batch_idx: int) -> torch.Tensor:
        batches.append(batch)
        return training_step(self, batch, batch_idx)

    def judge(self: Teacher, logits: torch.Tensor, images: torch.Tensor, labels_loss: torch.Tensor) -> torch.Tensor:
        judged.append((logits.detach(), images, labels_loss.item()))
        return loss(self, logits, images, labels_loss)

    training_step, loss = Classifier.training_step, Teacher.loss
    monkeypatch.setattr(Classifier, "training_step", step)
    monkeypatch.setattr(Teacher, "loss", judge)
    small_run(program, tmp_path, "--teacher", trained, "--mixup", 0.5, "--max_epochs", 1, "--precision", "32-true")
    assert len(batches) == len(judged) > 0
    for batch, (logits, images, labels_loss) in zip(batches, judged, strict=True):
        assert torch.equal(images, batch.images)
        assert (batch.targets.amax(dim=1) < 1).any()
        by_shares = -(batch.targets * logits.log_softmax(dim=1)).sum(dim=1).mean()
        assert labels_loss == pytest.approx(by_shares.item(), rel=1e-5)


def test_a_teacher_has_the_digest_that_stands_in_its_card() -> None:
    net, card = load_pretrained()
    assert weights_digest(net) == card["weights"]["sha256"]


def test_a_run_that_goes_on_with_its_teacher_ends_as_if_it_had_not_stopped(
    program: Program, tmp_path: Path, trained: Path, taught: Path
) -> None:
    stopped, _ = small_run(program, tmp_path / "stopped", "--teacher", trained, "--max_epochs", 1, "--test", "false")
    assert program(train, "--resume", stopped, "--max_epochs", 2, "--test", "true")[0] == 0
    ended, expected = result(stopped), result(taught)
    assert (ended["tensors"], ended["figures"]) == (expected["tensors"], expected["figures"])


def test_a_run_does_not_go_on_with_another_teacher(program: Program, taught: Path, stranger: Path) -> None:
    for other in (("--teacher", stranger), ("--teacher", "null"), ("--teacher_share", 0.5), ("--temperature", 1)):
        status, output = program(train, "--resume", taught, "--max_epochs", 3, *other)
        assert status == 1, other
        assert f"{taught} was taught by seed" in output
        assert "give the options of its own teacher" in output


def test_a_run_without_a_teacher_does_not_go_on_with_one(program: Program, trained: Path, stranger: Path) -> None:
    status, output = program(train, "--resume", trained, "--max_epochs", 2, "--teacher", stranger)
    assert status == 1
    assert f"{trained} was taught by none" in output
    assert "give --teacher null" in output


def test_a_teacher_of_other_images_is_refused(program: Program, tmp_path: Path) -> None:
    status, output = program(train, "--dataset", "drawn", "--log_dir", tmp_path, "--teacher", "packaged")
    assert status == 1
    assert "packaged was trained on fashion_mnist, and this training is on drawn" in output


@pytest.mark.parametrize(
    ("teachers", "own", "seen"),
    [(0.0, 0.1, True), (0.1, 0.2, True), (0.1, 0.1, False), (0.2, 0.1, False), (0.0, 0.0, False), (None, 0.1, False)],
)
def test_a_teacher_that_saw_the_validation_images_is_told_of(
    program: Program, net: SeedNet, tmp_path: Path, trained: Path, teachers: float | None, own: float, seen: bool
) -> None:
    card = load_pretrained(str(trained)).card
    card["training"] = {"val_fraction": teachers} if teachers is not None else []
    teacher = save_pretrained(Pretrained(net, card), tmp_path / "teacher")
    options = ("--teacher", teacher, "--val_fraction", own, "--ckpt", "last", "--max_epochs", 1, "--test", "false")
    _, output = small_run(program, tmp_path, *options)
    warning = f"WARNING: the teacher {teacher} was trained on validation images of this training"
    assert output.count(warning) == seen


def test_last_is_the_newest_run_when_the_training_began(program: Program, trained: Path) -> None:
    run, _ = small_run(program, trained.parent, "--teacher", "last", "--max_epochs", 1, "--test", "false")
    assert read_config(run)["teacher"] == str(trained)


def test_a_teacher_that_is_not_there_is_named_and_leaves_no_run(program: Program, tmp_path: Path) -> None:
    arguments = ("--dataset", "drawn", "--log_dir", tmp_path / "logs", "--teacher", tmp_path / "gone")
    status, output = program(train, *arguments)
    assert status == 1
    assert output.startswith(f"error: {tmp_path / 'gone'}")
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize("wrong", [("--temperature", 0), ("--temperature", math.inf), ("--teacher_share", 1.5)])
def test_wrong_numbers_are_refused(program: Program, wrong: tuple[str, float]) -> None:
    status, output = program(train, "--teacher", "packaged", *wrong)
    assert status == 2
    assert f'"{wrong[0].lstrip("-")}"' in output
