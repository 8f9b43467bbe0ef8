"""scripts/train.py on few drawn images without pictures, for tests that start it as people do. One rank may fail."""

import os
import sys

from several import FEW

from fmnist_lightning import drawn, ranks
from fmnist_lightning.cli import run
from fmnist_lightning.errors import UserError
from fmnist_lightning.training import train

FAILING = "TEST_FAILING_RANK"


def prepare() -> None:
    from fmnist_lightning.module import Classifier
    from fmnist_lightning.pictures import Pictures

    drawn.PER_CLASS.update(FEW)
    Pictures.draw_validation = lambda *_: None  # type: ignore[method-assign]
    step = Classifier.training_step

    def failing_step(self: Classifier, batch: object, batch_idx: int) -> object:
        if batch_idx == 3:
            raise UserError("this rank's own message")
        return step(self, batch, batch_idx)

    if (place := ranks.launched()) and os.environ.get(FAILING) == str(place.rank):
        Classifier.training_step = failing_step  # type: ignore[method-assign]


if __name__ == "__main__":
    if ranks.launched() or "--devices" not in sys.argv:  # whoever only starts others needs none of it
        prepare()
    sys.exit(run(train))
