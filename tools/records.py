"""Records of final runs, `results/RECIPE/seed_N.json`."""

from pathlib import Path
from typing import Any

from fmnist_lightning.training.recipes import read_recipe

from fmnist_lightning.cli import LOG_DIR, parse
from fmnist_lightning.errors import UserError
from fmnist_lightning.report.findings import NEEDED, read_figures, read_metrics
from fmnist_lightning.runs.files import write_text
from fmnist_lightning.runs.folders import DEVICE_OPTIONS, METRICS, describe_teacher, find_run, read_config
from fmnist_lightning.training.train import train

# What may differ between a recipe and a run of it: where it read and wrote, computed and stopped, and the seed.
NOT_RECORDED = (
    *("seed", "dataset", "data_dir", "log_dir", "test", "resume", "checkpoint_every_minutes", "fast_dev_run"),
    *DEVICE_OPTIONS,
)
RECORDED = tuple(name for name in NEEDED if name != "tested_with")  # in each record; older ones know less of the test
RECORDS = "seed_*.json"  # in the folder of a recipe
TTA_SUFFIX = "_tta"  # of a folder of records that were tested with test-time augmentation


def add_record(run: Path, recipe: Path, results: Path) -> Path:
    """Keep the metrics of a finished run as the record of a recipe's seed; returns the file.

    With test-time augmentation it goes into a folder of its own, RECIPE_tta.
    Raises UserError where the run was not tested, or is not what a record says: the recipe's checkpoint of a training
    by just this recipe, from a clean commit, on the whole test set of Fashion-MNIST, tested in the training's
    arithmetic from a clean commit too. That may be a later one, so that mirror images can be averaged without training
    anew: the weights are the training's whatever came since, and the record names both commits. All records of a
    recipe have one teacher, which their row names: `packaged` is another net whenever other weights are packaged.
    """
    run = find_run(str(run), Path(LOG_DIR))
    metrics = read_metrics(run)
    options, config = read_recipe(recipe), read_config(run, required=("precision",))
    if faults := [*faults_of_test(metrics, options, config), *faults_of_training(metrics, options, config)]:
        raise UserError(f"{run} is no record of {recipe}: {'; '.join(faults)}")
    folder = f"{recipe.stem}{TTA_SUFFIX if metrics.get('tta') else ''}"
    record = results / folder / f"seed_{metrics['seed']}.json"
    check_same_teacher(run, metrics, [path for path in record.parent.glob(RECORDS) if path != record])
    write_text(record, (run / METRICS).read_text(encoding="utf-8"))
    return record


def faults_of_test(metrics: dict[str, Any], options: dict[str, Any], config: dict[str, Any]) -> list[str]:
    """What in a run's metrics is not as a test of `options` would have it; `config` has the training's own."""
    wanted = {"dataset": "fashion_mnist", "n": 10000, "checkpoint": options["ckpt"], "arithmetic": config["precision"]}
    if options["patience"] is None:
        wanted["epochs"] = options["max_epochs"]
    faults = [f"{name} is {metrics[name]}, not {value}" for name, value in wanted.items() if metrics[name] != value]
    if not is_clean(metrics["tested_with"]["git"]):
        faults.append("the code that tested it was no clean commit")
    return faults


def faults_of_training(metrics: dict[str, Any], options: dict[str, Any], config: dict[str, Any]) -> list[str]:
    """What in a training was not as `options`, the recipe's, have it."""
    faults = [] if is_clean(metrics["git"]) else ["the code that trained it was no clean commit"]
    if metrics.get("earlier_environments"):
        faults.append("its parts were trained by different code or machines")
    # A run of before an option was there did what its default does.
    plain = parse(train, [])
    found = {name: config.get(name, plain[name]) for name in options if name not in NOT_RECORDED}
    if options["precision"] != "auto":
        found["precision"] = config["precision"]
    return faults + [
        f"{name} was {value}, not {options[name]}" for name, value in found.items() if value != options[name]
    ]


def is_clean(git: dict[str, Any]) -> bool:
    """Whether `environment.git_state` found a commit, and nothing beside it."""
    return git["commit"] is not None and not git["dirty"]


def check_same_teacher(run: Path, metrics: dict[str, Any], records: list[Path]) -> None:
    """Raise UserError where one of the records was taught by another net than the run."""
    for record in records:
        before, now = read_record(record).get("teacher"), metrics.get("teacher")
        if before != now:
            raise UserError(
                f"{run} was taught by {describe_teacher(now)}, and {record} by {describe_teacher(before)}: train by that "
                "teacher, or take the records of the other one away first"
            )


def read_records(results: Path) -> dict[str, list[dict[str, Any]]]:
    """All records by recipe, each in the order of seeds; of a folder without any nothing is said.

    Raises UserError where one can't be read.
    """
    folders = (folder for folder in results.iterdir() if any(folder.glob(RECORDS)))
    # A recipe's row with test-time augmentation comes right behind its row without.
    recipes = sorted(folders, key=lambda folder: (folder.name.removesuffix(TTA_SUFFIX), folder.name))
    read = {folder.name: [read_record(path) for path in folder.glob(RECORDS)] for folder in recipes}
    return {recipe: sorted(records, key=lambda record: record["seed"]) for recipe, records in read.items()}


def read_record(path: Path) -> dict[str, Any]:
    """One record. Raises UserError where it can't be read, or is none."""
    return read_figures(path, RECORDED, f"put it back (git restore {path}), or take it away and keep its run anew")
