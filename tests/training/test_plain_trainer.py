"""The Classifier with Lightning's own Trainer, callbacks, loggers and strategies, and with plain loaders."""

import json
import re
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, LearningRateMonitor, ModelCheckpoint, ModelPruning
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.plugins import MixedPrecision
from several import run_ranks
from sklearn.metrics import accuracy_score
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from fmnist_lightning import load_classifier
from fmnist_lightning.data.datamodule import FashionMNISTDataModule
from fmnist_lightning.errors import UserError
from fmnist_lightning.runs.checkpoints import read_checkpoint
from fmnist_lightning.training.module import Classifier

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
    pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller than the logging interval"),
]
GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randint(0, 256, (30, 1, 12, 12), dtype=torch.uint8, generator=GENERATOR)
LABELS = torch.arange(30) % 3
SMALL: dict[str, Any] = {"image_shape": (1, 12, 12), "num_classes": 3}
QUIET: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


def new_trainer(*callbacks: Callback, **arguments: Any) -> L.Trainer:
    """Without checkpoints and loggers, unless they are given."""
    saves = any(isinstance(one, ModelCheckpoint) for one in callbacks)
    return L.Trainer(**{**QUIET, "enable_checkpointing": saves, "logger": False, **arguments}, callbacks=[*callbacks])


def new_module(**arguments: Any) -> Classifier:
    torch.manual_seed(0)
    return Classifier(**{**SMALL, "dropout": (0, 0, 0), **arguments})


def loader(images: Tensor = IMAGES, **arguments: Any) -> DataLoader[Any]:
    """Eight batches of 4 or fewer images."""
    return DataLoader(TensorDataset(images, LABELS), batch_size=4, **arguments)


class Pair(NamedTuple):
    """A batch of a user's own type."""

    first: Tensor
    second: Tensor


def as_pair(rows: list[tuple[Tensor, Tensor]]) -> Pair:
    return Pair(*map(torch.stack, zip(*rows, strict=True)))


def as_tuple(rows: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
    return tuple(as_pair(rows))


class Records(DummyLogger):
    """A user's own logger: (step, name) of all that it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.points: list[tuple[int | None, str]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.points += [(step, name) for name in metrics]

    def steps(self, name: str) -> list[int | None]:
        return [step for step, logged in self.points if logged == name]


class Rates(Callback):
    """Notes the learning rate of each optimizer step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, *args: Any) -> None:
        self.values.append(trainer.optimizers[0].param_groups[-1]["lr"])


class SaveAt(Callback):
    """Saves a checkpoint in the middle of an epoch."""

    def __init__(self, step: int, path: Path) -> None:
        self.step = step
        self.path = path

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step and not self.path.exists():
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("collate", [None, as_pair, as_tuple])
@pytest.mark.parametrize("images", [IMAGES, IMAGES / 255])
def test_plain_loaders_serve_every_stage(images: Tensor, collate: Any) -> None:
    """Batches are lists, tuples or a user's own NamedTuples, of images in uint8 or as floats."""
    module, trainer, data = new_module(), new_trainer(max_epochs=2), loader(images, collate_fn=collate)
    trainer.fit(module, data, data)
    [validated] = trainer.validate(module, data, verbose=False)
    [tested] = trainer.test(module, data, verbose=False)
    probs: Any = torch.cat(trainer.predict(module, data))
    assert (probs.shape, probs.dtype) == ((30, 3), torch.float32)
    assert tested["test/accuracy"] == pytest.approx(accuracy_score(LABELS, probs.argmax(dim=1)))
    assert tested["test/loss"] == validated["val/loss"]
    assert torch.equal(module.test_metrics.outputs.indices, torch.arange(30))
    alone: Any = torch.cat(trainer.predict(module, DataLoader(images, batch_size=7)))
    torch.testing.assert_close(alone, probs)


def test_several_loaders_have_metrics_of_their_own() -> None:
    """Under Lightning's names, in training, validation and test; each is what the loader has alone."""
    module, trainer = new_module(), new_trainer(max_epochs=1)
    loaders = [loader(), DataLoader(TensorDataset(IMAGES[:9], LABELS[:9]), batch_size=4)]
    trainer.fit(module, loader(), loaders)
    fitted = trainer.callback_metrics
    for stage, evaluate in (("val", trainer.validate), ("test", trainer.test)):
        several = evaluate(module, loaders, verbose=False)
        for number, one in enumerate(loaders):
            [alone] = evaluate(module, one, verbose=False)
            assert several[number] == {f"{name}/dataloader_idx_{number}": value for name, value in alone.items()}
            assert stage == "test" or fitted[f"val/loss/dataloader_idx_{number}"].item() == alone["val/loss"]
    probs: Any = trainer.predict(module, loaders)
    assert [sum(map(len, part)) for part in probs] == [30, 9]


def test_several_loaders_without_length_are_refused() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return zip(IMAGES, LABELS, strict=True)

    with pytest.raises(ValueError, match="no length"):
        new_trainer().test(new_module(), [DataLoader(Stream(), batch_size=4), loader()], verbose=False)


@pytest.mark.usefixtures("small_drawn")
def test_datamodule_predicts_its_test_images_in_order() -> None:
    module, datamodule = Classifier(), FashionMNISTDataModule("drawn", batch_size=64)
    probs: Any = torch.cat(new_trainer().predict(module, datamodule))
    torch.testing.assert_close(probs, module.eval()(datamodule.splits["test"].images).softmax(dim=1))


@pytest.mark.parametrize("every", [0, 1, 3, 50])
@pytest.mark.parametrize(
    ("limits", "steps"),
    [
        ({"max_epochs": 2}, [7, 15]),
        ({"max_epochs": 2, "limit_train_batches": 5}, [4, 9]),
        ({"max_epochs": 2, "accumulate_grad_batches": 3}, [2, 5]),
        ({"max_steps": 11}, [7, 10]),
        ({"max_steps": 8}, [7]),
    ],
)
def test_train_metrics_reach_loggers_once_per_epoch(
    tmp_path: Path, every: int, limits: dict[str, Any], steps: list[int]
) -> None:
    own, csv = Records(), CSVLogger(tmp_path)
    trainer = new_trainer(log_every_n_steps=every, logger=[own, csv], **limits)
    trainer.fit(new_module(), loader(), loader())
    for name in ("train/loss", "train/accuracy"):
        assert own.steps(name) == steps
        assert name in trainer.callback_metrics
    written = [row["step"] for row in csv.experiment.metrics if "train/loss" in row]
    assert (written or steps) == steps  # the file's writer drops the rows that it has written


def test_train_metrics_are_there_when_the_epoch_is_saved(tmp_path: Path) -> None:
    class Saved(ModelCheckpoint):
        def on_validation_end(self, trainer: L.Trainer, *args: Any) -> None:
            if not trainer.sanity_checking:
                known.append((own.steps("train/loss"), "train/loss" in trainer.callback_metrics))

    known: list[Any] = []
    own = Records()
    new_trainer(Saved(tmp_path), max_epochs=2, logger=own).fit(new_module(), loader(), loader())
    assert known == [([7], True), ([7, 15], True)]


def test_train_metrics_of_an_epoch_that_stops_early_are_logged() -> None:
    """EarlyStopping, in the first of three validations within the epoch."""
    own = Records()
    stop = EarlyStopping("val/loss", stopping_threshold=100.0)
    trainer = new_trainer(stop, max_epochs=2, val_check_interval=3, logger=own)
    trainer.fit(new_module(), loader(), loader())
    assert trainer.global_step == 3
    assert own.steps("train/loss") == [2]
    assert "train/loss" in trainer.callback_metrics


@pytest.mark.usefixtures("small_drawn")
def test_max_steps_within_an_epoch_saves_what_was_seen(tmp_path: Path) -> None:
    """A longer training that resumes from it counts the whole epoch of 540 images, once.

    Callbacks find the metrics at the end of the shorter one, too.
    """

    class Shown(Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, *args: Any) -> None:
            shown.append("train/loss" in trainer.callback_metrics)

    middle, own = tmp_path / "middle.ckpt", Records()
    counted, shown = [], []
    for steps, start in ((3, None), (11, middle)):
        module = Classifier()
        trainer = new_trainer(SaveAt(3, middle), Shown(), max_steps=steps, logger=own)
        trainer.fit(module, datamodule=FashionMNISTDataModule("drawn", batch_size=50), ckpt_path=start)
        counted.append(module.train_metrics.outputs.indices)
    assert len(counted[0]) == 150
    assert torch.equal(counted[1], torch.arange(540))
    assert own.steps("train/loss") == [2, 10]
    assert shown == [True, True]


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine"])
@pytest.mark.parametrize(
    ("limits", "steps"),
    [
        ({"max_epochs": 3}, 24),
        ({"max_epochs": 3, "accumulate_grad_batches": 3}, 9),
        ({"max_epochs": 3, "limit_train_batches": 5}, 15),
        ({"max_epochs": 3, "limit_train_batches": 0.5, "accumulate_grad_batches": 2}, 6),
        ({"max_steps": 7}, 7),
        ({"max_epochs": 3, "max_steps": 5}, 5),
        ({"max_epochs": 1, "max_time": timedelta(hours=1)}, 8),
        ({"max_epochs": 1, "overfit_batches": 2}, 2),
        ({"fast_dev_run": True}, 1),
    ],
)
def test_schedule_ends_with_the_training(schedule: str, limits: dict[str, Any], steps: int) -> None:
    rates = Rates()
    trainer = new_trainer(rates, **limits)
    trainer.fit(new_module(schedule=schedule, lr=0.01), loader())
    [configured] = trainer.lr_scheduler_configs
    planned = {"one_cycle": "total_steps", "cosine": "T_max"}[schedule]
    assert getattr(configured.scheduler, planned) == len(rates.values) == steps
    assert rates.values[-1] == min(rates.values)


@pytest.mark.parametrize("endless", [{"max_epochs": -1}, {"max_time": timedelta(hours=1)}])
def test_schedule_of_an_endless_training_is_refused(endless: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="one_cycle"):
        new_trainer(**endless).fit(new_module(schedule="one_cycle"), loader())


@pytest.mark.usefixtures("small_drawn")
@pytest.mark.parametrize("with_datamodule", [True, False])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_schedule_resumes_exactly_within_an_epoch(tmp_path: Path, with_datamodule: bool, accumulate: int) -> None:
    """The rates, the images and so the weights are those of an undisturbed training."""

    def fit(*callbacks: Callback, **arguments: Any) -> tuple[Classifier, list[float]]:
        rates = Rates()
        module = new_module(schedule="one_cycle", optimizer="muon", lr=0.01, image_shape=(1, 28, 28), num_classes=10)
        datamodule = FashionMNISTDataModule("drawn", batch_size=50)
        if with_datamodule:
            arguments["datamodule"] = datamodule
        else:
            arguments["train_dataloaders"] = datamodule.train_dataloader()
        new_trainer(rates, *callbacks, max_epochs=2, accumulate_grad_batches=accumulate).fit(module, **arguments)
        return module, rates.values

    middle = tmp_path / "middle.ckpt"
    straight, all_rates = fit(SaveAt(2, middle))
    resumed, later_rates = fit(ckpt_path=middle)
    assert later_rates == all_rates[2:]
    assert all(map(torch.equal, straight.state_dict().values(), resumed.state_dict().values()))
    assert torch.equal(straight.train_metrics.outputs.indices, resumed.train_metrics.outputs.indices)


@pytest.mark.parametrize("optimizer", ["adam", "muon", "sgd", "adamw"])
@pytest.mark.parametrize("mixed", [None, "bf16-mixed", "16-mixed"])
def test_gradients_are_clipped_in_any_precision(optimizer: str, mixed: Any) -> None:
    class Norm(Callback):
        def on_before_zero_grad(self, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
            gradients = [one.grad.flatten() for one in module.parameters() if one.grad is not None]
            norms.extend([torch.cat(gradients).norm().item()] if gradients else [])

    norms: list[float] = []
    plugins = [MixedPrecision(mixed, "cpu")] if mixed else None
    trainer = new_trainer(Norm(), max_epochs=1, gradient_clip_val=1e-3, plugins=plugins)
    trainer.fit(new_module(optimizer=optimizer), loader())
    assert norms
    assert max(norms) == pytest.approx(1e-3, rel=1e-3)


def test_lightnings_callbacks_find_their_metrics(tmp_path: Path) -> None:
    stop = EarlyStopping("val/accuracy", mode="max", patience=1)
    best = ModelCheckpoint(tmp_path / "checkpoints", monitor="val/accuracy", mode="max", filename="{epoch}")
    monitor = LearningRateMonitor()
    trainer = new_trainer(stop, best, monitor, max_epochs=9, logger=CSVLogger(tmp_path))
    trainer.fit(new_module(lr=1e-9), loader(), loader())
    assert trainer.current_epoch == 2
    assert best.best_model_path.endswith("epoch=0.ckpt")
    assert monitor.lrs == {"lr-KerasAdam": [1e-9] * 2}


def test_weights_are_pruned_and_made_a_vector() -> None:
    module = new_module()
    new_trainer(ModelPruning("l1_unstructured", amount=0.5), max_epochs=1).fit(module, loader())
    vector = parameters_to_vector(module.parameters())
    assert vector.numel() == sum(one.numel() for one in module.parameters())
    weights = torch.cat([value.flatten() for name, value in module.state_dict().items() if name.endswith("weight")])
    assert (weights == 0).float().mean() > 0.4


@pytest.mark.parametrize(("mode", "monitor"), [("min", "val/loss"), ("max", "val/accuracy")])
def test_plateau_schedule_looks_at_validation(mode: Any, monitor: str) -> None:
    trainer = new_trainer(max_epochs=2)
    trainer.fit(new_module(schedule=lambda made: ReduceLROnPlateau(made, mode, patience=0)), loader(), loader())
    [configured] = trainer.lr_scheduler_configs
    assert configured.monitor == monitor
    assert configured.scheduler.last_epoch == 2


def make_net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(144, 3))


def test_own_parts_train_and_load_again(tmp_path: Path) -> None:
    """The checkpoint holds tensors and plain values alone. The schedule steps once an epoch, as Lightning has it."""
    own: dict[str, Any] = {
        "loss": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2, 3])),
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        "schedule": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5),
    }
    module = new_module(net=make_net(), dropout=None, **own)
    trainer = new_trainer(ModelCheckpoint(tmp_path, filename="own"), max_epochs=2)
    trainer.fit(module, loader(IMAGES / 255))
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.025
    path = tmp_path / "own.ckpt"
    assert read_checkpoint(path)["hyper_parameters"]["model"] is None  # by a reader that runs no code
    own["net"] = make_net()
    loaded = Classifier.load_from_checkpoint(path, weights_only=True, **own)
    assert torch.equal(loaded.eval()(IMAGES / 255), module.eval()(IMAGES / 255))
    for name in own:
        rest = {key: value for key, value in own.items() if key != name}
        with pytest.raises(ValueError, match=name):
            Classifier.load_from_checkpoint(path, weights_only=True, **rest)
    classify = load_classifier(str(path), net=make_net(), device="cpu")  # it needs the net alone
    assert torch.equal(classify.net(IMAGES / 255), module(IMAGES / 255))


@dataclass
class Where:
    """A folder to write into."""

    folder: str = ""
    """The folder."""


def fit_with_ddp(options: Where) -> None:
    """Train and test with plain loaders on two ranks; rank 0 writes the metrics."""
    trainer = new_trainer(max_epochs=2, strategy="ddp", devices=2, use_distributed_sampler=True)
    module = new_module()
    trainer.fit(module, loader(), loader())
    [tested] = trainer.test(module, loader(), verbose=False)
    counted = module.test_metrics.outputs.indices.tolist()
    if trainer.is_global_zero:
        fitted = {name: value.item() for name, value in trainer.callback_metrics.items()}
        (Path(options.folder) / "metrics.json").write_text(json.dumps([fitted, tested, counted]))


def test_plain_ddp_counts_all_ranks_without_a_warning(tmp_path: Path) -> None:
    statuses, outputs = run_ranks(tmp_path, fit_with_ddp, ["--folder", tmp_path], world_size=2)
    assert statuses == [0, 0], outputs
    assert not any(re.search("sync_dist", output) for output in outputs)
    _, tested, counted = json.loads((tmp_path / "metrics.json").read_text())
    assert counted == list(range(30))
    assert 0 <= tested["test/accuracy"] <= 1
