"""The run folder of a training: a new one, or one to go on in, from a checkpoint that fits."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmnist_lightning.errors import UserError
from fmnist_lightning.runs.checkpoints import FORMAT, load_weights, newest_readable, read_checkpoint, training_record
from fmnist_lightning.runs.files import remove_staged
from fmnist_lightning.runs.folders import (
    CHECKPOINTS,
    CONFIG,
    HPARAMS,
    LAST,
    describe_teacher,
    find_resumed,
    new_run,
    resume_command,
    write_config,
)
from fmnist_lightning.runs.options import TrainOptions, as_yaml, check_same_run

if TYPE_CHECKING:
    from fmnist_lightning.training.module import Classifier


def find_or_make_run(resume: str | None, log_dir: Path) -> tuple[Path, Path | None]:
    """The folder of the run, and the checkpoint to go on from, if it goes on."""
    return find_resumed(resume, log_dir) if resume else (new_run(log_dir), None)


def open_run(
    run: Path, checkpoint: Path | None, options: TrainOptions, module: "Classifier"
) -> tuple[Path | None, int]:
    """Make the run folder ready; return the checkpoint to go on from, if any, and the steps done there.

    Raises UserError where a resumed run's options, weights or teacher don't fit, or its checkpoint can't be read.
    """
    steps = 0
    if checkpoint:
        check_same_run(run, options)
        checkpoint = existing_checkpoint(run, checkpoint)
        steps = steps_done(run, checkpoint, module, options.max_epochs) if checkpoint else 0
        (run / HPARAMS).unlink(missing_ok=True)  # the logger writes the new ones only where there are none
        remove_staged(run, CONFIG)  # the test's files are the test's, and one may be under way
        remove_staged(run / CHECKPOINTS)
    (run / CHECKPOINTS).mkdir(exist_ok=True)
    write_config(run, {**as_yaml(options), "resume": None})
    return checkpoint, steps


def existing_checkpoint(run: Path, checkpoint: Path) -> Path | None:
    """The checkpoint itself; where it is not there, said aloud: the run's newest, or None where it has none yet."""
    if checkpoint.exists() or checkpoint.name != LAST:
        return checkpoint
    if not any((run / CHECKPOINTS).glob("*.ckpt")):
        print(f"{run} has no checkpoint yet: it starts from its beginning")
        return None
    if newest := newest_readable(run / CHECKPOINTS):
        print(f"{checkpoint} is not there: it goes on from {newest}")
    return newest or checkpoint


def steps_done(run: Path, checkpoint: Path, module: "Classifier", max_epochs: int) -> int:
    """Steps of training behind a checkpoint whose weights and teacher are those of `module`.

    Raises UserError where it can't be gone on from, and names the newest checkpoint of the run that can be read; and
    where it is behind `max_epochs` already.
    """
    try:
        content = read_checkpoint(checkpoint)
        training_record(content)
        if content.get("format") != FORMAT:
            raise UserError(f"{checkpoint} is an older version's: it can be tested, but not gone on with")
        if not content.get("optimizer_states"):
            raise UserError(f"{checkpoint} lacks the optimizer's state: it can be tested, but not gone on with")
    except UserError as error:
        other = newest_readable(run / CHECKPOINTS)
        cure = f"the newest that can be read: {resume_command(other)}" if other else "no other one can be read either"
        raise UserError(f"{error}; {cure}") from error
    begun = content["epoch"] + 1  # the epoch that it ends, or lies in
    if max_epochs < begun:
        raise UserError(
            f"{checkpoint} is in its epoch {begun} or behind it, and can't go on to --max_epochs {max_epochs}: give "
            f"{begun} or more, or train a new run"
        )
    load_weights(module, content, checkpoint)
    check_same_teacher(run, content.get("teacher"), module.teacher.identity if module.teacher else None)
    return int(content["global_step"])


def check_same_teacher(run: Path, before: dict[str, Any] | None, now: dict[str, Any] | None) -> None:
    """Raise UserError where a run would go on with another teacher than it began with, or learn otherwise from it."""
    if before != now:
        cure = "give the options of its own teacher" if before else "give --teacher null"
        raise UserError(f"{run} was taught by {describe_teacher(before)}, and can't go on with {describe_teacher(now)}: {cure}")
