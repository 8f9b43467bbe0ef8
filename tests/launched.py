"""A script for `launch`: ranks that do what `--mode` says within a fraction of a second, or a small training."""

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from fmnist_lightning.cli.main import main
from fmnist_lightning.errors import Interrupted, UserError


@dataclass(frozen=True, kw_only=True)
class Options:
    """What rank 1 does; rank 0 waits for a signal, unless the mode is end."""

    mode: str
    folder: str


def act(options: Options) -> None:
    file = Path(options.folder) / os.environ["RANK"]
    if options.mode == "end":
        file.write_text(os.environ["WORLD_SIZE"])
        return
    if file.name == "1" and options.mode == "fail":
        raise UserError("this rank's own message")
    if file.name == "1" and options.mode == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if file.name == "1" and options.mode == "exit":
        sys.exit(2)
    try:
        file.touch()
        time.sleep(60)
    except Interrupted as interruption:
        file.write_text(str(interruption.exit_status))
        raise


def train_small() -> int:
    """scripts/train.py on few drawn images, without plots."""
    import pytest
    from conftest import draw_few, leave_undrawn

    from fmnist_lightning.runs.options import TrainOptions

    draw_few(pytest.MonkeyPatch())
    leave_undrawn(pytest.MonkeyPatch())
    return main(TrainOptions, "fmnist_lightning.training.train:train")


if __name__ == "__main__":
    sys.exit(main(Options, act) if "--mode" in sys.argv else train_small())
