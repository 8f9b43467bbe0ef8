"""Write the report of a tested run: one HTML file, and its plots as PNG files."""

import base64
from pathlib import Path
from typing import Any

import jinja2
from torch import Tensor

from fmnist_lightning.cli.recipes import recipes
from fmnist_lightning.data.sets import recorded_info
from fmnist_lightning.report import analysis, plots, tables
from fmnist_lightning.report.results import read_curves, read_metrics, read_predictions
from fmnist_lightning.runs.files import atomic_write, write_text
from fmnist_lightning.runs.folders import HISTORY, REPORT, REPORT_PICTURES, read_config
from fmnist_lightning.runs.options import (
    AugmentationOptions,
    DistillationOptions,
    LoopOptions,
    ModuleOptions,
    TrainOptions,
    as_yaml,
    names,
    recipe_values,
)

# What the report says about the training, by the names in metrics.json.
TRAINING = (
    *("model", "parameters", "epochs", "batch_size", "arithmetic", "seed"),
    *("checkpoint", "checkpoint_epoch", "tta"),
)
# A training follows a recipe on any data and device, with any seed.
OF_RECIPE = (
    *("batch_size", "val_fraction", "ckpt", "precision"),
    *names(ModuleOptions),
    *names(AugmentationOptions),
    *names(LoopOptions),
    *names(DistillationOptions),
)
MOST_CHANGES = 4  # of a recipe's options; with more, it is another one


def write_report(run: Path, images: Tensor) -> Path:
    """Write report.html and report/NAME.png of a tested run; return the HTML file.

    `images` (n, C, H, W) uint8 are the test set, in file order. Raises UserError if a file of the run is damaged.
    """
    metrics = read_metrics(run)
    info, config = recorded_info(metrics), read_config(run)
    classes = info.classes
    predictions, curves = read_predictions(run, metrics), read_curves(run)
    figures = plots.prediction_plots(*predictions, images, classes)
    if curves:
        figures["learning_curves"] = plots.curves_plot(curves)
    pictures = {name: plots.png(plots.mark(figure, info)) for name, figure in figures.items()}
    for name, content in pictures.items():
        with atomic_write(run / REPORT_PICTURES / f"{name}.png") as file:
            file.write(content)
    counts = analysis.confusion_matrix(*predictions)
    # It escapes all text, and raises if the page uses a value that is not given.
    folder = jinja2.PackageLoader("fmnist_lightning.report")
    pages = jinja2.Environment(loader=folder, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    page = pages.get_template("report.html").render(
        run=run.resolve().name,
        info=info,
        metrics=metrics,
        curves=curves,
        history=HISTORY,
        confidence=predictions.probs.max(axis=1).mean(),
        calibration_error=analysis.calibration_error(*predictions),
        percent=tables.percent,
        result=tables.result_table(metrics),
        matrix=tables.confusion_table(counts, classes),
        pairs=tables.pairs_table(counts, 10, classes),
        mistakes=tables.mistakes_table(*predictions, plots.MISTAKES, classes),
        classes=tables.per_class_table(*predictions, classes),
        overview=overview(metrics, config),
        facts=facts(metrics, config),
        matrix_inches=figures["confusion"].get_figwidth(),
        images={name: base64.b64encode(content).decode() for name, content in pictures.items()},
    )
    write_text(run / REPORT, page)
    return run / REPORT


def recipe_of(config: dict[str, Any]) -> str:
    """The recipe of the project that the options in a config.yaml follow, and in what they differ."""
    defaults, changes = as_yaml(TrainOptions()), {}
    for name, path in recipes().items():
        wanted, found = defaults | recipe_values(path), defaults | config
        # `auto` became the precision of the training's device.
        changes[name] = [
            f"{option} {found[option]}" for option in OF_RECIPE if found[option] != wanted[option] != "auto"
        ]
    nearest = min(changes, key=lambda name: len(changes[name]))
    if len(changes[nearest]) > MOST_CHANGES:
        return "none of the project's"
    return ", but ".join([nearest, *filter(None, [", ".join(changes[nearest])])])


def overview(metrics: dict[str, Any], config: dict[str, Any]) -> dict[str, str]:
    """How and when the run was trained and tested. Older runs don't know when."""
    dates = {"trained until": metrics.get("trained_at"), "tested": metrics.get("tested_at")}
    return {
        "recipe": recipe_of(config),
        "training time": tables.duration(metrics["training_seconds"]),
        **{name: date for name, date in dates.items() if date},
    }


def facts(metrics: dict[str, Any], config: dict[str, Any]) -> list[tables.Table]:
    """Tables of the training, of each environment that differs, and of all options."""
    training = {**overview(metrics, config), **{name: metrics.get(name) for name in TRAINING}}
    trained = {name: metrics.get(name) for name in metrics["tested_with"]}
    contents = [("Training", training), ("Environment of the training", trained)]
    # A checkpoint that records no environment leaves an empty one.
    for earlier in filter(None, metrics.get("earlier_environments", [])):
        contents.append(("Environment of an earlier part of the training", earlier))
    if metrics["tested_with"] != trained:
        contents.append(("Environment of the test", metrics["tested_with"]))
    contents.append(("Options, from config.yaml", config))
    return [tables.facts_table(content, caption) for caption, content in contents]
