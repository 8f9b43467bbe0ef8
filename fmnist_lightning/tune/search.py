"""The search itself: trials, each a training on the validation cut, until all processes have enough."""

import math
import time
from pathlib import Path
from typing import Any

import lightning as L
import optuna
import torch
from filelock import FileLock
from lightning.pytorch.callbacks import Callback
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from fmnist_lightning.errors import Interrupted, UserError
from fmnist_lightning.runs.folders import FIXED_OPTIONS, LOCK
from fmnist_lightning.training.train import train_with
from fmnist_lightning.tune.results import SCORE, described, percent, write_best
from fmnist_lightning.tune.space import Plan, suggest_options, trial_of
from fmnist_lightning.tune.study import GRACE_SECONDS, SeededByTrial, check_same_search, finished, open_study

# What can't change while a search goes on, beside the space.
COMPARED = (*FIXED_OPTIONS, "teacher", "teacher_share", "temperature", "max_epochs", "patience", "ckpt")
RUNS = "runs"  # the folder of the trials' run folders
# A trial is stopped where it is worse than the median of the completed ones at its epoch, once there are so many and
# it has had so much of its training: in the middle of one_cycle a high learning rate looks worse than it ends.
COMPLETED_FIRST = 5
NEVER_PRUNED = 0.5
POLL_SECONDS = 1.0
BEGUN = "begun"  # the attribute of a trial that its process has begun: its number
# What the search sets in every trial, whatever the recipe says: above all, the test set stays shut.
SHUT: dict[str, Any] = {"test": False, "resume": None, "fast_dev_run": False}


def begun(trial: FrozenTrial) -> bool:
    """Whether a process has begun it. One that is queued anew has the attributes of the trial that was lost."""
    return trial.user_attrs.get(BEGUN) == trial.number


class TrialFailed(Exception):  # noqa: N818  what Optuna calls it
    """The trial's own fault: the search goes on."""


class TrialLost(BaseException):
    """Another process has ended the trial. No Exception, as Optuna would try to end it once more, and can't."""


class Reporter(Callback):
    """Tells the study of each epoch's val/accuracy, and stops the training where the study prunes it."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self.accuracies: list[float] = []
        self.pruned = False

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.trial.set_user_attr("run", Path(str(trainer.log_dir)).name)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        epoch = trainer.current_epoch + 1
        self.accuracies.append(float(trainer.callback_metrics[SCORE]))
        self.trial.report(self.accuracies[-1], epoch)
        # Behind the last epoch there is nothing to save, and a complete trial teaches more.
        if epoch < (trainer.max_epochs or 0) and self.trial.should_prune():
            self.pruned = trainer.should_stop = True


def folders_lock(folder: Path) -> FileLock:
    """The lock of a study's folder, which is made. Raises UserError where it can't be written."""
    lock = FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock:
            return lock
    except OSError as error:
        raise UserError(
            f"--study {folder} can't be written ({error.strerror}): name another folder, or make it writable"
        ) from error


class Search:
    """A search in this process; others may be at the same study.

    Processes that share the folder run exactly `trials` trials together. A machine that shares the database alone can
    begin one at the same moment as another, so each further machine can add one.
    """

    def __init__(self, plan: Plan, url: str) -> None:
        self.plan = plan
        self.options = {**plan.options, **SHUT, "log_dir": str(plan.folder / RUNS)}
        # Held while the study is made, and from the count of trials until the next one is among them.
        self.claim = folders_lock(plan.folder)
        self.silent: dict[int, float] = {}  # when a running trial was first seen that no process has begun
        with self.claim:
            self.study = open_study(url, plan.study_name, SeededByTrial(plan.sampler_seed), self.pruner())
            compared = {name: plan.options[name] for name in COMPARED}
            space = {f"{name} (space)": values.record() for name, values in plan.space.items()}
            check_same_search(self.study, {**compared, **space}, plan.folder)
            # The recipe itself comes first, where the space has room for it: what is found is no worse on these images.
            recipe = trial_of(plan.space, plan.options)
            if recipe and not self.study.get_trials(deepcopy=False):
                self.study.enqueue_trial(recipe)

    def pruner(self) -> optuna.pruners.BasePruner:
        # At the same epoch a longer training is behind a shorter one, above all under one_cycle.
        if not self.plan.prune or "max_epochs" in self.plan.space:
            return optuna.pruners.NopPruner()
        first = math.ceil(NEVER_PRUNED * self.plan.options["max_epochs"])
        return optuna.pruners.MedianPruner(COMPLETED_FIRST, n_warmup_steps=first)

    def run(self) -> None:
        """Run trials until the study has as many as were asked for.

        Raises UserError where none can be run, the disk being full, say; Interrupted at a signal.
        """
        waiting = False
        while self.missing():
            if self.run_trial():
                waiting = False
                continue
            if not waiting:
                print("waiting for the last trials, which other processes run or died over", flush=True)
            waiting = True
            time.sleep(POLL_SECONDS)

    def missing(self) -> int:
        return max(0, self.plan.trials - len(finished(self.study)))

    def run_trial(self) -> bool:
        """Run one trial, unless those that are under way are all that is missing."""
        with self.claim:
            self.give_up_dead()
            running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            if self.missing() <= len(running):
                return False
            try:
                self.study.optimize(
                    self.objective, n_trials=1, catch=(TrialFailed,), callbacks=[self.tell], gc_after_trial=True
                )
            except TrialLost:
                print("another process took this one for dead and queued its trial anew: was the machine asleep?")
        return True

    def give_up_dead(self) -> None:
        """End the trials whose process died, and queue them anew."""
        optuna.storages.fail_stale_trials(self.study)
        # A process that was killed just behind its claim gave no first sign of life, and did not mark its trial.
        now = time.monotonic()
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        self.silent = {trial.number: self.silent.get(trial.number, now) for trial in running if not begun(trial)}
        for number, since in self.silent.items():
            if now - since > GRACE_SECONDS:
                self.study.tell(number, state=TrialState.FAIL, skip_if_finished=True)
                if params := self.study.trials[number].params:  # of one that was queued anew
                    self.study.enqueue_trial(params)

    def objective(self, trial: Trial) -> float:
        """val/accuracy of the checkpoint that a training by what the trial suggests would test."""
        trial.set_user_attr(BEGUN, trial.number)
        self.claim.release()  # from now on the others count this trial
        reporter = Reporter(trial)
        try:
            options = suggest_options(trial, self.plan.space, self.options)
            print(f"\ntrial {trial.number}: {described(trial.params)}", flush=True)
            train_with(options, [reporter])
        except Interrupted:
            self.study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
            self.study.enqueue_trial(trial.params)
            raise
        except (UserError, torch.OutOfMemoryError) as error:
            if isinstance(error.__cause__, OSError):  # a full disk is no trial's fault
                raise
            trial.set_user_attr("error", str(error))
            raise TrialFailed(str(error)) from error
        except optuna.exceptions.UpdateFinishedTrialError:
            raise TrialLost from None
        if reporter.pruned:
            raise optuna.TrialPruned
        if self.study.get_trials(deepcopy=False)[trial.number].state != TrialState.RUNNING:
            raise TrialLost
        return max(reporter.accuracies) if options["ckpt"] == "best" else reporter.accuracies[-1]

    def tell(self, study: Study, trial: FrozenTrial) -> None:
        """Print what a trial came to, and keep the best recipe so far."""
        if trial.state == TrialState.COMPLETE:
            with self.claim:
                write_best(study, self.plan)
            outcome = f"{SCORE} {percent(trial.values[0])}"
        else:
            outcome = trial.user_attrs.get("error", "pruned")
        print(f"trial {trial.number}: {outcome}; {self.missing()} to go", flush=True)
