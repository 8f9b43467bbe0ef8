"""The search command: from options to the best recipe."""

import shlex
import warnings
from dataclasses import fields, replace
from pathlib import Path

from fmnist_lightning.cli import require
from fmnist_lightning.errors import UserError, advising
from fmnist_lightning.report.console import quiet
from fmnist_lightning.runs.options import (
    DeviceOptions,
    TrainOptions,
    TuneOptions,
    read_recipe,
    recipe_values,
    values_of,
)
from fmnist_lightning.training.devices import cluster_environment, resolve_devices
from fmnist_lightning.training.train import prepare_data, prepare_teacher

# Options of this command that replace the recipe's. Those that change its result belong in the best recipe.
KEPT = ("dataset", "val_fraction", "precision")
OWN = (*KEPT, "data_dir", "accelerator", "devices")


def tune(options: TuneOptions) -> None:
    """Search, write the best recipe, and draw the study.

    Raises UserError if recipe, space, data or database can't be used; Interrupted at a signal.
    """
    file, folder = Path(options.recipe), Path(options.study)
    own = {name: value for name in OWN if (value := getattr(options, name)) is not None}
    recipe = replace(read_recipe(file), **own)
    check_searchable(recipe)
    require(["optuna"], "a search", "tune")
    # They import packages of an optional extra.
    from fmnist_lightning.tune import results, search, space

    searched = space.read_space(Path(options.space))
    url = search.database_url(folder, options.storage)
    command = command_line(replace(options, storage=options.storage and search.without_secrets(options.storage)))
    plan = space.Plan(
        recipe=prepare(recipe),
        held=frozenset((recipe_values(file).keys() - {"resume", "fast_dev_run"}) | (own.keys() & {*KEPT})),
        space=searched,
        folder=folder,
        # A folder can be moved with its own database. In a shared one its name identifies the study.
        study_name=folder.resolve().name if options.storage else "study",
        trials=options.trials,
        prune=options.prune,
        sampler_seed=options.sampler_seed,
        command=command,
    )
    print(command)
    with (
        warnings.catch_warnings(),
        advising(f"to resume: {command}"),
        search.explaining_database(url, f"what is in it stays; to resume: {command}"),
    ):
        warnings.simplefilter("ignore", search.ExperimentalWarning)  # heartbeats are experimental in Optuna
        process = search.Search(plan, url)
        process.run()
        with process.lock:  # each process that ends does this
            best = results.write_best(process.study, plan)
            plots = results.draw_study(process.study, folder / results.PLOTS, plan.recipe.dataset)
        score = f"{results.SCORE} {results.percent(process.study.best_value)}"
        print(f"\n{results.trial_counts(process.study)}; the best: {score}")
    print(f"plots of the study: {plots}")
    print(f"to train by the best recipe: python scripts/train.py --config {shlex.quote(str(best))}")


def check_searchable(recipe: TrainOptions) -> None:
    """Raise UserError if the recipe leaves no validation split, or needs several processes."""
    if not recipe.val_fraction:
        raise UserError(
            "cannot search a recipe that trains on all images (val_fraction 0): trials are judged on a validation split "
            "(give --val_fraction 0.1)"
        )
    # Processes of one training would each ask for a trial of their own, and average their gradients.
    several = recipe.num_nodes > 1 or cluster_environment()
    if several or resolve_devices(**values_of(recipe, DeviceOptions)).to_launch:
        raise UserError(
            f"cannot search with --devices {recipe.devices} on {recipe.num_nodes} machine(s), or under torchrun: a trial "
            "is one process (use one device, and start the search several times to share the work)"
        )


def prepare(recipe: TrainOptions) -> TrainOptions:
    """The recipe with its data set and teacher resolved; the data is downloaded. Raises UserError if one is missing."""
    quiet()
    fabric = resolve_devices(**values_of(recipe, DeviceOptions)).fabric
    recipe, _ = prepare_data(recipe, fabric)
    recipe, _ = prepare_teacher(recipe, fabric)
    return recipe


def command_line(options: TuneOptions) -> str:
    """The command that has these options."""
    values = {one.name: (getattr(options, one.name), one.default) for one in fields(options)}
    words = [(f"--{name}", str(value)) for name, (value, default) in values.items() if value != default]
    return shlex.join(["python", "scripts/tune.py", *(word for pair in words for word in pair)])
