"""What a search leaves: the best recipe, and figures of the study."""

import shlex
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import optuna
import yaml
from matplotlib import pyplot as plt
from optuna.study import Study
from optuna.trial import TrialState
from optuna.visualization import matplotlib as drawing

from fmnist_lightning.data.sources import TITLES
from fmnist_lightning.errors import UserError
from fmnist_lightning.models.pretrained import load_pretrained
from fmnist_lightning.report.plots import mark
from fmnist_lightning.runs.files import atomic_write, remove_staged, write_text
from fmnist_lightning.training.distillation import validation_notice
from fmnist_lightning.tune.space import Plan, suggest_options
from fmnist_lightning.tune.study import finished

BEST = "best.yaml"
PLOTS = "plots"  # a folder
SCORE = "val/accuracy"


def percent(accuracy: float) -> str:
    return f"{100 * accuracy:.2f} per cent"


def described(options: Mapping[str, Any]) -> str:
    """Options in a line, floats to four digits."""
    shown = {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in options.items()}
    return ", ".join(f"{name} {value}" for name, value in shown.items())


def counted(study: Study) -> str:
    """How many trials there are, and what came of them."""
    states = Counter(trial.state for trial in finished(study))
    names = {TrialState.COMPLETE: "completed", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
    return f"{states.total()} trials ({', '.join(f'{states[state]} {name}' for state, name in names.items())})"


def write_best(study: Study, plan: Plan) -> Path:
    """Write the options of the best trial as a recipe. Raises UserError where no trial was completed."""
    path = plan.folder / BEST
    try:
        best = study.best_trial
    except ValueError as error:
        raise UserError(f"no trial was completed, of {counted(study)}: see above why, and change the space") from error
    options = suggest_options(optuna.trial.FixedTrial(best.params), plan.space, plan.options)
    held = {*plan.held, *(name.partition(".")[0] for name in plan.space)}
    notice = teacher_notice(options)
    header = (
        f"The best recipe of a search: python scripts/train.py --config {shlex.quote(str(path))}",
        f"{SCORE} {percent(best.values[0])} with seed {options['seed']}, on {TITLES[options['dataset']]}: "
        f"trial {best.number} ({best.user_attrs['run']}) of {counted(study)}.",
        "The validation cut chose it, so other seeds and images will come to less. The test set was not read.",
        *([f"{notice[0].upper()}{notice[1:]}."] if notice else []),
        plan.command,
    )
    remove_staged(path.parent, path.name)
    recipe = {name: value for name, value in options.items() if name in held}
    write_text(path, "".join(f"# {line}\n" for line in header) + yaml.safe_dump(recipe, sort_keys=False))
    return path


def teacher_notice(options: Mapping[str, Any]) -> str:
    """A warning where a recipe's teacher saw the images that judged it, or ""."""
    if not (source := options["teacher"]):
        return ""
    try:
        card = load_pretrained(source).card
    except UserError:  # it was taken away during the search, which is no reason to lose the result
        return ""
    return validation_notice(source, card, options["val_fraction"])


def history_figure(study: Study) -> Any:
    return drawing.plot_optimization_history(study, target_name=SCORE).figure


def importances_figure(study: Study) -> Any:
    return drawing.plot_param_importances(study, target_name=SCORE).figure


def slice_figure(study: Study) -> Any:
    axes: Any = drawing.plot_slice(study, target_name=SCORE)  # one, or an array of them
    return np.ravel(axes)[0].figure


def curves_figure(study: Study) -> Any:
    axes = drawing.plot_intermediate_values(study)
    axes.set(title="Curves of the trials", xlabel="epoch", ylabel=SCORE)
    axes.legend().remove()  # fifty names
    return axes.figure


FIGURES: dict[str, Callable[[Study], Any]] = {
    "history": history_figure,
    "importances": importances_figure,
    "slice": slice_figure,
    "curves": curves_figure,
}


def draw_study(study: Study, folder: Path, dataset: str) -> Path:
    """Draw the study's figures as PNG files into a folder, and print what Optuna warns of them."""
    remove_staged(folder)
    # Optuna draws by pyplot, and changes its style for good.
    with mpl.rc_context({"backend": "agg"}):
        for name, draw in FIGURES.items():
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                figure = draw(study)
            if dataset != "fashion_mnist":
                mark(figure, TITLES[dataset])
            with atomic_write(folder / f"{name}.png") as file:
                figure.savefig(file, format="png", bbox_inches="tight")
            plt.close(figure)
            for warning in caught:
                print(f"{folder / name}.png: {warning.message}")
    return folder
