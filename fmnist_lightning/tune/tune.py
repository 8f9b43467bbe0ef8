"""The search command: from options to the best recipe."""

import shlex
from dataclasses import fields, replace

from fmnist_lightning.cli.recipes import find_recipe
from fmnist_lightning.cli.shell import command, quoted
from fmnist_lightning.data.source import DataInfo
from fmnist_lightning.errors import Interrupted, UserError
from fmnist_lightning.report.console import filter_library_output
from fmnist_lightning.runs.folders import explain_write_errors
from fmnist_lightning.runs.options import (
    DeviceOptions,
    TrainOptions,
    TuneOptions,
    read_recipe,
    recipe_values,
    values_of,
)
from fmnist_lightning.training.devices import resolve_devices
from fmnist_lightning.training.distillation import prepare_teacher
from fmnist_lightning.training.module import build_classifier
from fmnist_lightning.training.train import prepare_data
from fmnist_lightning.tune.search import Search, database_url, explaining_database, without_secrets
from fmnist_lightning.tune.space import Plan, Space, own_rates, read_space

# Options of this command that replace the recipe's. Those that change its result belong in the best recipe.
KEPT = {"dataset", "val_fraction", "precision"}
OWN = {*KEPT, "data_dir", "accelerator", "devices"}


def tune(options: TuneOptions) -> None:
    """Search, write the best recipe, and draw the study.

    Raises UserError if recipe, space, data or database can't be used; Interrupted at a signal.
    """
    url, space = database_url(options), read_space(find_recipe(options.space, "search"))
    own = {name: value for name in OWN if (value := getattr(options, name)) is not None}
    held = {*recipe_values(options.recipe), *(own.keys() & KEPT), *(name.partition(".")[0] for name in space)}
    recipe, info = prepare(replace(read_recipe(options.recipe), **own))
    check_models(recipe, space, info)
    again = command_line(replace(options, storage=without_secrets(options.storage)))
    plan = Plan(options, recipe, info, held - {"resume", "fast_dev_run"}, space, url, again)
    print(again, flush=True)
    try:
        with explain_write_errors(plan.folder, again), explaining_database(plan):
            Search(plan).run()
    except Interrupted as interruption:
        raise Interrupted(interruption.signum, f"to resume: {again}") from None


def prepare(recipe: TrainOptions) -> tuple[TrainOptions, DataInfo]:
    """The recipe with its data set and teacher resolved, and what the data is; it is downloaded.

    Raises UserError if one is missing, the recipe leaves no validation split, or it needs several processes.
    """
    if not recipe.val_fraction:
        raise UserError("cannot search with val_fraction 0: trials need a validation split (give --val_fraction 0.1)")
    filter_library_output()
    devices = resolve_devices(**values_of(recipe, DeviceOptions))
    # Each process would ask for a trial of its own, and average its gradients with the others'.
    if devices.to_launch or devices.fabric.world_size > 1:
        raise UserError(
            f"cannot search with --devices {recipe.devices}: a trial is one process (use one device, and start the "
            "search several times to share the work)"
        )
    recipe, datamodule = prepare_data(recipe, devices.fabric)
    recipe, _ = prepare_teacher(recipe, devices.fabric, datamodule.source)
    return recipe, datamodule.source


def check_models(recipe: TrainOptions, space: Space, info: DataInfo) -> None:
    """Raise UserError if a model that trials train does not suit recipe and data, or lacks the dropout to search."""
    for model in getattr(space.get("model"), "choices", [recipe.model]):
        build_classifier(replace(recipe, model=model), info)
        if any(name.startswith("dropout") for name in space):
            own_rates(model)


def command_line(options: TuneOptions) -> str:
    """The command that has these options."""
    words: list[str] = []
    for one in fields(TuneOptions):
        if (value := getattr(options, one.name)) != one.default:
            words += [f"--{one.name}", quoted(value) if one.metadata.get("path") else shlex.quote(str(value))]
    return " ".join([command("tune"), *words])
