"""Records of final runs, `results/RECIPE/seed_N.json`."""

from pathlib import Path
from typing import Any

from fmnist_lightning.cli import LOG_DIR
from fmnist_lightning.errors import UserError
from fmnist_lightning.report.results import NEEDED, read_metrics, read_metrics_file
from fmnist_lightning.runs.files import write_text
from fmnist_lightning.runs.folders import METRICS, describe_teacher, find_run
from fmnist_lightning.runs.options import DeviceOptions, TrainOptions, names, read_options, read_recipe

# What may differ between a recipe and a run of it: paths, devices, where it was stopped, and the seed.
NOT_RECORDED = (
    *("seed", "dataset", "data_dir", "log_dir", "test", "resume", "checkpoint_every_minutes", "fast_dev_run"),
    *names(DeviceOptions),
)
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
    wanted, trained = read_recipe(recipe), read_options(run)
    if faults := [*test_faults(metrics, wanted, trained), *training_faults(metrics, wanted, trained)]:
        raise UserError(f"cannot keep {run} as a record of {recipe}: {'; '.join(faults)}")
    folder = f"{recipe.stem}{TTA_SUFFIX if metrics.get('tta') else ''}"
    record = results / folder / f"seed_{metrics['seed']}.json"
    check_same_teacher(run, metrics, [path for path in record.parent.glob(RECORDS) if path != record])
    write_text(record, (run / METRICS).read_text(encoding="utf-8"))
    return record


def test_faults(metrics: dict[str, Any], wanted: TrainOptions, trained: TrainOptions) -> list[str]:
    """Where a run's metrics are not those of a test by the options `wanted`."""
    expected: dict[str, Any] = {
        "dataset": "fashion_mnist",
        "n": 10000,
        "checkpoint": wanted.ckpt,
        "arithmetic": trained.precision,
    }
    if wanted.patience is None:
        expected["epochs"] = wanted.max_epochs
    faults = [f"{name} is {metrics[name]}, not {value}" for name, value in expected.items() if metrics[name] != value]
    if not is_clean(metrics["tested_with"]["git"]):
        faults.append("it was not tested from a clean commit")
    return faults


def training_faults(metrics: dict[str, Any], wanted: TrainOptions, trained: TrainOptions) -> list[str]:
    """Where a training differs from the recipe `wanted`."""
    faults = [] if is_clean(metrics["git"]) else ["it was not trained from a clean commit"]
    if metrics.get("earlier_environments"):
        faults.append("its parts were trained by different code or machines")
    compared = [name for name in names(TrainOptions) if name not in NOT_RECORDED]
    if wanted.precision != "auto":
        compared.append("precision")
    pairs = {name: (getattr(trained, name), getattr(wanted, name)) for name in compared}
    return faults + [f"{name} was {found}, not {asked}" for name, (found, asked) in pairs.items() if found != asked]


def is_clean(git: dict[str, Any]) -> bool:
    """Whether `environment.git_state` found a commit and no uncommitted changes."""
    return git["commit"] is not None and not git["dirty"]


def check_same_teacher(run: Path, metrics: dict[str, Any], records: list[Path]) -> None:
    """Raise UserError if one of the records had another teacher than the run."""
    now = metrics.get("teacher")
    for record in records:
        before = read_record(record).get("teacher")
        if before != now:
            raise UserError(
                f"cannot keep {run} next to {record}: their teachers are {describe_teacher(now)} and "
                f"{describe_teacher(before)} (train with that teacher, or remove the older records)"
            )


def read_records(results: Path) -> dict[str, list[dict[str, Any]]]:
    """All records by recipe, each in the order of seeds. Raises UserError if one can't be read."""
    folders = (folder for folder in results.iterdir() if any(folder.glob(RECORDS)))
    # A recipe's row with test-time augmentation comes right after its row without.
    recipes = sorted(folders, key=lambda folder: (folder.name.removesuffix(TTA_SUFFIX), folder.name))
    read = {folder.name: [read_record(path) for path in folder.glob(RECORDS)] for folder in recipes}
    return {recipe: sorted(records, key=lambda record: record["seed"]) for recipe, records in read.items()}


def read_record(path: Path) -> dict[str, Any]:
    """One record. Raises UserError if it can't be read."""
    return read_metrics_file(path, RECORDED, f"restore it (git restore {path}), or remove it and add its run again")
