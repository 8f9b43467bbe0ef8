"""What a search leaves: the best recipe, and plots of the study."""

import contextlib
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import yaml
from matplotlib import pyplot as plt
from optuna.study import Study
from optuna.trial import TrialState
from optuna.visualization import matplotlib as drawing

from fmnist_lightning.cli.shell import command, quoted
from fmnist_lightning.errors import UserError, printable
from fmnist_lightning.models.pretrained import load_pretrained
from fmnist_lightning.report.plots import mark
from fmnist_lightning.runs.files import atomic_write, remove_staged, write_text
from fmnist_lightning.runs.options import as_yaml
from fmnist_lightning.training.distillation import validation_notice
from fmnist_lightning.tune.space import Plan, changed

SCORE = "val/accuracy"
# Attributes of a trial: its run folder, and why it failed.
RUN, ERROR = "run", "error"
# Trials that count; those of killed and interrupted processes are in state FAIL and are run again.
COUNTED = (TrialState.COMPLETE, TrialState.PRUNED)


def trial_counts(study: Study) -> str:
    """How many trials there are, by result."""
    trials = study.get_trials(deepcopy=False, states=COUNTED)
    completed = sum(trial.state == TrialState.COMPLETE for trial in trials)
    failed = sum(ERROR in trial.user_attrs for trial in trials)
    return f"{completed} completed, {len(trials) - completed - failed} pruned and {failed} failed trials"


def write_best(study: Study, plan: Plan) -> Path:
    """Write the options of the best trial as a recipe. Raises UserError if no trial was completed."""
    path = plan.folder / "best.yaml"
    try:
        best = study.best_trial
    except ValueError as error:
        raise UserError(f"cannot write {path}: the study has {trial_counts(study)} (change the space)") from error
    options = changed(plan.recipe, best.params, path)
    header = [
        f"The best recipe of a search: {command('train')} --config {quoted(path)}",
        f"{SCORE} {best.values[0]:.2%} with seed {options.seed}, on {plan.info.title}: "
        f"trial {best.number} ({best.user_attrs[RUN]}) of {trial_counts(study)}.",
        "It was chosen on the validation split, so expect less of other seeds and images. The test set was not read.",
        plan.command,
    ]
    if options.teacher:
        with contextlib.suppress(UserError):  # its file was removed, which is no reason to lose the result
            card = load_pretrained(options.teacher).card
            if notice := validation_notice(options.teacher, card, options.val_fraction):
                header.append(f"WARNING: {notice}")
    recipe = {name: value for name, value in as_yaml(options).items() if name in plan.held}
    remove_staged(path.parent)
    write_text(path, "".join(f"# {printable(line)}\n" for line in header) + yaml.safe_dump(recipe, sort_keys=False))
    return path


def draw_curves(study: Study) -> None:
    axes = drawing.plot_intermediate_values(study)
    axes.set(title="Curves of the trials", xlabel="epoch", ylabel=SCORE)
    axes.legend().remove()  # a name for each of fifty trials


DRAWINGS: dict[str, Callable[[Study], Any]] = {
    "history": partial(drawing.plot_optimization_history, target_name=SCORE),
    "importances": partial(drawing.plot_param_importances, target_name=SCORE),
    "slice": partial(drawing.plot_slice, target_name=SCORE),
    "curves": draw_curves,
}


def write_results(study: Study, plan: Plan) -> None:
    """Write the best recipe, draw the study into PNG files, and print where they are."""
    best, folder = write_best(study, plan), plan.folder / "plots"
    remove_staged(folder)
    # Optuna draws with pyplot and changes its style.
    with mpl.rc_context({"backend": "agg"}), warnings.catch_warnings(action="ignore"):
        for name, draw in DRAWINGS.items():
            draw(study)
            mark(plt.gcf(), plan.info, y=-0.03)  # below Optuna's labels
            with atomic_write(folder / f"{name}.png") as file:
                plt.savefig(file, format="png", bbox_inches="tight")
            plt.close()
    print(f"\n{trial_counts(study)}; the best: {SCORE} {study.best_value:.2%}")
    print(f"plots of the study: {folder}")
    print(f"to train by the best recipe: {command('train')} --config {quoted(best)}")
