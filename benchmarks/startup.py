"""A training that ends early, or a test loop, to be timed.

Usage: python benchmarks/startup.py imports|data|step|test DATASET DATA_DIR LOG_DIR

imports: behind `import lightning`. data: behind all imports of a training, with its data in memory. step: behind the
first step of a training as scripts/train.py does it. test: behind the whole test loop of the newest run in LOG_DIR, as
scripts/test.py does it. All end at once, without the way out, which is no part of a start.
"""

import os
import sys


def main(until: str, dataset: str, data_dir: str, log_dir: str) -> None:
    if until == "imports":
        import lightning  # noqa: F401
    elif until == "data":
        import fmnist_lightning.training.callbacks
        import fmnist_lightning.training.module  # noqa: F401
        from fmnist_lightning.data.datamodule import FashionMNISTDataModule

        FashionMNISTDataModule(dataset, data_dir).setup("fit")
    elif until == "test":
        from fmnist_lightning.training.evaluate import evaluate

        evaluate(log_dir=log_dir)
    else:
        from fmnist_lightning.training.train import train

        train(dataset=dataset, data_dir=data_dir, log_dir=log_dir)  # type: ignore[arg-type]


def end_behind_first_step() -> None:
    from fmnist_lightning.training.optim import KerasAdam

    step = KerasAdam.step

    def last_step(self: KerasAdam, closure: object = None) -> None:
        step(self, closure)  # type: ignore[arg-type]
        os._exit(0)

    KerasAdam.step = last_step  # type: ignore[method-assign]


if __name__ == "__main__":
    if sys.argv[1] == "step":
        end_behind_first_step()
    main(*sys.argv[1:])
    os._exit(0)
