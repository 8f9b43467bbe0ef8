"""A search that is stopped or killed, and what it draws when it goes on; processes that share one."""

import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import torch
from conftest import Program
from optuna.trial import TrialState
from several import torchrun_environment
from test_tuning import (
    RATES,
    arguments,
    figures,
    folder,
    no_lasting_filters,
    rates_tried,
    states,
    study_in,
    train_by,
    undrawn_study,
)

from fmnist_lightning import cli
from fmnist_lightning.data import drawn
from fmnist_lightning.report.tensorboard import Pictures
from fmnist_lightning.training.module import Classifier
from fmnist_lightning.tune import results as search_results
from fmnist_lightning.tune import search as searching
from fmnist_lightning.tune import study as study_store
from fmnist_lightning.tune.study import SeededByTrial, finished
from fmnist_lightning.tune.tune import tune

pytestmark = pytest.mark.usefixtures("small_drawn")
__all__ = ["figures", "folder", "no_lasting_filters", "train_by", "undrawn_study"]  # fixtures


def test_after_ctrl_c_the_printed_command_goes_on_with_the_same_trials(
    program: Program, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, done = Classifier.training_step, []

    def interrupting_step(self: Classifier, batch: Any, batch_idx: int) -> torch.Tensor:
        done.append(batch_idx)
        if len(done) == 12:  # of 9 in a trial
            signal.raise_signal(signal.SIGINT)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", interrupting_step)
    status, output = program(tune, *arguments(folder, RATES, 3))
    assert status == 130, output
    assert states(folder) == ["COMPLETE", "FAIL", "WAITING"]
    advice = output.splitlines()[-1]
    assert advice.startswith("to go on: python scripts/tune.py --recipe")
    status, output = program(tune, *advice.partition("tune.py ")[2].split())
    assert status == 0, output
    assert states(folder) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    rates = rates_tried(folder)
    assert rates[2] == rates[1]
    assert len(set(rates)) == 3


def search_process(folder: Path, name: str, command: list[str], grace: float) -> None:
    """What scripts/tune.py does, with what the fixtures do for this process; dead trials are found after `grace` s."""
    descriptor = os.open(folder.parent / f"{name}.txt", os.O_WRONLY | os.O_CREAT)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(descriptor, stream.fileno())
    torch.set_num_threads(1)
    drawn.PER_CLASS.update(train=60, test=20)
    Pictures.draw_validation = lambda *_: None  # type: ignore[method-assign]
    search_results.FIGURES.clear()
    study_store.HEARTBEAT_SECONDS, study_store.GRACE_SECONDS, searching.GRACE_SECONDS = 1, grace, grace
    sys.argv = ["tune.py", *command]
    (folder.parent / f"{name}.ready").touch()
    while not (folder.parent / "go").exists():
        time.sleep(0.01)
    sys.exit(cli.run(tune))


def start(folder: Path, name: str, command: list[object], grace: float = 60) -> BaseProcess:
    # Forks of a process that has imported all: a search starts in a tenth of a second.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tools.torturing", "fmnist_lightning.tune.search"])
    process = context.Process(target=search_process, args=(folder, name, [*map(str, command)], grace))
    process.start()
    return process


def wait_for(path: Path, process: BaseProcess) -> None:
    while process.is_alive() and not path.exists():
        time.sleep(0.01)
    assert process.is_alive()


def test_a_killed_search_goes_on_by_the_same_command_and_loses_no_trial(folder: Path) -> None:
    command = arguments(folder, RATES, 3, max_epochs=5)
    (folder.parent / "go").touch()
    process = start(folder, "killed", command, grace=2)
    wait_for(folder / "runs" / "version_1" / "checkpoints" / "last.ckpt", process)
    process.kill()
    process.join()
    assert states(folder) == ["COMPLETE", "RUNNING"]
    process = start(folder, "again", command, grace=2)
    process.join()
    assert process.exitcode == 0, (folder.parent / "again.txt").read_text()
    assert states(folder).count("RUNNING") == states(folder).count("WAITING") == 0
    assert len(finished(study_in(folder))) == 3
    lost = study_in(folder).trials[1]
    assert lost.state == TrialState.FAIL
    assert [trial.params for trial in finished(study_in(folder))].count(lost.params) == 1


def test_two_processes_share_a_study_and_run_so_many_trials_together(folder: Path) -> None:
    command = arguments(folder, RATES, 5)
    processes = [start(folder, name, command) for name in ("first", "second")]
    for name, process in zip(("first", "second"), processes, strict=True):
        wait_for(folder.parent / f"{name}.ready", process)
    (folder.parent / "go").touch()
    for process in processes:
        process.join()
    outputs = [(folder.parent / f"{name}.txt").read_text() for name in ("first", "second")]
    assert [process.exitcode for process in processes] == [0, 0], outputs
    assert states(folder) == ["COMPLETE"] * 5
    assert len(set(rates_tried(folder))) == 5
    trials = [set(re.findall(r"trial (\d+): val/accuracy", output)) for output in outputs]
    assert trials[0] | trials[1] == {"0", "1", "2", "3", "4"}
    assert not trials[0] & trials[1]
    assert all(trials)
    assert all("5 trials (5 completed, 0 pruned, 0 failed)" in output for output in outputs)


@pytest.mark.parametrize(
    ("recipe", "environment"),
    [({"devices": 2}, {}), ({"num_nodes": 2}, {}), ({}, torchrun_environment(0, 1, 12345))],
)
def test_a_trial_of_several_processes_is_refused(
    program: Program,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    recipe: dict[str, Any],
    environment: dict[str, str],
) -> None:
    """Each process would draw a trial of its own, and average its gradients with those of the others."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cli, "end_with_parent", lambda: None)
    status, output = program(tune, *arguments(folder, RATES, 1, **recipe))
    assert status == 1
    assert "a trial is one process: take one device" in output
    assert not folder.exists()


def test_the_last_trial_where_another_process_is_at_it_is_waited_for_and_not_run_twice(
    program: Program, folder: Path, monkeypatch: pytest.MonkeyPatch, train_by: Callable[..., None]
) -> None:
    train_by()
    assert program(tune, *arguments(folder, RATES, 1))[0] == 0
    others = study_in(folder).ask()
    clock = SimpleNamespace(monotonic=lambda: 0.0, sleep=lambda _: study_in(folder).tell(others.number, 0.0))
    monkeypatch.setattr(searching, "time", clock)
    status, output = program(tune, *arguments(folder, RATES, 2))
    assert status == 0, output
    assert "waiting for the last trials" in output
    assert states(folder) == ["COMPLETE", "COMPLETE"]


def test_a_trial_whose_process_was_killed_before_its_first_sign_of_life_is_given_up(
    program: Program, folder: Path, monkeypatch: pytest.MonkeyPatch, train_by: Callable[..., None]
) -> None:
    train_by()
    assert program(tune, *arguments(folder, RATES, 1))[0] == 0
    study_in(folder).ask()
    clock = [0.0]
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        assert states(folder) == ["COMPLETE", "RUNNING"]
        clock[0] += searching.GRACE_SECONDS - 1

    monkeypatch.setattr(searching, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep))
    status, output = program(tune, *arguments(folder, RATES, 2))
    assert status == 0, output
    assert len(waited) == 2
    assert output.count("waiting for the last trials") == 1
    assert states(folder) == ["COMPLETE", "FAIL", "COMPLETE"]


def test_a_trial_that_was_queued_anew_and_lost_its_process_at_once_is_tried_again(
    program: Program, folder: Path, monkeypatch: pytest.MonkeyPatch, train_by: Callable[..., None]
) -> None:
    """It has options and marks from the beginning, those of the trial that was lost."""
    train_by()
    assert program(tune, *arguments(folder, RATES, 1))[0] == 0
    study = study_in(folder)
    lost = {"params": {"lr": 5e-3}, "distributions": study.trials[0].distributions, "user_attrs": {"begun": 0}}
    study.add_trial(optuna.create_trial(state=TrialState.WAITING, **lost))
    assert study.ask().params == {"lr": 5e-3}
    clock = [0.0]

    def sleep(_: float) -> None:
        clock[0] += searching.GRACE_SECONDS
        assert clock[0] < 5 * searching.GRACE_SECONDS, "it is waited for, for ever"

    monkeypatch.setattr(searching, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep))
    status, output = program(tune, *arguments(folder, RATES, 2))
    assert status == 0, output
    assert states(folder) == ["COMPLETE", "FAIL", "COMPLETE"]
    assert rates_tried(folder)[1:] == [5e-3, 5e-3]


def suggested(seed: int, trials: int, parts: int = 1) -> list[float]:
    """What a sampler of this seed suggests, anew in each of so many parts of the search."""
    study = optuna.create_study()
    for _ in range(parts):
        study.sampler = SeededByTrial(seed)
        study.optimize(lambda trial: trial.suggest_float("lr", 0, 1), trials // parts)
    return [trial.params["lr"] for trial in study.trials]


def test_a_search_that_is_begun_again_tries_what_it_would_have_tried() -> None:
    whole = suggested(0, 24)
    assert suggested(0, 24, parts=3) == whole
    assert len(set(whole)) == 24
    assert not set(whole) & set(suggested(1, 24))


def test_after_ten_trials_the_sampler_looks_where_it_was_good() -> None:
    rates = suggested(0, 40)  # the lower, the better
    assert sum(rates[20:]) / 20 < 0.5 * sum(rates[:10]) / 10


def test_a_study_is_not_mixed_with_another_recipe_or_space(
    program: Program, folder: Path, train_by: Callable[..., None]
) -> None:
    train_by()
    assert program(tune, *arguments(folder, RATES, 1))[0] == 0
    other_space = {"lr": {"low": 1e-4, "high": 1e-1, "log": True}}
    for space, recipe, words in (
        (RATES, {"batch_size": 30}, "batch_size 30 instead of 60"),
        (RATES, {"seed": 1}, "seed 1 instead of 0"),
        (other_space, {}, "lr (space) ['range', 0.0001, 0.1, None, True] instead of"),
    ):
        status, output = program(tune, *arguments(folder, space, 2, **recipe))
        assert status == 1
        assert words in output
        assert "--study" in output
    moved = folder.rename(folder.parent / "moved")
    assert program(tune, *arguments(moved, RATES, 2, accelerator="auto"))[0] == 0
    assert states(moved) == ["COMPLETE", "COMPLETE"]
