"""Run folders, `lightning_logs/version_N/`, and the files in them."""

import contextlib
import errno
import json
import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from fmnist_lightning.errors import UserError
from fmnist_lightning.runs.files import locked, write_text

CONFIG = "config.yaml"
METRICS = "metrics.json"
PREDICTIONS = "predictions.npz"
REPORT = "report.html"
REPORT_PICTURES = "report"  # a folder
CHECKPOINTS = "checkpoints"
HPARAMS = "hparams.yaml"
LAST = "last.ckpt"
LOCK = ".lock"
TEST_LOCK = ".test.lock"
WRITING_FAULTS = (
    errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOENT, errno.ENOSPC, errno.EPERM, errno.EROFS,
)  # fmt: skip
VERSION = re.compile(r"version_(\d+)")


def numbered_runs(log_dir: Path) -> dict[int, Path]:
    """The run folders in `log_dir` by number."""
    matches = ((VERSION.fullmatch(path.name), path) for path in log_dir.glob("version_*") if path.is_dir())
    return {int(match[1]): path for match, path in matches if match}


def new_run(log_dir: Path) -> Path:
    """Make the next run folder; making it claims its number, so two runs started at once get two.

    Raises UserError where it can't be written.
    """
    try:
        log_dir.mkdir(parents=True, exist_ok=True)
        number = max(numbered_runs(log_dir), default=-1) + 1
        while True:
            run = log_dir / f"version_{number}"
            try:
                run.mkdir()
            except FileExistsError:
                number += 1
            else:
                return run
    except OSError as error:
        raise UserError(
            f"{log_dir} can't be written ({error.strerror}): make it writable, or name another folder with --log_dir"
        ) from error


def find_run(run: str, log_dir: Path) -> Path:
    """The folder that `run` names: a path, or `last` for the highest number in `log_dir` that holds a run.

    Raises UserError where there is none, or where it holds no run.
    """
    if run == "last":
        runs = {number: path for number, path in numbered_runs(log_dir).items() if (path / CONFIG).is_file()}
        if not runs:
            raise UserError(f"{log_dir} holds no runs: train first (python scripts/train.py), or name a run folder")
        folder = runs[max(runs)]
    else:
        folder = Path(run)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: name a run folder such as {log_dir}/version_0, or `last`")
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} holds no run: {CONFIG} is missing; name a folder that scripts/train.py wrote")
    return folder


def find_resumed(resume: str, log_dir: Path) -> tuple[Path, Path]:
    """The run folder to go on in, and the checkpoint to go on from, which need not exist.

    `resume` is a run folder, `last` for the newest, or a checkpoint in a run folder. Raises UserError where the run is
    missing.
    """
    if resume.endswith(".ckpt"):
        checkpoint = Path(resume)
        folder = checkpoint.parent if checkpoint.parent.name not in ("", "..") else checkpoint.parent.resolve()
        return find_run(str(folder.parent), log_dir), checkpoint
    run = find_run(resume, log_dir)
    return run, run / CHECKPOINTS / LAST


def find_checkpoint(run: Path, ckpt: str | None = None) -> Path:
    """The file that `ckpt` names: `best` or `last` of the run, or a path; without it, the one that the run tests.

    Raises UserError where there is none, or where it lies in another run: its figures would be told as this one's.
    """
    ckpt = ckpt or str(read_config(run).get("ckpt") or "best")
    named = ckpt in ("best", "last")
    path = run / CHECKPOINTS / f"{ckpt}.ckpt" if named else Path(ckpt)
    if named and not path.exists():
        raise UserError(f"{path} does not exist: the run was stopped before its first epoch ended, or it was moved")
    if not path.is_file():
        raise UserError(
            f"{path} {'is no file' if path.exists() else 'does not exist'}: name best, last, or a checkpoint's path"
        )
    owner = path.resolve().parent.parent
    if (owner / CONFIG).is_file() and owner != run.resolve():
        raise UserError(f"{path} is of the run {owner}, and not of {run}: give --run {owner} too")
    return path


def write_config(run: Path, options: dict[str, Any]) -> None:
    """Every option resolved; `--config` on the file repeats the run."""
    write_text(run / CONFIG, yaml.safe_dump(options, sort_keys=False))


def read_config(run: Path, required: Iterable[str] = ()) -> dict[str, Any]:
    """The options of a run. Raises UserError where the file is damaged or lacks a `required` one."""
    path = run / CONFIG
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    # PyYAML passes on what a date of no month and a list in itself raise.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} can't be read: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} holds no options; expected one `name: value` a line")
    if missing := [name for name in required if config.get(name) is None]:
        raise UserError(
            f"{path} lacks {', '.join(missing)}, or leaves it empty: it was edited, or is an older version's or "
            "another program's"
        )
    return config


def write_metrics(run: Path, metrics: dict[str, Any]) -> None:
    write_text(run / METRICS, json.dumps(metrics, indent=2) + "\n")


def describe_teacher(teacher: dict[str, Any] | None) -> str:
    """A `Teacher.identity`, as checkpoints and metrics have it, in a message."""
    if teacher is None:
        return "none"
    return "{model} {sha256:.12}... (share {share}, temperature {temperature})".format(**teacher)


def testing_command(run: Path) -> str:
    """What to type to test a trained run."""
    return f"python scripts/test.py --run {shlex.quote(str(run))}"


def resume_command(run: Path) -> str:
    """What to type to go on with an interrupted run, or with a checkpoint of one."""
    return f"python scripts/train.py --resume {shlex.quote(str(run))}"


def lock_run(run: Path) -> contextlib.AbstractContextManager[None]:
    """Raise UserError where another training goes on in this run folder."""
    return locked(run / LOCK, f"another training goes on in {run}: wait until it ends, or stop it")


def lock_test(run: Path) -> contextlib.AbstractContextManager[None]:
    """Wait, and say so, while another test of this run is under way, whose files would mix with this one's.

    A training may go on meanwhile: its best checkpoint so far can be tested.
    """
    return locked(run / TEST_LOCK, f"another test of {run} is under way: waiting for its end", wait=True)


@contextlib.contextmanager
def explain_write_errors(run: Path, command: str) -> Iterator[None]:
    """Turn the system's errors while a run is written into a UserError that names the cure, `command` at its end."""
    try:
        yield
    except OSError as error:
        if error.errno not in WRITING_FAULTS:
            raise
        if not run.is_dir():
            raise UserError(
                f"{run} was deleted or moved under the run: put it back and go on, or start anew"
            ) from error
        raise UserError(
            f"{error.filename or run} can't be written ({error.strerror or error}); what was saved before is whole: "
            f"make room or make the folder writable, then go on: {command}"
        ) from error
