"""The tables of README and docs/results.md, made from the records."""

import statistics
from pathlib import Path
from typing import Any

from fmnist_lightning.errors import UserError
from fmnist_lightning.metrics import METRIC_NAMES, ORIGINAL
from fmnist_lightning.report.tables import LABELS
from fmnist_lightning.runs.files import write_text
from tools.records import TTA_SUFFIX

TARGETS = (91.39, 92.5, 93, 94, 94.5, 95)  # test accuracy in percent; the first is the original's
SEEDS = 5  # that must reach a target
ORIGINALS_MODEL = "original_notebook"  # the recipe of the model that printed the original's metrics
ORIGINALS_PARAMETERS = 503_690  # of that model
ORIGINALS_SECONDS = 2_688  # of its training, as its notebook shows, on a machine that it does not name
# README's rows: the original's model, then the fastest recipes to higher accuracies.
SUMMARY = ("seed", "fast_searched", "compact_6_epochs", "compact_16_epochs", "tuned", "fine", "fine_tta")


def summary_table(records: dict[str, list[dict[str, Any]]]) -> str:
    """A Markdown table of the original and of SUMMARY: size, time of a training, metrics in percent, seeds."""
    lines = [
        "| recipe | parameters | training | " + " | ".join(LABELS[name] for name in METRIC_NAMES) + " | seeds |",
        "|---" * (len(METRIC_NAMES) + 4) + "|",
        f"| the original (Keras) | {ORIGINALS_PARAMETERS:,} | {duration(ORIGINALS_SECONDS)} | "
        + " | ".join(f"{ORIGINAL[name]:.2f}" for name in METRIC_NAMES)
        + " | 1 |",
    ]
    for recipe in SUMMARY:
        runs = runs_of(recipe, records, "README's table")
        seconds = duration(statistics.median(run["training_seconds"] for run in runs))
        cells = [mean_and_spread([100 * run[name] for run in runs]) for name in METRIC_NAMES]
        row = [recipe_name(recipe), f"{runs[0]['parameters']:,}", seconds, *cells, str(len(runs))]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def results_table(records: dict[str, list[dict[str, Any]]]) -> str:
    """A Markdown table: the original's metrics, then each recipe's mean ± standard deviation over seeds, in percent."""
    lines = [
        "| test set, percent | " + " | ".join(LABELS[name] for name in METRIC_NAMES) + " | seeds | commit |",
        "|---" * (len(METRIC_NAMES) + 3) + "|",
        "| original (Keras) | " + " | ".join(f"{ORIGINAL[name]:.2f}" for name in METRIC_NAMES) + " | one run | |",
    ]
    for recipe, runs in records.items():
        cells = [mean_and_spread([100 * run[name] for run in runs]) for name in METRIC_NAMES]
        seeds = ", ".join(str(run["seed"]) for run in runs)
        commits = ", ".join(sorted({run["git"]["commit"][:7] for run in runs}))
        name = recipe_name(recipe) + taught_by(runs[0])
        lines.append(f"| {name} | {' | '.join(cells)} | {seeds} | {commits} |")
    return "\n".join(lines)


def time_table(records: dict[str, list[dict[str, Any]]]) -> str:
    """A Markdown table: for each of TARGETS, the fastest recipe of which at least SEEDS seeds reach it.

    The time is the median over those seeds of the whole training, validation and checkpoints included. Recipes with a
    teacher are left out: their records don't count the training of the teacher.
    """
    lines = ["| test accuracy, percent | fastest recipe | median training time | seeds that reach it |"]
    lines.append("|---|---|---|---|")
    for target in TARGETS:
        reaching = {
            recipe: [run["training_seconds"] for run in runs if round(100 * run["accuracy"], 2) >= target]
            for recipe, runs in records.items()
            if not taught_by(runs[0])
        }
        medians = {recipe: statistics.median(times) for recipe, times in reaching.items() if len(times) >= SEEDS}
        if not medians:
            lines.append(f"| {target:g} | none yet | | |")
            continue
        first = min(medians, key=lambda recipe: medians[recipe])
        counted = f"{len(reaching[first])} of {len(records[first])}"
        lines.append(f"| {target:g} | {recipe_name(first)} | {duration(medians[first])} | {counted} |")
    return "\n".join(lines)


def goals_table(goals: list[dict[str, Any]], records: dict[str, list[dict[str, Any]]]) -> str:
    """A Markdown table: each goal, the mean of the recipe that came closest, and the difference.

    A goal without a recipe, or whose recipe has fewer than SEEDS seeds, is not measured yet. Raises UserError if its
    recipe has no records.
    """
    lines = ["| goal | percent | reached | by | |", "|---|---|---|---|---|"]
    for goal in goals:
        aim = f"| {goal['for']}: {LABELS[goal['metric']]} | {goal['goal']:g} |"
        runs = runs_of(goal["recipe"], records, f"the goal '{goal['for']}'") if goal["recipe"] else []
        if len(runs) < SEEDS:
            lines.append(f"{aim} not measured | | |")
            continue
        reached = round(100 * statistics.mean(run[goal["metric"]] for run in runs), 2)
        missing = round(goal["goal"] - reached, 2)
        verdict = "met" if missing <= 0 else f"missed by {missing:.2f}"
        lines.append(f"{aim} {reached:.2f} | {recipe_name(goal['recipe'])}{taught_by(runs[0])} | {verdict} |")
    return "\n".join(lines)


def runs_of(recipe: str, records: dict[str, list[dict[str, Any]]], reader: str) -> list[dict[str, Any]]:
    """A recipe's records, for a `reader` that needs them. Raises UserError if there are none."""
    if recipe not in records:
        known = ", ".join(records) or "none"
        raise UserError(
            f"cannot make {reader}: {recipe} has no records in results/, which has {known} (git restore results, or "
            "add its runs with --add)"
        )
    return records[recipe]


def result_documents(
    records: dict[str, list[dict[str, Any]]], goals: list[dict[str, Any]]
) -> dict[str, dict[str, str]]:
    """The tables by document and by the name of their marks."""
    return {
        "README.md": {"summary": summary_table(records)},
        "docs/results.md": {
            "results": results_table(records),
            "goals": goals_table(goals, records),
            "time": time_table(records),
            "original": original_sentences(runs_of(ORIGINALS_MODEL, records, "the original's paragraph")),
        },
    }


def original_sentences(runs: list[dict[str, Any]]) -> str:
    """Whether the original's metrics lie within the range of our seeds of its model, and how long both trained."""
    ranges = []
    for name in METRIC_NAMES:
        values = [round(100 * run[name], 2) for run in runs]
        where = "within" if min(values) <= ORIGINAL[name] <= max(values) else "outside"
        ranges.append(f"{LABELS[name]} {min(values):.2f} to {max(values):.2f} (reported {ORIGINAL[name]:.2f}, {where})")
    times = duration(statistics.median(run["training_seconds"] for run in runs)), duration(ORIGINALS_SECONDS)
    model = f"{recipe_name(ORIGINALS_MODEL)}, {runs[0]['parameters']:,} parameters"
    return (
        f"The model that printed the original's metrics ({model}) reaches on {len(runs)} seeds: {', '.join(ranges)}. "
        f"A training takes {times[0]} (median); the original's took {times[1]}."
    )


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


def mean_and_spread(values: list[float]) -> str:
    """Mean ± sample standard deviation; of a single value, the value."""
    mean = f"{statistics.mean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def marks(name: str) -> tuple[str, str]:
    """The lines of a document between which the table `name` goes."""
    return f"<!-- {name}: begin; made by `make results` -->", f"<!-- {name}: end -->"


def update_document(path: Path, name: str, table: str) -> None:
    """Put a table between its two marks. Raises UserError if they are missing."""
    begin, end = marks(name)
    before, found_begin, rest = path.read_text(encoding="utf-8").partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        raise UserError(f"cannot update {path}: it lacks the lines {begin} and {end}")
    write_text(path, f"{before}{begin}\n{table}\n{end}{after}")
