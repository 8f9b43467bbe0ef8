"""README's tables of results, made from the records."""

import statistics
from pathlib import Path
from typing import Any

from fmnist_lightning.errors import UserError
from fmnist_lightning.metrics import METRIC_NAMES, ORIGINAL
from fmnist_lightning.report.console import LABELS
from fmnist_lightning.runs.files import write_text
from tools.records import TTA_SUFFIX

TARGETS = (91.39, 92.5, 93, 94, 94.5, 95)  # of test accuracy, per cent; the first is the original's
SEEDS = 5  # that must reach a target
ORIGINALS_NET = "original_notebook"  # the recipe of the net that printed the original's figures
ORIGINALS_SECONDS = 2_688  # of its training, as its notebook shows, on a machine that it does not name


def results_table(records: dict[str, list[dict[str, Any]]]) -> str:
    """A Markdown table: the original's figures, then mean ± standard deviation over each recipe's seeds, per cent."""
    lines = [
        "| test set, per cent | " + " | ".join(LABELS[name] for name in METRIC_NAMES) + " | seeds | commit |",
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
    """A Markdown table: for each of TARGETS, the recipe that at least SEEDS of its seeds get there with soonest.

    The time is the median of those seeds' whole trainings, validation and checkpoints included. Recipes with a teacher
    have no place here: their records don't count the teacher's own training.
    """
    lines = [
        "| test accuracy, per cent | recipe that gets there first | median time of training | seeds that get there |"
    ]
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
    """A Markdown table: what was aimed at, the mean of the recipe that came closest, and what is missing.

    A goal without a recipe is one that nothing was trained for yet; one whose recipe has fewer than SEEDS seeds is not
    measured yet either. Raises UserError where its recipe has no records.
    """
    lines = ["| goal | per cent | reached | by | |", "|---|---|---|---|---|"]
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
    """A recipe's records, for a `reader` that names it. Raises UserError where there are none."""
    if recipe not in records:
        known = ", ".join(records) or "none"
        raise UserError(
            f"{reader} is held to {recipe}, which has no records in results/ (it has {known}): put them back (git "
            "restore results), keep its runs first (--add), or name another recipe in results/goals.yaml"
        )
    return records[recipe]


def readme_tables(records: dict[str, list[dict[str, Any]]], goals: list[dict[str, Any]]) -> dict[str, str]:
    """What README has between its marks, by the marks' names."""
    return {
        "results": results_table(records),
        "goals": goals_table(goals, records),
        "time": time_table(records),
        "original": original_sentences(runs_of(ORIGINALS_NET, records, "README's text on the original's figures")),
    }


def original_sentences(runs: list[dict[str, Any]]) -> str:
    """Whether the original's figures lie within what seeds of the net behind them give, and how long both trained."""
    ranges = []
    for name in METRIC_NAMES:
        values = [round(100 * run[name], 2) for run in runs]
        where = "within" if min(values) <= ORIGINAL[name] <= max(values) else "outside"
        ranges.append(f"{LABELS[name]} {min(values):.2f} to {max(values):.2f} (reported {ORIGINAL[name]:.2f}, {where})")
    times = duration(statistics.median(run["training_seconds"] for run in runs)), duration(ORIGINALS_SECONDS)
    net = f"{recipe_name(ORIGINALS_NET)}, {runs[0]['parameters']:,} parameters"
    return (
        f"The net behind the original's figures, {net}, gives on {len(runs)} seeds {', '.join(ranges)}. "
        f"A training takes {times[0]} (median), the original's took {times[1]}."
    )


def duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def recipe_name(folder: str) -> str:
    """What a row is called, by the name of its records' folder."""
    recipe = folder.removesuffix(TTA_SUFFIX)
    return f"`recipes/{recipe}.yaml`{', mirror images averaged' if folder != recipe else ''}"


def taught_by(run: dict[str, Any]) -> str:
    """What a row says of a run that learned from a trained net too; older records know of no teacher."""
    teacher = run.get("teacher")
    return f", taught by `{teacher['model']}`" if teacher else ""


def mean_and_spread(values: list[float]) -> str:
    """Mean ± sample standard deviation; the mean alone of a single value."""
    mean = f"{statistics.mean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def marks(name: str) -> tuple[str, str]:
    """The lines of a document between which the table `name` goes."""
    return f"<!-- {name}: begin; made by `make results` -->", f"<!-- {name}: end -->"


def update_document(path: Path, name: str, table: str) -> None:
    """Put a table between its two marks. Raises UserError where they are missing."""
    begin, end = marks(name)
    before, found_begin, rest = path.read_text(encoding="utf-8").partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        raise UserError(f"{path} lacks the lines {begin} and {end}, between which the table goes")
    write_text(path, f"{before}{begin}\n{table}\n{end}{after}")
