"""A script for `launch`: ranks that do what `--mode` says within a fraction of a second, or a small training."""

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from fmnist_lightning.cli import main
from fmnist_lightning.errors import Interrupted, UserError


@dataclass(frozen=True, kw_only=True)
class Options:
    """What rank 1 does; the others wait for a signal."""

    mode: str
    folder: str


def act(options: Options) -> None:
    rank, folder = os.environ["RANK"], Path(options.folder)
    if options.mode == "end":
        (folder / rank).write_text(os.environ["WORLD_SIZE"])
        return
    if rank == "1" and options.mode == "fail":
        raise UserError("this rank's own message")
    if rank == "1" and options.mode == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if rank == "1" and options.mode == "exit":
        sys.exit(2)
    (folder / rank).touch()
    try:
        time.sleep(60)
    except Interrupted as interruption:
        (folder / rank).write_text(str(interruption.exit_status))
        raise


def train_small() -> int:
    """scripts/train.py on few drawn images, without plots."""
    import pytest
    from conftest import draw_few, leave_undrawn

    from fmnist_lightning.runs.options import TrainOptions

    patch = pytest.MonkeyPatch()
    draw_few(patch)
    leave_undrawn(patch)
    return main(TrainOptions, "fmnist_lightning.training.train:train")


if __name__ == "__main__":
    sys.exit(main(Options, act) if "--mode" in sys.argv else train_small())
