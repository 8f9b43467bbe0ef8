"""A training that ends early, or a test loop, to be timed.

Usage: python benchmarks/startup.py imports|data|step|test DATASET DATA_DIR LOG_DIR

imports ends after `import lightning`; data, after all imports of a training, with its data in memory; step, after the
first step of a training as scripts/train.py does it; test, after the whole test loop of the newest run in LOG_DIR, as
scripts/test.py does it. All exit at once, since an exit is no part of a start.
"""

import os
import sys
from typing import Any


def main(until: str, dataset: Any, data_dir: str, log_dir: str) -> None:
    if until == "imports":
        import lightning  # noqa: F401
    elif until == "data":
        import fmnist_lightning.training.train  # noqa: F401
        from fmnist_lightning.data.datamodule import FashionMNISTDataModule

        FashionMNISTDataModule(dataset, data_dir).setup("fit")
    elif until == "test":
        from fmnist_lightning.runs.options import TestOptions
        from fmnist_lightning.training.evaluate import evaluate

        evaluate(TestOptions(log_dir=log_dir))
    else:
        from lightning.pytorch.callbacks import LambdaCallback

        from fmnist_lightning.runs.options import TrainOptions
        from fmnist_lightning.training.train import train

        stop = LambdaCallback(on_train_batch_end=lambda *_: os._exit(0))
        train(TrainOptions(dataset=dataset, data_dir=data_dir, log_dir=log_dir), callbacks=[stop])


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(0)
