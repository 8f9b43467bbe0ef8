"""Where a search is kept: an Optuna study in a database, and what in it counts."""

import contextlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from fmnist_lightning.errors import UserError
from fmnist_lightning.tune.database_url import masked, scrubbed

SEARCH = "search"  # the study's note of what is searched
# A trial whose process has given no sign of life for so long is taken for dead.
HEARTBEAT_SECONDS = 15
GRACE_SECONDS = 120
MAX_RETRIES = 2  # of a trial whose process died: what kills three of them, lack of memory say, would kill a fourth
LOCK_SECONDS = 60  # that a process waits for another one's write to SQLite


class SeededByTrial(BaseSampler):
    """Optuna's TPE, with random numbers that are a function of (seed, the trial's number) alone.

    Numbers are unique in a study, so that processes which share it draw differently, and one that goes on after a kill
    does not draw again what was drawn before.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self.tpe = TPESampler(seed=int(np.random.SeedSequence((self.seed, trial.number)).generate_state(1)[0]))

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.tpe.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self.tpe.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self.tpe.sample_independent(study, trial, param_name, param_distribution)


def open_study(url: str, name: str, sampler: BaseSampler, pruner: optuna.pruners.BasePruner) -> Study:
    """The study of that name in a database; it is made where there is none."""
    # Its log would repeat what the search prints; of heartbeats and figures it says that they are experimental.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    database = optuna.storages.RDBStorage(
        url.replace("{", "{{").replace("}", "}}"),  # Optuna fills templates
        {"connect_args": {"timeout": LOCK_SECONDS}} if url.startswith("sqlite") else None,
        heartbeat_interval=HEARTBEAT_SECONDS,
        grace_period=GRACE_SECONDS,
        heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(MAX_RETRIES),
    )
    return optuna.create_study(
        study_name=name, storage=database, sampler=sampler, pruner=pruner, direction="maximize", load_if_exists=True
    )


def check_same_search(study: Study, search: dict[str, Any], folder: Path) -> None:
    """Note in a new study what is searched. Raises UserError where an old one was begun with something else."""
    search = json.loads(json.dumps(search))
    if SEARCH not in study.user_attrs:
        study.set_user_attr(SEARCH, search)
    before = study.user_attrs[SEARCH]
    names = [name for name in {**before, **search} if before.get(name) != search.get(name)]
    if names:
        found = ", ".join(f"{name} {search.get(name)} instead of {before.get(name)}" for name in names)
        raise UserError(f"{folder} holds a search of another recipe or space: {found}; name another folder, --study")


@contextlib.contextmanager
def explaining_store(url: str, cure: str) -> Iterator[None]:
    """Turn a database's errors into a UserError that names the cure and none of the URL's secrets."""
    try:
        yield
    except Exception as error:
        # Optuna stumbles over some of them, and raises one of its own or Python's.
        cause: BaseException | None = error
        while cause and not isinstance(cause, SQLAlchemyError):
            cause = cause.__cause__ or cause.__context__
        if not cause:
            raise
        reason = scrubbed(str(cause).partition("\n")[0], url)
        raise UserError(f"the study's database {masked(url)} can't be used: {reason}; {cure}") from error


def finished(study: Study) -> list[FrozenTrial]:
    """The trials that count: completed, pruned, or failed by themselves; not those whose process ended under them."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL))
    return [trial for trial in trials if trial.state != TrialState.FAIL or "error" in trial.user_attrs]
