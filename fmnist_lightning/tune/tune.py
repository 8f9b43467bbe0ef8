"""The search over a recipe's options. Heavy imports stand inside the functions, so that `--help` answers at once."""

import inspect
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse.typing import PositiveInt

from fmnist_lightning.cli import LOG_DIR, Accelerator, Dataset, Precision, Seed, Share, require
from fmnist_lightning.data.datamodule import FashionMNISTDataModule, resolve_dataset, suggesting_drawn
from fmnist_lightning.errors import Interrupted, UserError
from fmnist_lightning.ranks import launched
from fmnist_lightning.report.console import quiet
from fmnist_lightning.runs.folders import DATA_OPTIONS, DEVICE_OPTIONS
from fmnist_lightning.training.devices import resolve_devices
from fmnist_lightning.training.launching import count_devices
from fmnist_lightning.training.recipes import given_options, read_recipe
from fmnist_lightning.training.train import prepare_teacher
from fmnist_lightning.tune.database_url import database_url, masked
from fmnist_lightning.tune.results import PLOTS, SCORE, counted, draw_study, percent, write_best
from fmnist_lightning.tune.search import Search
from fmnist_lightning.tune.space import Plan, read_space
from fmnist_lightning.tune.study import explaining_store

# Options of this command that stand in for the recipe's.
OWN = ("dataset", "data_dir", "val_fraction", "accelerator", "devices", "precision")
# Those of them that belong into the best recipe: they change what it comes to.
KEPT = ("dataset", "val_fraction", "precision")


def tune(
    *,
    recipe: str = "recipes/fast.yaml",
    space: str = "recipes/search/tuned.yaml",
    trials: PositiveInt = 50,
    study: str = f"{LOG_DIR}/study",
    storage: str | None = None,
    prune: bool = True,
    sampler_seed: Seed = 0,
    dataset: Dataset | None = None,
    data_dir: str | None = None,
    val_fraction: Share | None = None,
    accelerator: Accelerator | None = None,
    devices: int | str | None = None,
    precision: Precision | None = None,
) -> None:
    """Search for better options of a recipe, on the validation cut alone, and write the best ones as a recipe.

    Each trial is a training of scripts/train.py with other options; its score is the val/accuracy of the checkpoint
    that a test would take, and the test set stays shut. The first trial is the recipe itself, where the space has
    room for its options, so that the best one is no worse. Stopped or killed, the same command goes on, and started
    several times at once, it shares the work. Needs Optuna: pip install --editable '.[tune]'.

    Args:
        recipe: The recipe whose options are searched. Its seed is that of every trial.
        space: Which options, between which values: a YAML file such as recipes/search/tuned.yaml.
        trials: Completed, pruned and failed trials of the study in all, those of earlier and of other processes too.
        study: Folder of the search: its database, a run folder for each trial, best.yaml and plots.
        storage: URL of a database for machines that share a study of one name, the study folder's, if it is not to be
            SQLite in the study folder. $NAME in it stands for a variable of the environment, such as a password.
        prune: Stop a trial that is worse than the median of the completed ones, from half of its epochs on and once
            five are completed. None is stopped where the space has max_epochs.
        sampler_seed: Of what is tried, together with the trial's number.
        dataset: fashion_mnist; drawn; auto, the first that can be had; if not the recipe's.
        data_dir: Folder of the data, if not the recipe's.
        val_fraction: Share of the training set that is kept for validation, if not the recipe's.
        accelerator: Where to compute, if not where the recipe says.
        devices: Which device, as Lightning names them, if not the recipe's.
        precision: Arithmetic, if not the recipe's.
    """
    plan = plan_search(locals())
    require(["optuna"], "a search", "tune")
    try:
        carry_out(plan, database_url(plan.folder, storage))
    except Interrupted as interruption:
        raise Interrupted(interruption.signum, f"to go on: {plan.command}") from None


def plan_search(given: Mapping[str, Any]) -> Plan:
    """What the command's options ask for. Raises UserError where recipe or space make no search."""
    recipe, folder = Path(given["recipe"]), Path(given["study"])
    own = {name: given[name] for name in OWN if given[name] is not None}
    options = {**read_recipe(recipe), **own}
    if not options["val_fraction"]:
        raise UserError(
            f"{recipe} trains on all images (val_fraction 0), and a search judges by some: give --val_fraction 0.1"
        )
    held = {*given_options(recipe), *(name for name in own if name in KEPT)}
    return Plan(
        options=options,
        held=frozenset(held - {"resume", "fast_dev_run"}),
        space=read_space(Path(given["space"])),
        folder=folder,
        # A folder can be moved with its own database. In another one, this name says what machines share.
        study_name=folder.resolve().name if given["storage"] else "study",
        trials=given["trials"],
        prune=given["prune"],
        sampler_seed=given["sampler_seed"],
        command=command_line(given),
    )


def command_line(given: Mapping[str, Any]) -> str:
    """The command as it can be typed again, but for a password."""
    shown = {**given, "storage": given["storage"] and masked(given["storage"])}
    parameters = inspect.signature(tune).parameters.values()
    words = [(f"--{one.name}", str(shown[one.name])) for one in parameters if given[one.name] != one.default]
    return shlex.join(["python", "scripts/tune.py", *(word for pair in words for word in pair)])


def carry_out(plan: Plan, url: str) -> None:
    """Search, write the best recipe, draw the study, and say so."""
    plan = plan._replace(options=checked(plan.options))
    print(plan.command)
    with explaining_store(url, f"what is in it stays; when it can be used, go on: {plan.command}"):
        search = Search(plan, url)
        search.run()
        with search.claim:  # each process that ends does this
            best = write_best(search.study, plan)
            plots = draw_study(search.study, plan.folder / PLOTS, plan.options["dataset"])
        print(f"\n{counted(search.study)}; the best: {SCORE} {percent(search.study.best_value)}")
    print(f"the study as figures: {plots}")
    print(f"to train by the best recipe: python scripts/train.py --config {shlex.quote(str(best))}")


def checked(options: dict[str, Any]) -> dict[str, Any]:
    """The options with data set and teacher resolved. Raises UserError where one of them would fail every trial."""
    quiet()
    # Processes of one training would each draw a trial of their own, and share its gradients with the others'.
    accelerator, devices, num_nodes = (options[name] for name in ("accelerator", "devices", "num_nodes"))
    if launched() or count_devices(accelerator, devices) * num_nodes > 1:
        raise UserError(
            f"--devices {devices} on {num_nodes} machine(s) asks for several processes, or this is one of several, and "
            "a trial is one process: take one device, and start the search several times to share the work"
        )
    resolved = resolve_devices(**{name: options[name] for name in DEVICE_OPTIONS})
    options = {**options, "dataset": resolve_dataset(options["dataset"], Path(options["data_dir"]))}
    options, _ = prepare_teacher(options, resolved.fabric)
    datamodule = FashionMNISTDataModule(**{name: options[name] for name in DATA_OPTIONS})
    with suggesting_drawn():
        datamodule.prepare_data()
    datamodule.setup("fit")
    return options
