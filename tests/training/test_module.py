"""The module's arguments, its metrics over interrupted epochs, its losses, and what its checkpoints hold."""

from functools import partial
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import lightning as L
import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import Callback
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.nn import functional as F

from fmnist_lightning.data.batches import Batch
from fmnist_lightning.data.datamodule import FashionMNISTDataModule
from fmnist_lightning.data.source import DataError, DataInfo
from fmnist_lightning.errors import UserError
from fmnist_lightning.metrics import Outputs
from fmnist_lightning.models.layers import Dropout
from fmnist_lightning.models.nets import SeedNet
from fmnist_lightning.runs.checkpoints import load_weights
from fmnist_lightning.runs.options import TrainOptions
from fmnist_lightning.training import module as module_file
from fmnist_lightning.training.distillation import Teacher
from fmnist_lightning.training.evaluate import check_counted_once
from fmnist_lightning.training.module import Classifier, build_classifier

pytestmark = pytest.mark.usefixtures("small_drawn")


class StoppedError(Exception):
    """Raised in the middle of an epoch."""


class Interrupt(Callback):
    """Raises after a training or validation step."""

    def __init__(self, stage: str) -> None:
        self.stage = stage

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if self.stage == "train" and trainer.global_step == 5:
            raise StoppedError

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if self.stage == "val" and not trainer.sanity_checking:
            raise StoppedError

    def on_test_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        raise StoppedError


def fit(module: Classifier, *callbacks: Callback, max_steps: int = -1) -> None:
    """Train for an epoch of 540 images in batches of 50, and test on 200."""
    names = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    length: dict[str, Any] = {"max_epochs": 1, "max_steps": max_steps}
    trainer = L.Trainer(accelerator="cpu", callbacks=[*callbacks], **length, **dict.fromkeys(names, False))
    module.train()  # an interrupted validation leaves it in eval mode
    datamodule = FashionMNISTDataModule("drawn", batch_size=50)
    trainer.fit(module, datamodule)
    trainer.test(module, datamodule, verbose=False)


def new_module() -> Classifier:
    torch.manual_seed(0)
    return Classifier(dropout=(0, 0, 0))


@pytest.mark.parametrize("stage", ["train", "val", "test", "max_steps"])
def test_interrupted_epoch_leaves_nothing(stage: str) -> None:
    module = new_module()
    if stage == "max_steps":
        fit(module, max_steps=3)
    else:
        with pytest.raises(StoppedError):
            fit(module, Interrupt(stage))
    fit(module)
    for metrics, count in ((module.train_metrics, 540), (module.val_metrics, 60), (module.test_metrics, 200)):
        assert torch.equal(metrics.outputs.indices, torch.arange(count))


def test_checkpoint_in_an_epoch_has_the_weights_of_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """`load_weights` is strict. Rank 0 alone takes the outputs of all ranks."""
    module = new_module()
    at_end: dict[str, Any] = {}
    module.on_save_checkpoint(at_end)
    keys = module.state_dict().keys()
    module.train_metrics.update(torch.randn(3, 10), torch.tensor([1, 2, 3]), torch.tensor([7, 5, 6]))
    in_epoch = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(in_epoch)
    assert "seen" not in at_end
    assert in_epoch["state_dict"].keys() == keys
    for rank, indices in ((0, [5, 6, 7]), (1, [])):
        monkeypatch.setattr(Classifier, "global_rank", rank)
        loaded = new_module()
        load_weights(loaded, in_epoch, Path())
        loaded.on_load_checkpoint(in_epoch)
        assert loaded.train_metrics.collected().indices.tolist() == indices
        assert loaded.train_metrics.collected().logits.shape == (len(indices), 10)


def in_step(module: Classifier, ranks: int = 1) -> Classifier:
    """The module in the middle of an epoch of a Trainer."""
    trainer: Any = SimpleNamespace(training=True, is_last_batch=False, world_size=ranks, global_rank=ranks - 1)
    module._trainer = trainer
    return module


def test_check_counted_once_refuses_repeated_and_missing_images() -> None:
    logits, labels = torch.zeros(3, 10), torch.zeros(3, dtype=torch.int64)
    check_counted_once(Outputs(logits, labels, torch.tensor([0, 1, 2])), 3)
    for indices, count in (([0, 1, 1], 3), ([0, 1, 2], 2), ([0, 1, 2], 4)):
        with pytest.raises(RuntimeError):
            check_counted_once(Outputs(logits, labels, torch.tensor(indices)), count)


@pytest.mark.parametrize(("seed", "own_is_larger"), [(1, True), (8, False)])
def test_blended_images_and_labels_count_by_their_shares(seed: int, own_is_larger: bool) -> None:
    """In the loss of labels and for the teacher; the accuracy counts the label with the larger share."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (20, 1, 28, 28), dtype=torch.uint8, generator=generator)
    labels = torch.arange(20) % 10
    module, teacher = in_step(Classifier(dropout=(0, 0, 0), label_smoothing=0.1)), SeedNet().eval()
    torch.manual_seed(seed)
    batch: Any = FashionMNISTDataModule("drawn", mixup=0.5).augment_batch(Batch(images, labels, torch.arange(20), 20))
    assert 0 < batch.targets[0, 0] < 1
    assert torch.equal(batch.labels, labels if own_is_larger else labels.roll(1))
    log_probs = module(batch.images).log_softmax(dim=1)
    by_labels = -((0.9 * batch.targets + 0.1 / 10) * log_probs).sum(dim=1).mean()
    by_teacher = -(teacher(batch.images).softmax(dim=1) * log_probs).sum(dim=1).mean()
    entropy = Categorical(logits=teacher(batch.images)).entropy().mean()
    assert module.training_step(batch, 0).item() == pytest.approx(by_labels.item())
    module.teacher = Teacher(teacher, "seed", "", 0.5, 1.0)
    assert module.training_step(batch, 0).item() == pytest.approx((by_labels + by_teacher - entropy).item() / 2)
    assert torch.equal(module.train_metrics.labels[-1], batch.labels)


class Dense(nn.Module):
    """An own net for images in 0..255."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.layer = nn.Linear(2 * 5 * 4, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.flatten(1).float() / 255)


IMAGES = torch.randint(0, 256, (6, 2, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 0, 1])
OWN: dict[str, Any] = {"image_shape": (2, 5, 4), "num_classes": 3}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"model": "gone"}, "compact"),
        ({"optimizer": "gone"}, "muon"),
        ({"schedule": "gone"}, "one_cycle"),
        ({"optimizer": None}, "NoneType"),
        ({"optimizer": torch.optim.SGD(nn.Linear(1, 1).parameters())}, "of type SGD"),
        ({"schedule": torch.optim.lr_scheduler.StepLR(torch.optim.SGD(nn.Linear(1, 1).parameters()), 1)}, "StepLR"),
        *(({"num_classes": wrong}, "num_classes") for wrong in (1, 0, 10.0, "10", None)),
        *(({"class_names": wrong}, "class_names") for wrong in (["a", "b"], "abcdefghij", 10, [*range(10)])),
        *(({"image_shape": wrong}, "image_shape") for wrong in ((28, 28), 28, (0, 28, 28), (1.0, 28, 28), "28")),
        ({"net": nn.Flatten(), "image_shape": (28, 28)}, "image_shape"),
        *(({"dropout": wrong}, "dropout") for wrong in ([0.1], [0.1] * 4, "0.3", ["0.3"] * 3)),
        ({"model": "compact", "dropout": [0.1] * 4}, "up to 3"),
        ({"dropout": 1.0}, "rate 1"),
        ({"model": nn.Flatten()}, "net"),
        ({"net": nn.Flatten}, r"Flatten\(...\)"),
        ({"net": "seed"}, "nn.Module"),
        ({"loss": nn.CrossEntropyLoss}, r"CrossEntropyLoss\(...\)"),
        ({"loss": "mse"}, "function"),
        ({"class_weights": ["1"] * 10}, "class_weights"),
        ({"class_weights": [1.0] * 9}, "class_weights"),
        ({"class_weights": "balanced"}, "10 numbers"),
        ({"num_classes": 8, "class_weights": "balanced"}, "8 numbers"),
        ({"class_weights": [0.0] * 10}, "class_weights"),
        ({"class_weights": [-1.0] + [1.0] * 9}, "class_weights"),
        *(({"lr": wrong}, "lr") for wrong in (0.0, None, "0.1")),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"loss": "own"}, "loss"),
        ({"loss": F.cross_entropy, "label_smoothing": 0.1}, "label_smoothing"),
    ],
)
def test_wrong_arguments_are_refused_at_once(arguments: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        Classifier(**arguments)


@pytest.mark.parametrize("model", ["seed", "notebook", "compact", "advanced"])
def test_one_dropout_rate_stands_for_three(model: str) -> None:
    nets = [Classifier(model, dropout=dropout).net for dropout in (0.25, [0.25, 0.25, 0.25])]
    rates = [[layer.rate for layer in net.modules() if isinstance(layer, Dropout)] for net in nets]
    assert rates[0] == rates[1]
    assert rates[0][-3:] == [0.25] * 3


@pytest.mark.parametrize(("net", "found"), [(Dense(4), r"\(6, 4\)"), (nn.LSTM(4, 3), "a tuple")])
def test_logits_of_another_kind_are_refused(net: nn.Module, found: str) -> None:
    images = IMAGES if isinstance(net, Dense) else torch.zeros(6, 4)
    with pytest.raises(ValueError, match=found):
        in_step(Classifier(net=net, **OWN)).training_step((images, LABELS), 0)


@pytest.mark.parametrize(
    ("batch", "found"),
    [
        ({"image": IMAGES, "label": LABELS}, "a dict"),
        (IMAGES, "a Tensor"),
        ([IMAGES], "list of Tensor"),
        ([[IMAGES, LABELS], [IMAGES, LABELS]], "list of list, list"),
        ((IMAGES, LABELS.numpy()), "ndarray"),
        ((IMAGES, LABELS[:5]), r"\(5,\)"),
        ((IMAGES[:0], LABELS[:0]), "of 0 images"),
        ((IMAGES, F.one_hot(LABELS)), r"\(6, 3\) torch.int64"),
        ((IMAGES, LABELS.float()), "torch.float32"),
        ((IMAGES, torch.rand(6, 4)), r"\(6, 4\)"),
        ((IMAGES, LABELS + 1), "from 1 to 3"),
        ((IMAGES, LABELS - 1), "from -1 to 1"),
    ],
)
def test_unsuitable_batch_is_refused_by_what_it_holds(batch: Any, found: str) -> None:
    module = in_step(Classifier(net=Dense(), **OWN))
    for step in (module.training_step, module.validation_step, module.test_step):
        with pytest.raises(ValueError, match=found):
            step(batch, 0)


def test_batch_that_predicts_nothing_is_refused() -> None:
    for batch in ({"image": IMAGES}, [], ["a"]):
        with pytest.raises(ValueError, match=type(batch).__name__):
            Classifier(net=Dense(), **OWN).predict_step(batch, 0)


def test_labels_in_a_column_count_as_labels() -> None:
    losses = [
        in_step(Classifier(net=net, **OWN)).training_step((IMAGES, labels), 0)
        for net in [Dense()]
        for labels in (LABELS, LABELS[:, None])
    ]
    assert torch.equal(*losses)


def test_labels_of_a_gpu_are_looked_at_once_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    module = in_step(Classifier(net=Dense(), **OWN))
    monkeypatch.setattr(module_file, "labels_and_targets", lambda *args, look: (looks.append(look), (LABELS, None))[1])
    on_gpu: Any = MagicMock(spec=Tensor, device=torch.device("cuda"))
    for done, labels in ((0, LABELS), (6, LABELS), (0, on_gpu), (6, on_gpu)):
        module.as_batch((IMAGES, labels), done)
    assert looks == [True, True, True, False]


@pytest.mark.parametrize(
    ("loss", "found"),
    [
        (nn.CrossEntropyLoss(reduction="none"), r"\(6,\)"),
        (lambda logits, labels: 0.5, "float"),
        (lambda logits, labels: None, "NoneType"),
    ],
)
def test_loss_of_no_single_number_is_refused(loss: Any, found: str) -> None:
    with pytest.raises(ValueError, match=found):
        in_step(Classifier(net=Dense(), loss=loss, **OWN)).training_step((IMAGES, LABELS), 0)


@pytest.mark.parametrize("own", ["optimizer", "schedule"])
@pytest.mark.parametrize("made", [None, (1,), {"optimizer": 1}])
def test_function_that_makes_no_such_part_is_refused(own: str, made: Any) -> None:
    module = Classifier(net=Dense(), **{own: lambda given: made}, **OWN)
    with pytest.raises(ValueError, match=own):
        module.configure_optimizers()


def test_weights_of_another_model_are_refused_in_one_line() -> None:
    weights = Classifier("compact").state_dict()
    with pytest.raises(RuntimeError, match="another model") as refused:
        Classifier().load_state_dict(weights)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300
    with pytest.raises(UserError, match=r"best\.ckpt.*net\.layers\.0\.weight"):
        load_weights(Classifier(), {"state_dict": weights}, Path("best.ckpt"))


def test_each_argument_is_explained_and_parsed() -> None:
    """By jsonargparse, as in LightningCLI."""
    parser = ArgumentParser()
    parser.add_class_arguments(Classifier, "model")
    explained = {action.dest.removeprefix("model."): action.help for action in parser._actions}
    for name in signature(Classifier).parameters:
        assert len(str(explained[name])) > 20, name
    words = ["--model.class_weights", "[1,2]", "--model.num_classes", "2", "--model.model", "compact"]
    module = parser.instantiate(parser.parse_args([*words, "--model.optimizer", "sgd"])).model
    assert (module.class_weights.tolist(), module.hparams.model, module.hparams.optimizer) == ([1, 2], "compact", "sgd")


def test_class_weights_weigh_each_image_of_the_training_loss() -> None:
    """The logged loss has none. As in Keras, the sum is divided by the number of images: shards of ranks add up."""
    module = in_step(Classifier(net=Dense(), class_weights=[1, 2, 0.5], label_smoothing=0.1, **OWN))
    weights = torch.tensor([1, 2, 0.5])
    smooth = 0.9 * F.one_hot(LABELS, 3) + 0.1 / 3
    expected = -(smooth * weights * module(IMAGES).log_softmax(dim=1)).sum(dim=1).mean()
    assert module.training_step((IMAGES, LABELS), 0).item() == pytest.approx(expected.item())
    assert module.train_metrics.compute()["train/loss"].item() == pytest.approx(
        F.cross_entropy(module(IMAGES), LABELS).item()
    )
    assert "class_weights" not in module.state_dict()


@pytest.mark.parametrize("loss", [nn.MultiMarginLoss(weight=torch.tensor([1.0, 2.0, 3.0])), F.multi_margin_loss])
def test_own_loss_is_trained_with_and_logged(loss: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = in_step(Classifier(net=Dense(), loss=loss, **OWN))
    expected = loss(module(IMAGES), LABELS)
    assert torch.equal(module.training_step((IMAGES, LABELS), 0), expected)
    logged: dict[str, Tensor] = {}
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.update({name: value}))
    module.log_epoch(module.train_metrics)
    assert torch.equal(logged["train/loss"], expected)
    assert module.state_dict().keys() == {"net.layer.weight", "net.layer.bias"}


def test_batches_of_probabilities_count_their_largest() -> None:
    """Of torchvision's MixUp and CutMix, say."""
    module = in_step(Classifier(net=Dense(), **OWN))
    probs = torch.rand(6, 3, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    assert torch.equal(module.training_step((IMAGES, probs), 0), F.cross_entropy(module(IMAGES), probs))
    assert torch.equal(module.train_metrics.labels[0], probs.argmax(dim=1))


def test_plain_batches_are_numbered_by_rank() -> None:
    """As a DistributedSampler deals images out; labels may be of any integer type."""
    module = in_step(Classifier(net=Dense(), **OWN), ranks=2)
    for start in (0, 4):
        module.validation_step([IMAGES[start : start + 4], LABELS[start : start + 4].to(torch.uint8)], 0)
    assert torch.cat(module.val_metrics.indices).tolist() == [1, 3, 5, 7, 9, 11]
    assert torch.equal(torch.cat(module.val_metrics.labels), LABELS)


def test_hyperparameters_name_own_parts() -> None:
    own: dict[str, Any] = {
        "net": Dense(),
        "loss": F.cross_entropy,
        "optimizer": partial(torch.optim.SGD, lr=0.5),
        "schedule": partial(torch.optim.lr_scheduler.StepLR, step_size=2),
    }
    module = Classifier(**own, **OWN)
    assert "net" not in module.hparams
    named = {name: module.hparams[name] for name in ("model", "loss", "optimizer", "schedule")}
    assert named == {"model": None, "loss": "own", "optimizer": "own", "schedule": "own"}
    configured: Any = module.configure_optimizers()
    assert isinstance(configured["optimizer"], torch.optim.SGD)
    assert isinstance(configured["lr_scheduler"]["scheduler"], torch.optim.lr_scheduler.StepLR)


def options_and_info(**options: Any) -> tuple[TrainOptions, DataInfo]:
    info = DataInfo(name="own", title="Own", classes=("a", "b", "c"), image_shape=(1, 12, 12))
    return TrainOptions(**options), info


def test_balanced_weights_are_scikit_learns() -> None:
    options, info = options_and_info(class_weights="balanced")
    module = build_classifier(options, info, LABELS)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=LABELS.numpy())
    assert module.hparams["class_weights"] == pytest.approx(expected.tolist())
    assert build_classifier(options, info).class_weights is None  # a test needs none
    with pytest.raises(DataError, match="b, c"):
        build_classifier(options, info, torch.zeros(3, dtype=torch.int64))


def test_unfit_option_is_an_error_of_the_user() -> None:
    with pytest.raises(UserError, match="class_weights"):
        build_classifier(*options_and_info(class_weights=(1.0, 2.0)))
