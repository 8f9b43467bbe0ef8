"""The study in its database, and its trials: trainings whose score is val/accuracy."""

import contextlib
import json
import math
import os
import re
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import optuna
import torch
from filelock import FileLock
from lightning.pytorch.callbacks import Callback
from optuna.distributions import distribution_to_json
from optuna.exceptions import ExperimentalWarning, TrialPruned, UpdateFinishedTrialError
from optuna.pruners import MedianPruner, NopPruner
from optuna.samplers import TPESampler
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.storages._rdb.models import TrialHeartbeatModel
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import URL, func, make_url, update
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from fmnist_lightning.errors import Interrupted, UserError, WriteError
from fmnist_lightning.runs.files import make_folder
from fmnist_lightning.runs.folders import LOCK
from fmnist_lightning.runs.options import TrainOptions, TuneOptions, as_yaml
from fmnist_lightning.training.train import train
from fmnist_lightning.tune.results import COUNTED, ERROR, RUN, SCORE, write_best, write_results
from fmnist_lightning.tune.space import Plan, changed, label, suggest, value_of

# Attributes: of a study, what it searches; of a trial, its number from the start of its training. A retried trial
# inherits its predecessor's.
SEARCH, TRAINS = "search", "trains"
COMPLETED_FIRST = 5  # trials before one can be pruned
HEARTBEAT_SECONDS = 15
GRACE_SECONDS = 120  # after which a trial without a sign of life is run again
MAX_RETRIES = 2  # what kills three processes, such as a lack of memory, would kill a fourth
POLL_SECONDS = 1.0


class TrialLost(BaseException):
    """Another process has ended this trial. Not an Exception: Optuna would try to end it again, and fail."""


class SeededByTrial(TPESampler):
    """Optuna's TPE, seeded by trial: else processes would draw the same, and a resumed search would repeat draws."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed=seed)
        self.seed = seed

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        super().__init__(seed=int(np.random.SeedSequence((self.seed, trial.number)).generate_state(1)[0]))


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
        # After the last epoch pruning saves nothing, and a complete trial teaches the sampler more.
        if epoch < (trainer.max_epochs or 0) and self.trial.should_prune():
            self.pruned = trainer.should_stop = True


class Search:
    """One process of a search. Each further one that works on the same study can add a trial too many."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        make_folder(plan.folder)
        self.lock = FileLock(plan.folder / LOCK)  # held while a process makes the study or writes files
        with self.lock:
            self.study = open_study(plan)
            check_same_search(self.study, plan)
            if not self.study.get_trials(deepcopy=False):
                # The recipe itself comes first. An error means that it lies outside the space.
                with contextlib.suppress(UserError, ValueError):
                    parameters = {name: label(value_of(plan.recipe, name)) for name in plan.space}
                    first = optuna.create_trial(state=TrialState.WAITING, params=parameters, distributions=plan.space)
                    self.study.add_trial(first)

    def run(self) -> None:
        """Run trials until the study has enough. Raises UserError if none can run, as on a full disk."""
        while self.missing():
            if self.missing() > self.in_training():
                with contextlib.suppress(TrialLost):
                    self.study.optimize(self.objective, n_trials=1, callbacks=[self.report], gc_after_trial=True)
                continue
            print("waiting for the last trials, which other processes run or were killed in", flush=True)
            while self.missing() and self.missing() <= self.in_training():
                time.sleep(POLL_SECONDS)
        with self.lock:  # each process that ends does this
            write_results(self.study, self.plan)

    def missing(self) -> int:
        return max(0, self.plan.options.trials - len(self.study.get_trials(deepcopy=False, states=COUNTED)))

    def in_training(self) -> int:
        """How many trials are training; a trial whose process was killed before that stays in state RUNNING forever."""
        fail_stale_trials(self.study)
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return sum(trial.user_attrs.get(TRAINS) == trial.number for trial in running)

    def objective(self, trial: Trial) -> float:
        """Train by what the trial suggests; return val/accuracy of the checkpoint that a test would take."""
        parameters = suggest(trial, self.plan.space)
        print(f"\ntrial {trial.number}: {parameters}", flush=True)
        reporter = Reporter(trial)
        # Whatever the recipe says, a search reads no test set.
        always: dict[str, Any] = {"test": False, "resume": None, "fast_dev_run": False}
        recipe = replace(self.plan.recipe, **always, log_dir=str(self.plan.folder / "runs"))
        try:
            options = changed(recipe, parameters, f"trial {trial.number}")
            train(options, callbacks=[reporter])
        except Interrupted:
            self.study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
            self.study.enqueue_trial(parameters)
            raise
        except WriteError as error:  # a full disk is no trial's fault, and a trial is not resumed
            raise WriteError(error.path, error.error) from error
        except (UserError, torch.OutOfMemoryError) as error:
            if isinstance(error.__cause__, OSError):  # neither is a file that can't be read
                raise
            trial.set_user_attr(ERROR, str(error))
            # The sampler avoids what was pruned; it would ignore a failed trial.
            raise TrialPruned from error
        except UpdateFinishedTrialError:
            pass
        if self.study.get_trials(deepcopy=False)[trial.number].state != TrialState.RUNNING:
            print("another process took this trial for dead and queued it again: was this machine asleep?")
            raise TrialLost
        if reporter.pruned:
            raise TrialPruned
        return max(reporter.accuracies) if options.ckpt == "best" else reporter.accuracies[-1]

    def report(self, study: Study, trial: FrozenTrial) -> None:
        """Print the result of a trial, and write the best recipe so far."""
        result = trial.user_attrs.get(ERROR, "pruned")
        if trial.state == TrialState.COMPLETE:
            result = f"{SCORE} {trial.values[0]:.2%}"
            with self.lock:
                write_best(study, self.plan)
        print(f"trial {trial.number}: {result}; {self.missing()} to go", flush=True)


def open_study(plan: Plan) -> Study:
    """The study in its database; it is made if there is none."""
    # Optuna's log would repeat what the search prints, and it warns that heartbeats are experimental.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=ExperimentalWarning)
    storage = RDBStorage(
        plan.url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}"),  # Optuna fills templates
        # A process waits so many seconds for another one's write.
        {"connect_args": {"timeout": 60}} if plan.url.get_backend_name() == "sqlite" else None,
        heartbeat_interval=HEARTBEAT_SECONDS,
        grace_period=GRACE_SECONDS,
        heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(MAX_RETRIES),
    )
    end_future_heartbeats(storage)
    # In the middle of one_cycle a high learning rate looks worse than it ends.
    warmup = math.ceil(plan.recipe.max_epochs / 2)
    # At the same epoch a longer training is worse than a shorter one, above all under one_cycle.
    prune = plan.options.prune and "max_epochs" not in plan.space
    return optuna.create_study(
        # A folder can be moved with its own database. In a shared one its name identifies the study.
        study_name=plan.folder.resolve().name if plan.options.storage else "study",
        storage=storage,
        sampler=SeededByTrial(plan.options.sampler_seed),
        pruner=MedianPruner(COMPLETED_FIRST, n_warmup_steps=warmup) if prune else NopPruner(),
        direction="maximize",
        load_if_exists=True,
    )


def end_future_heartbeats(storage: RDBStorage) -> None:
    """Let the trial of a killed process be found dead although the database's clock was set back since.

    Optuna would take it for alive until the clock reaches its last sign of life again.
    """
    beats = TrialHeartbeatModel
    with storage.engine.begin() as connection:
        connection.execute(update(beats).where(beats.heartbeat > func.now()).values(heartbeat=func.now()))


def check_same_search(study: Study, plan: Plan) -> None:
    """Record in a new study what it searches. Raises UserError if an old one searches something else."""
    compared = (*TrainOptions.FIXED, "teacher", "teacher_share", "temperature", "max_epochs", "patience", "ckpt")
    search = {name: as_yaml(plan.recipe)[name] for name in compared}
    search |= {f"{name} (space)": json.loads(distribution_to_json(values)) for name, values in plan.space.items()}
    if SEARCH not in study.user_attrs:
        study.set_user_attr(SEARCH, search)
    before = study.user_attrs[SEARCH]
    names = [name for name in {**before, **search} if before.get(name) != search.get(name)]
    if names:
        found = ", ".join(f"{name} {search.get(name)} instead of {before.get(name)}" for name in names)
        raise UserError(f"cannot search in {plan.folder}: its study is another, as {found} (name another --study)")


def database_url(options: TuneOptions) -> URL:
    """The URL of the folder's own database, or `storage` with the environment's values for `$NAME`.

    Raises UserError, which shows no password, if it is no URL, or this machine can't use such a database.
    """
    if options.storage is None:
        return URL.create("sqlite", database=str(Path(options.study, "study.db").resolve()))
    if missing := [name for name in re.findall(r"\$\{?(\w+)", options.storage) if name not in os.environ]:
        raise UserError(f"cannot use --storage: the environment lacks {', '.join(missing)} (write %24 for a plain $)")
    try:
        # Names are replaced in its parts, so that a password may hold any character.
        url = make_url(options.storage if "://" in options.storage else os.path.expandvars(options.storage))
        parts = {part: getattr(url, part) for part in ("username", "password", "host", "database")}
        url = url.set(**{part: os.path.expandvars(value) for part, value in parts.items() if value})
        url.get_dialect().import_dbapi()
    except ImportError as error:
        raise UserError(f"cannot use --storage: {error} (install it)") from None
    except (ArgumentError, ValueError):  # their messages may show the password
        expected = "DIALECT://USER:PASSWORD@HOST/DATABASE, with %40 for an @ in the password"
        raise UserError(f"cannot use --storage: it is no database's URL (expected {expected})") from None
    return url


def without_secrets(storage: str | None) -> str | None:
    """`storage` to show: `***` for a password, unless `$NAME` stands for it, and for what follows `?`."""
    if storage is None:
        return None
    hidden = re.sub(r"(://[^:/]*:)(?!\$(?:\w+|\{\w+\})@)[^@]*@", r"\1***@", storage)
    return re.sub(r"\?.*", "?***", hidden, flags=re.DOTALL)


@contextlib.contextmanager
def explaining_database(plan: Plan) -> Iterator[None]:
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
        for secret in (plan.url.password, *plan.url.query.values()):
            reason = reason.replace(str(secret or "\n"), "***")
        raise UserError(f"cannot use the study's database: {reason} (to resume later: {plan.command})") from error
