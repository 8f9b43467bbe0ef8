"""Records of final runs, `results/RECIPE/seed_N.json`."""

from pathlib import Path
from typing import Any

from fmnist_lightning.cli.types import LOG_DIR
from fmnist_lightning.errors import UserError
from fmnist_lightning.report.results import NEEDED, read_metrics, read_metrics_file
from fmnist_lightning.runs.files import write_text
from fmnist_lightning.runs.folders import METRICS, describe_teacher, find_run
from fmnist_lightning.runs.options import DeviceOptions, TrainOptions, names, read_options, read_recipe

Records = dict[str, list[dict[str, Any]]]  # the metrics of runs, by recipe

# What may differ between a recipe and a run of it: paths, devices, where it was stopped, and the seed.
NOT_RECORDED = {
    *("seed", "dataset", "data_dir", "log_dir", "test", "resume", "checkpoint_every_minutes", "fast_dev_run"),
    *names(DeviceOptions),
}
RECORDED = tuple(name for name in NEEDED if name != "tested_with")  # in each record; older ones know less of the test
RECORDS = "seed_*.json"  # in the folder of a recipe
TTA_SUFFIX = "_tta"  # of a folder of records that were tested with test-time augmentation


def add_record(run: Path, recipe: Path, results: Path) -> Path:
    """Keep the metrics of a finished run as the record of a recipe's seed; return the file.

    With test-time augmentation it goes into a folder of its own, RECIPE_tta.
    Raises UserError if the run is not what a record says: a training by exactly this recipe, from a clean commit, whose
    checkpoint was tested on the full test set of Fashion-MNIST, in the precision of the training, from a clean commit
    too. That may be a later commit, so that mirror images can be averaged without a new training: the record names
    both. All records of a recipe have one teacher, which their row names.
    """
    run = find_run(str(run), Path(LOG_DIR))
    metrics = read_metrics(run)
    folder = results / f"{recipe.stem}{TTA_SUFFIX if metrics.get('tta') else ''}"
    record = folder / f"seed_{metrics['seed']}.json"
    found = faults(metrics, read_recipe(recipe), read_options(run))
    for other in folder.glob(RECORDS):
        before, now = read_record(other).get("teacher"), metrics.get("teacher")
        if other != record and before != now:
            found.append(f"its teacher is {describe_teacher(now)}, and that of {other} is {describe_teacher(before)}")
    if found:
        raise UserError(f"cannot keep {run} as a record of {recipe}: {'; '.join(found)}")
    write_text(record, (run / METRICS).read_text(encoding="utf-8"))
    return record


def faults(metrics: dict[str, Any], wanted: TrainOptions, trained: TrainOptions) -> list[str]:
    """Where a run and its metrics differ from a full test of a training by the options `wanted`."""
    expected = {"dataset": "fashion_mnist", "n": 10000, "checkpoint": wanted.ckpt, "arithmetic": trained.precision}
    if wanted.patience is None:
        expected["epochs"] = wanted.max_epochs
    pairs = {name: (metrics[name], value) for name, value in expected.items()}
    for name in names(TrainOptions):
        if name not in NOT_RECORDED or (name == "precision" and wanted.precision != "auto"):
            pairs[name] = getattr(trained, name), getattr(wanted, name)
    found = [f"{name} is {value}, not {asked}" for name, (value, asked) in pairs.items() if value != asked]
    for done, git in (("trained", metrics["git"]), ("tested", metrics["tested_with"]["git"])):
        if git["commit"] is None or git["dirty"]:
            found.append(f"it was not {done} from a clean commit")
    if metrics.get("earlier_environments"):
        found.append("its parts were trained by different code or machines")
    return found


def read_records(results: Path) -> Records:
    """All records by recipe, each in the order of seeds. Raises UserError if one can't be read."""
    folders = (folder for folder in results.iterdir() if any(folder.glob(RECORDS)))
    # A recipe's row with test-time augmentation comes right after its row without.
    recipes = sorted(folders, key=lambda folder: (folder.name.removesuffix(TTA_SUFFIX), folder.name))
    read = {folder.name: [read_record(path) for path in folder.glob(RECORDS)] for folder in recipes}
    return {recipe: sorted(records, key=lambda record: record["seed"]) for recipe, records in read.items()}


def read_record(path: Path) -> dict[str, Any]:
    """One record. Raises UserError if it can't be read."""
    return read_metrics_file(path, RECORDED, f"restore it (git restore {path}), or remove it and add its run again")
