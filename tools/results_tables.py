"""The tables of README and docs/results.md, made from the records."""

import statistics
from typing import Any

from fmnist_lightning.data.sets.fashion_mnist import FASHION_MNIST
from fmnist_lightning.errors import UserError
from fmnist_lightning.metrics import METRIC_NAMES
from fmnist_lightning.report.tables import LABELS
from tools.markdown import markdown
from tools.records import TTA_SUFFIX, Records

TARGETS = (91.39, 92.5, 93, 94, 94.5, 95)  # test accuracy in percent; the first is the original's
SEEDS = 5  # that must reach a target
ORIGINAL = FASHION_MNIST.published
ORIGINALS_MODEL = "original_notebook"  # the recipe of the model that printed the original's metrics
ORIGINALS_PARAMETERS = 503_690  # of that model
ORIGINALS_SECONDS = 2_688  # of its training, as its notebook shows, on a machine that it does not name
# README's rows: the original's model, then the fastest recipes to higher accuracies.
SUMMARY = ("seed", "fast_searched", "compact_6_epochs", "compact_16_epochs", "tuned", "fine", "fine_tta")
LABEL_CELLS = [LABELS[name] for name in METRIC_NAMES]
ORIGINAL_CELLS = [f"{ORIGINAL[name]:.2f}" for name in METRIC_NAMES]


def summary_table(records: Records) -> str:
    """The original and SUMMARY: size, time of a training, metrics in percent, number of seeds."""
    times = f"{ORIGINALS_PARAMETERS:,}", duration(ORIGINALS_SECONDS)
    rows = [["recipe", "parameters", "training", *LABEL_CELLS, "seeds"]]
    rows.append(["the original (Keras)", *times, *ORIGINAL_CELLS, "1"])
    for recipe in SUMMARY:
        runs = runs_of(recipe, records)
        times = f"{runs[0]['parameters']:,}", duration(median_seconds(runs))
        rows.append([recipe_name(recipe), *times, *metric_cells(runs), str(len(runs))])
    return markdown(rows)


def results_table(records: Records) -> str:
    """The original's metrics, then each recipe's mean ± standard deviation over seeds, in percent."""
    rows = [["test set, percent", *LABEL_CELLS, "seeds", "commit"]]
    rows.append(["original (Keras)", *ORIGINAL_CELLS, "one run", ""])
    for recipe, runs in records.items():
        seeds = ", ".join(str(run["seed"]) for run in runs)
        commits = ", ".join(sorted({run["git"]["commit"][:7] for run in runs}))
        rows.append([recipe_name(recipe) + taught_by(runs[0]), *metric_cells(runs), seeds, commits])
    return markdown(rows)


def time_table(records: Records) -> str:
    """For each of TARGETS, the fastest recipe of which at least SEEDS seeds reach it.

    The time is the median over those seeds of the whole training, validation and checkpoints included. Recipes with a
    teacher are left out: their records don't count the training of the teacher.
    """
    rows = [("test accuracy, percent", "fastest recipe", "median training time", "seeds that reach it")]
    for target in TARGETS:
        reaching = {
            recipe: [run for run in runs if round(100 * run["accuracy"], 2) >= target]
            for recipe, runs in records.items()
            if not taught_by(runs[0])
        }
        medians = {recipe: median_seconds(runs) for recipe, runs in reaching.items() if len(runs) >= SEEDS}
        if medians:
            first = min(medians, key=lambda recipe: medians[recipe])
            counted = f"{len(reaching[first])} of {len(records[first])}"
            rows.append((f"{target:g}", recipe_name(first), duration(medians[first]), counted))
        else:
            rows.append((f"{target:g}", "none yet", "", ""))
    return markdown(rows)


def goals_table(goals: list[dict[str, Any]], records: Records) -> str:
    """Each goal, the mean of the recipe that came closest, and the difference.

    A goal without a recipe, or whose recipe has fewer than SEEDS seeds, is not measured yet. Raises UserError if its
    recipe has no records.
    """
    rows = [("goal", "percent", "reached", "by", "")]
    for goal in goals:
        aim = f"{goal['for']}: {LABELS[goal['metric']]}", f"{goal['goal']:g}"
        runs = runs_of(goal["recipe"], records) if goal["recipe"] else []
        if len(runs) < SEEDS:
            rows.append((*aim, "not measured", "", ""))
            continue
        reached = round(100 * statistics.mean(run[goal["metric"]] for run in runs), 2)
        missing = round(goal["goal"] - reached, 2)
        verdict = "met" if missing <= 0 else f"missed by {missing:.2f}"
        rows.append((*aim, f"{reached:.2f}", recipe_name(goal["recipe"]) + taught_by(runs[0]), verdict))
    return markdown(rows)


def original_sentences(records: Records) -> str:
    """Whether the original's metrics lie within the range of our seeds of its model, and how long both trained."""
    runs, ranges = runs_of(ORIGINALS_MODEL, records), []
    for name in METRIC_NAMES:
        values = [round(100 * run[name], 2) for run in runs]
        where = "within" if min(values) <= ORIGINAL[name] <= max(values) else "outside"
        ranges.append(f"{LABELS[name]} {min(values):.2f} to {max(values):.2f} (reported {ORIGINAL[name]:.2f}, {where})")
    model, times = recipe_name(ORIGINALS_MODEL), (duration(median_seconds(runs)), duration(ORIGINALS_SECONDS))
    return (
        f"The model that printed the original's metrics ({model}, {runs[0]['parameters']:,} parameters) reaches on "
        f"{len(runs)} seeds: {', '.join(ranges)}. A training takes {times[0]} (median); the original's took {times[1]}."
    )


def runs_of(recipe: str, records: Records) -> list[dict[str, Any]]:
    """A recipe's records. Raises UserError if there are none."""
    if recipe not in records:
        raise UserError(f"cannot make the tables: {recipe} has no records in results/ (git restore results)")
    return records[recipe]


def median_seconds(runs: list[dict[str, Any]]) -> float:
    return statistics.median(run["training_seconds"] for run in runs)


def duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def recipe_name(folder: str) -> str:
    """The name of a row, by the folder of its records."""
    recipe = folder.removesuffix(TTA_SUFFIX)
    return f"`recipes/{recipe}.yaml`{', test-time augmentation' if folder != recipe else ''}"


def taught_by(run: dict[str, Any]) -> str:
    """The part of a row's name that says which teacher it had, if any; older records have no such entry."""
    teacher = run.get("teacher")
    return f", distilled from `{teacher['model']}`" if teacher else ""


def metric_cells(runs: list[dict[str, Any]]) -> list[str]:
    return [mean_and_spread([100 * run[name] for run in runs]) for name in METRIC_NAMES]


def mean_and_spread(values: list[float]) -> str:
    """Mean ± sample standard deviation; of a single value, the value."""
    mean = f"{statistics.mean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean
