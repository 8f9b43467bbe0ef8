"""Run folders, `lightning_logs/version_N/`, and the files in them."""

import contextlib
import errno
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from fmnist_lightning.cli.recipes import read_yaml
from fmnist_lightning.cli.shell import command, quoted
from fmnist_lightning.errors import UserError, WriteError, full_path, missing, printable
from fmnist_lightning.runs.files import locked, write_text, writing

CONFIG = "config.yaml"
OWN = "own"  # in CONFIG: which own objects were given
METRICS = "metrics.json"
HISTORY = "metrics.csv"  # a row per epoch
LOGGERS = "loggers.json"  # ids of the run in W&B and MLflow
PREDICTIONS = "predictions.npz"
REPORT = "report.html"
REPORT_PICTURES = "report"  # a folder
CHECKPOINTS = "checkpoints"
HPARAMS = "hparams.yaml"
LAST = "last.ckpt"
LOCK = ".lock"
TEST_LOCK = ".test.lock"
WRITE_ERRORS = (
    errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOENT, errno.ENOSPC, errno.EPERM, errno.EROFS,
)  # fmt: skip
VERSION = re.compile(r"version_(\d+)")
URL = re.compile(r"data:|[\w+.-]{2,}:/")  # as a Path, which has no //; C:/ is a drive


def numbered_runs(log_dir: Path) -> dict[int, Path]:
    """The run folders in `log_dir` by number."""
    matches = ((VERSION.fullmatch(path.name), path) for path in log_dir.glob("version_*") if path.is_dir())
    return {int(match[1]): path for match, path in matches if match}


def new_run(log_dir: Path) -> Path:
    """Make the next run folder. Runs that start at the same time get different numbers.

    Raises UserError if it or `log_dir` can't be made, or Lightning would take `log_dir` for a URL.
    """
    if URL.match(str(log_dir)):
        raise UserError(f"cannot use --log_dir {printable(str(log_dir))}: it is a URL (name a folder of this machine)")
    try:
        log_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {log_dir}: {error.strerror} (name another folder with --log_dir)") from error
    number = max(numbered_runs(log_dir), default=-1) + 1
    while True:
        run = log_dir / f"version_{number}"
        with writing(run), contextlib.suppress(FileExistsError):
            run.mkdir()
            return run
        number += 1


def find_run(run: str, log_dir: Path) -> Path:
    """The folder that `run` names: a path, or `last` for the run with the highest number in `log_dir`.

    Raises UserError if it holds no run.
    """
    if run == "last":
        runs = {number: path for number, path in numbered_runs(log_dir).items() if (path / CONFIG).is_file()}
        if runs:
            return runs[max(runs)]
        reason = f"{full_path(log_dir)} holds none" if log_dir.exists() else missing(log_dir)
        raise UserError(f"cannot find a run: {reason} (train first: {command('train')}, or name a run folder)")
    folder = Path(run)
    if not folder.exists():
        raise UserError(f"cannot find the run: {missing(folder)} (name a run folder)")
    if not (folder / CONFIG).is_file():
        hint = "wait, its training has just begun" if is_training(folder) else "name a run folder"
        raise UserError(f"cannot use {full_path(folder)} as a run: it has no {CONFIG}{runs_in(folder)} ({hint})")
    return folder


def runs_in(folder: Path) -> str:
    """Which runs a folder holds that is no run, for a message."""
    runs = numbered_runs(folder) if folder.is_dir() else {}
    return f", but holds {', '.join(runs[number].name for number in sorted(runs)[-3:])}" if runs else ""


def find_resumed(resume: str, log_dir: Path) -> tuple[Path, Path]:
    """The run folder to resume, and the checkpoint to resume from, which need not exist.

    `resume` is a run folder, `last` for the newest, or a checkpoint in a run folder. Raises UserError if there is no
    such run.
    """
    if resume.endswith(".ckpt"):
        checkpoint = Path(resume)
        folder = checkpoint.parent if checkpoint.parent.name not in ("", "..") else checkpoint.parent.resolve()
        return find_run(str(folder.parent), log_dir), checkpoint
    run = find_run(resume, log_dir)
    return run, run / CHECKPOINTS / LAST


def find_checkpoint(run: Path, ckpt: str | None = None) -> Path:
    """The file that `ckpt` names: `best` or `last` of the run, or a path; by default the one that the run tests.

    Raises UserError if there is none, or if it belongs to another run, whose metrics would pass for this one's.
    """
    ckpt = ckpt or str(read_config(run).get("ckpt") or "best")
    named = ckpt in ("best", "last")
    path = run / CHECKPOINTS / f"{ckpt}.ckpt" if named else Path(ckpt)
    if not path.is_file():
        if not named:
            raise UserError(f"cannot find the checkpoint: {missing(path)} (name best, last or a path)")
        raise UserError(f"cannot find {full_path(path)}: {lack_of_checkpoint(run)}")
    owner = path.resolve().parent.parent
    if (owner / CONFIG).is_file() and owner != run.resolve():
        raise UserError(f"cannot use {path} with {run}: it belongs to the run {owner} (give --run {owner} too)")
    return path


def lack_of_checkpoint(run: Path) -> str:
    """Why a run has not the checkpoint best or last, and what to do."""
    found = " and ".join(sorted(path.stem for path in (run / CHECKPOINTS).glob("*.ckpt")))
    if is_training(run):
        return (
            f"the run is still training, and so far has {found or 'no checkpoint'} "
            "(wait until its first epoch ends, or name another run)"
        )
    if found:
        return f"the run has {found} (give --ckpt {found.partition(' ')[0]})"
    return f"its training stopped before a checkpoint was saved (resume it: {resume_command(run, own_objects(run))})"


def write_config(run: Path, options: dict[str, Any], own: Sequence[str] = ()) -> None:
    """Write every option, resolved, and which own objects replaced what options name.

    `--config` with this file repeats the run, and refuses one with own objects.
    """
    write_text(run / CONFIG, yaml.safe_dump(options | ({OWN: list(own)} if own else {}), sort_keys=False))


def own_objects(run: Path) -> list[str]:
    """Which own objects a run was trained with: datamodule, loss. Raises UserError if its config is damaged."""
    own = read_config(run).get(OWN) or []
    if not isinstance(own, list) or not all(isinstance(name, str) for name in own):
        raise UserError(f"cannot use {run / CONFIG}: {OWN} is {own!r} (restore it)")
    return own


def read_config(run: Path) -> dict[str, Any]:
    """The options of a run, unchecked. Raises UserError if the file is missing or damaged."""
    return read_yaml(run / CONFIG, "name another run")


def write_metrics(run: Path, metrics: dict[str, Any]) -> None:
    write_text(run / METRICS, json.dumps(metrics, indent=2) + "\n", new_folder=False)


def describe_teacher(teacher: dict[str, Any] | None) -> str:
    """A `Teacher.identity`, as checkpoints and metrics hold it, for a message."""
    if teacher is None:
        return "none"
    return "{model} {sha256:.12}... (share {share}, temperature {temperature})".format(**teacher)


def given_again(own: Sequence[str]) -> str:
    """Own objects as arguments of a call in Python."""
    return ", ".join(f"{name}=..." for name in own)


def testing_command(run: Path, own: Sequence[str] = ()) -> str:  # noqa: PT028 (no test)
    """The command that tests a trained run; with own objects, the call in Python."""
    if own:
        return f"evaluate(TestOptions(run={str(run)!r}), {given_again(own)}) in Python"
    return f"{command('test')} --run {quoted(run)}"


def resume_command(run: Path, own: Sequence[str] = ()) -> str:
    """The command that resumes a run, or one of its checkpoints; with own objects, the call in Python."""
    if own:
        return f"train(replace(options, resume={str(run)!r}), {given_again(own)}) in Python"
    return f"{command('train')} --resume {quoted(run)}"


def lock_run(run: Path) -> contextlib.AbstractContextManager[None]:
    """Raise UserError if another training runs in this folder."""
    return locked(run / LOCK, f"cannot train in {run}: another training runs there (wait until it ends, or stop it)")


def is_training(run: Path) -> bool:
    """Whether a training runs in this folder now."""
    if not (run / LOCK).exists():
        return False
    try:
        with lock_run(run):
            return False
    except WriteError:  # of another user
        return False
    except UserError:
        return True


def lock_test(run: Path) -> contextlib.AbstractContextManager[None]:
    """Wait, and say so, while another test of this run writes its files.

    A training may run at the same time: its best checkpoint so far can be tested.
    """
    return locked(run / TEST_LOCK, f"another test of {run} is running: waiting until it ends", wait=True)


@contextlib.contextmanager
def explain_write_errors(run: Path, command: str) -> Iterator[None]:
    """Give a WriteError that leaves the block `command`, unless it has its own; so too an OSError of a library."""
    try:
        yield
    except WriteError as error:
        if error.command:
            raise
        raise explained(error.path, error.error, run, command) from error
    except OSError as error:
        if error.errno not in WRITE_ERRORS:
            raise
        path = os.fsdecode(error.filename or run)  # TensorBoard gives bytes
        raise explained(path, error, run, command) from error


def explained(path: str | Path, error: OSError, run: Path, command: str) -> WriteError:
    reason = f"{error.strerror or error}; all that was saved before is intact"
    if error.errno == errno.ENOENT and Path(path) != run and not run.is_dir():
        reason = f"{run} was deleted or moved during the run"
    return WriteError(path, error, command, reason)
