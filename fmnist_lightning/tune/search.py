"""The trials of a search: each trains on the training split, and its score is measured on the validation split."""

import contextlib
import json
import math
import os
import re
import shlex
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import lightning as L
import numpy as np
import optuna
import torch
from filelock import FileLock
from lightning.pytorch.callbacks import Callback
from optuna.distributions import distribution_to_json
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import TPESampler
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from fmnist_lightning.errors import Interrupted, UserError
from fmnist_lightning.runs.folders import LOCK
from fmnist_lightning.runs.options import TrainOptions, as_yaml
from fmnist_lightning.training.train import train
from fmnist_lightning.tune.results import (
    COUNTED,
    ERROR,
    PLOTS,
    RUN,
    SCORE,
    draw_study,
    percent,
    trial_counts,
    write_best,
)
from fmnist_lightning.tune.space import Plan, changed, recipe_parameters, suggest

DATABASE = "study.db"
RUNS = "runs"  # the folder of the trials' run folders
# What a study is about, besides its space.
COMPARED = (*TrainOptions.FIXED, "teacher", "teacher_share", "temperature", "max_epochs", "patience", "ckpt")
SEARCH = "search"  # the study's attribute that records it
TRAINS = "trains"  # a trial's attribute: its number, once it trains; a retried trial inherits its predecessor's
# A trial is pruned if it is worse than the median of the completed ones, once five are completed and half of its
# training is done: in the middle of one_cycle a high learning rate looks worse than it ends.
COMPLETED_FIRST = 5
NEVER_PRUNED = 0.5
# A trial whose process has given no sign of life for so long is taken for dead.
HEARTBEAT_SECONDS = 15
GRACE_SECONDS = 120
MAX_RETRIES = 2  # what kills three processes, such as a lack of memory, would kill a fourth
SQLITE_SECONDS = 60  # how long a process waits for another one's write
POLL_SECONDS = 1.0


class TrialLost(BaseException):
    """Another process has ended this trial. Not an Exception: Optuna would try, and fail, to end it again."""


class SeededByTrial(TPESampler):
    """Optuna's TPE, but what it draws is a function of the seed, the trial's number, and the trials before it.

    Processes that share a study draw differently, and a resumed search does not repeat its draws. With TPESampler's own
    seed both would repeat them.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(seed=seed)
        self.seed = seed

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        seed = np.random.SeedSequence((self.seed, trial.number)).generate_state(1)[0]
        super().__init__(seed=int(seed))


class Reporter(Callback):
    """Report each epoch's val/accuracy to the study, and stop the training if the study prunes it."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self.accuracies: list[float] = []
        self.pruned = False

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.trial.set_user_attr(RUN, Path(str(trainer.log_dir)).name)
        self.trial.set_user_attr(TRAINS, self.trial.number)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        epoch = trainer.current_epoch + 1
        self.accuracies.append(float(trainer.callback_metrics[SCORE]))
        self.trial.report(self.accuracies[-1], epoch)
        # After the last epoch nothing is saved by pruning, and a complete trial teaches the sampler more.
        if epoch < (trainer.max_epochs or 0) and self.trial.should_prune():
            self.pruned = trainer.should_stop = True


class Search:
    """One process of a search; others may work on the same study.

    They run `trials` trials together. Each further process can add one, if two begin their last one at the same time.
    """

    def __init__(self, plan: Plan, url: URL) -> None:
        self.plan = plan
        plan.folder.mkdir(parents=True, exist_ok=True)
        # Held while the study is made, and while its results are written.
        self.lock = FileLock(plan.folder / LOCK)
        with self.lock:
            self.study = open_study(url, plan)
            check_same_search(self.study, plan)
            if not self.study.get_trials(deepcopy=False):
                self.queue_recipe()

    def queue_recipe(self) -> None:
        """Make the recipe itself the first trial, unless it lies outside the space."""
        parameters = recipe_parameters(self.plan.space, self.plan.recipe)
        with contextlib.suppress(ValueError):
            trial = optuna.create_trial(
                state=TrialState.WAITING, params=parameters, distributions=self.plan.space, user_attrs={}
            )
            self.study.add_trial(trial)

    def run(self) -> None:
        """Run trials until the study has enough. Raises UserError if none can run, as on a full disk."""
        waiting = False
        while missing := self.missing():
            fail_stale_trials(self.study)
            if missing > self.in_training():
                with contextlib.suppress(TrialLost):
                    self.study.optimize(self.objective, n_trials=1, callbacks=[self.report], gc_after_trial=True)
            else:
                if not waiting:
                    print("waiting for the last trials: other processes run them, or died over them", flush=True)
                waiting = True
                time.sleep(POLL_SECONDS)

    def missing(self) -> int:
        return max(0, self.plan.trials - len(self.study.get_trials(deepcopy=False, states=COUNTED)))

    def in_training(self) -> int:
        """How many trials other processes are training.

        Not those that were killed before they trained: without a heartbeat they stay in state RUNNING forever.
        """
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return sum(trial.user_attrs.get(TRAINS) == trial.number for trial in running)

    def objective(self, trial: Trial) -> float:
        """Train by what the trial suggests; return val/accuracy of the checkpoint that a test would take."""
        parameters = suggest(trial, self.plan.space)
        shown = (
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in parameters.items()
        )
        print(f"\ntrial {trial.number}: {', '.join(shown)}", flush=True)
        reporter = Reporter(trial)
        try:
            options = changed(self.plan.recipe, parameters, f"trial {trial.number}")
            # Whatever the recipe says, a search reads no test set.
            options = replace(
                options, test=False, resume=None, fast_dev_run=False, log_dir=str(self.plan.folder / RUNS)
            )
            train(options, callbacks=[reporter])
        except Interrupted:
            self.study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
            self.study.enqueue_trial(parameters)
            raise
        except (UserError, torch.OutOfMemoryError) as error:
            if isinstance(error.__cause__, OSError):  # a full disk is no trial's fault
                raise
            trial.set_user_attr(ERROR, str(error))
            # It counts, and the sampler avoids such options; of failed trials it would learn nothing.
            raise optuna.TrialPruned from error
        except UpdateFinishedTrialError:
            reporter.pruned = False
        if self.study.get_trials(deepcopy=False)[trial.number].state != TrialState.RUNNING:
            print("another process took this trial for dead and queued it again: was this machine asleep?")
            raise TrialLost
        if reporter.pruned:
            raise optuna.TrialPruned
        return max(reporter.accuracies) if options.ckpt == "best" else reporter.accuracies[-1]

    def report(self, study: Study, trial: FrozenTrial) -> None:
        """Print the result of a trial, and write the best recipe so far."""
        if trial.state == TrialState.COMPLETE:
            with self.lock:
                write_best(study, self.plan)
            result = f"{SCORE} {percent(trial.values[0])}"
        else:
            result = trial.user_attrs.get(ERROR, "pruned")
        print(f"trial {trial.number}: {result}; {self.missing()} to go", flush=True)

    def write_results(self) -> None:
        """Write the best recipe and the plots. Each process that ends does so."""
        with self.lock:
            best = write_best(self.study, self.plan)
            plots = draw_study(self.study, self.plan.folder / PLOTS, self.plan.recipe.dataset)
        print(f"\n{trial_counts(self.study)}; the best: {SCORE} {percent(self.study.best_value)}")
        print(f"plots of the study: {plots}")
        print(f"to train by the best recipe: python scripts/train.py --config {shlex.quote(str(best))}")


def open_study(url: URL, plan: Plan) -> Study:
    """The study in its database; it is made if there is none."""
    # Optuna's log would repeat what the search prints, and it warns that heartbeats are experimental.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    storage = RDBStorage(
        url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}"),  # Optuna fills templates
        {"connect_args": {"timeout": SQLITE_SECONDS}} if url.get_backend_name() == "sqlite" else None,
        heartbeat_interval=HEARTBEAT_SECONDS,
        grace_period=GRACE_SECONDS,
        heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(MAX_RETRIES),
    )
    pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
    # At the same epoch a longer training is worse than a shorter one, above all under one_cycle.
    if plan.prune and "max_epochs" not in plan.space:
        warmup = math.ceil(NEVER_PRUNED * plan.recipe.max_epochs)
        pruner = optuna.pruners.MedianPruner(COMPLETED_FIRST, n_warmup_steps=warmup)
    return optuna.create_study(
        study_name=plan.study_name,
        storage=storage,
        sampler=SeededByTrial(plan.sampler_seed),
        pruner=pruner,
        direction="maximize",
        load_if_exists=True,
    )


def check_same_search(study: Study, plan: Plan) -> None:
    """Record in a new study what it searches. Raises UserError if an old one searches something else."""
    options = as_yaml(plan.recipe)
    search = {name: options[name] for name in COMPARED}
    search |= {f"{name} (space)": json.loads(distribution_to_json(values)) for name, values in plan.space.items()}
    if SEARCH not in study.user_attrs:
        study.set_user_attr(SEARCH, search)
    before = study.user_attrs[SEARCH]
    if names := [name for name in {**before, **search} if before.get(name) != search.get(name)]:
        found = ", ".join(f"{name} {search.get(name)} instead of {before.get(name)}" for name in names)
        raise UserError(
            f"cannot resume the search in {plan.folder}: its recipe or space was another, with {found} (name another "
            "folder with --study)"
        )


def database_url(folder: Path, storage: str | None) -> URL:
    """The URL of the folder's own database, or `storage` with the environment's values for `$NAME`.

    Raises UserError, which shows no password, if it is no URL or one of a database that can't be used.
    """
    if storage is None:
        return URL.create("sqlite", database=str((folder / DATABASE).resolve()))
    if lacking := [name for name in re.findall(r"\$\{?(\w+)", storage) if name not in os.environ]:
        raise UserError(f"cannot use --storage: the environment lacks {', '.join(lacking)} (write %24 for a plain $)")
    try:
        url = make_url(os.path.expandvars(storage))
        url.get_dialect().import_dbapi()
    except ImportError as error:
        raise UserError(f"cannot use --storage: {error} (install the package)") from error
    except (ArgumentError, ValueError):
        raise UserError(
            "cannot use --storage: it is no database's URL (expected DIALECT://USER:PASSWORD@HOST/DATABASE, with %40 "
            "for an @ in the password)"
        ) from None
    return url


def without_secrets(storage: str) -> str:
    """`storage` for people to read: the password is `***` unless it is a `$NAME`; so are the values after `?`."""
    url = make_url(storage)
    named = re.fullmatch(r"\$(\w+|\{\w+\})", url.password or "")
    shown = storage.partition("?")[0] if named else url.set(query={}).render_as_string(hide_password=True)
    return f"{shown}?***" if url.query else shown


@contextlib.contextmanager
def explaining_database(url: URL, hint: str) -> Iterator[None]:
    """Turn a database's errors into a UserError without the URL's secrets."""
    try:
        yield
    except Exception as error:
        # Optuna stumbles over some of them and raises errors of its own or Python's.
        cause: BaseException | None = error
        while cause and not isinstance(cause, SQLAlchemyError):
            cause = cause.__cause__ or cause.__context__
        if not cause:
            raise
        reason = str(cause).partition("\n")[0]
        for secret in (url.password, *url.query.values()):
            for form in (secret, quote(str(secret), safe="")):
                reason = reason.replace(str(form), "***") if secret else reason
        raise UserError(f"cannot use the study's database: {reason} ({hint})") from error
