"""Run folders, `lightning_logs/version_N/`, and the files in them."""

import contextlib
import errno
import json
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from fmnist_lightning.cli import command, read_yaml
from fmnist_lightning.errors import UserError, WriteError
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


def numbered_runs(log_dir: Path) -> dict[int, Path]:
    """The run folders in `log_dir` by number."""
    matches = ((VERSION.fullmatch(path.name), path) for path in log_dir.glob("version_*") if path.is_dir())
    return {int(match[1]): path for match, path in matches if match}


def new_run(log_dir: Path) -> Path:
    """Make the next run folder. Runs that start at the same time get different numbers.

    Raises UserError if it or `log_dir` can't be made.
    """
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
    folder = Path(run)
    if run == "last":
        runs = {number: path for number, path in numbered_runs(log_dir).items() if (path / CONFIG).is_file()}
        folder = runs[max(runs)] if runs else log_dir / "version_0"
    if not (folder / CONFIG).is_file():
        raise UserError(f"cannot find {folder / CONFIG} (train first: {command('train')}, or name a run folder)")
    return folder


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
        raise UserError(f"cannot find {path} (name best or last, which a run has after its first epoch, or a path)")
    owner = path.resolve().parent.parent
    if (owner / CONFIG).is_file() and owner != run.resolve():
        raise UserError(f"cannot use {path} with {run}: it belongs to the run {owner} (give --run {owner} too)")
    return path


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
    write_text(run / METRICS, json.dumps(metrics, indent=2) + "\n")


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
    return f"{command('test')} --run {shlex.quote(str(run))}"


def resume_command(run: Path, own: Sequence[str] = ()) -> str:
    """The command that resumes a run, or one of its checkpoints; with own objects, the call in Python."""
    if own:
        return f"train(replace(options, resume={str(run)!r}), {given_again(own)}) in Python"
    return f"{command('train')} --resume {shlex.quote(str(run))}"


def lock_run(run: Path) -> contextlib.AbstractContextManager[None]:
    """Raise UserError if another training runs in this folder."""
    return locked(run / LOCK, f"cannot train in {run}: another training runs there (wait until it ends, or stop it)")


def lock_test(run: Path) -> contextlib.AbstractContextManager[None]:
    """Wait, and say so, while another test of this run writes its files.

    A training may run at the same time: its best checkpoint so far can be tested.
    """
    return locked(run / TEST_LOCK, f"another test of {run} is running: waiting until it ends", wait=True)


@contextlib.contextmanager
def explain_write_errors(run: Path, command: str) -> Iterator[None]:
    """Raise WriteError whose hint ends with `command` for one without, and for an OSError of a library's write."""
    try:
        yield
    except WriteError as error:
        raise explained(error.path, error.error, run, command) from error
    except OSError as error:
        if error.errno not in WRITE_ERRORS:
            raise
        raise explained(error.filename or run, error, run, command) from error


def explained(path: str | Path, error: OSError, run: Path, command: str) -> WriteError:
    if not run.is_dir():
        return WriteError(path, error, f"{command}, or begin anew", f"{run} was deleted or moved during the run")
    return WriteError(path, error, command, f"{error.strerror or error}; all that was saved before is intact")
