"""scripts/train.py on few drawn images without pictures, for tests that start it as people do.

One rank may fail at its fourth batch, or wait there until it is told to stop.
"""

import os
import signal
import sys
import time
from pathlib import Path

from several import FEW

from fmnist_lightning import ranks
from fmnist_lightning.cli import run
from fmnist_lightning.data import drawn
from fmnist_lightning.errors import UserError
from fmnist_lightning.training.train import train

FAILING, WAITING = "TEST_FAILING_RANK", "TEST_WAITING_RANK"
WAITS = Path("waits")  # there while the rank waits


def prepare() -> None:
    from fmnist_lightning.report.tensorboard import Pictures
    from fmnist_lightning.training.module import Classifier

    drawn.PER_CLASS.update(FEW)
    Pictures.draw_validation = lambda *_: None  # type: ignore[method-assign]
    step = Classifier.training_step
    place = ranks.launched()

    def disturbed_step(self: Classifier, batch: object, batch_idx: int) -> object:
        if place and batch_idx == 3:
            if os.environ.get(FAILING) == str(place.rank):
                raise UserError("this rank's own message")
            if os.environ.get(WAITING) == str(place.rank):
                WAITS.touch()
                while callable(signal.getsignal(signal.SIGTERM)):  # as it is until one comes
                    time.sleep(0.01)
        return step(self, batch, batch_idx)

    Classifier.training_step = disturbed_step  # type: ignore[method-assign]


if __name__ == "__main__":
    if ranks.launched() or "--devices" not in sys.argv:  # whoever only starts others needs none of it
        prepare()
    sys.exit(run(train))
