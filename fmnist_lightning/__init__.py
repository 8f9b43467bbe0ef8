"""Fashion-MNIST-CNN-Dropout on PyTorch Lightning.

The names in `__all__` are the public interface. They are imported at first use (PEP 562), since torch takes seconds.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fmnist_lightning.data.datamodule import FashionMNISTDataModule
    from fmnist_lightning.data.source import DataSource
    from fmnist_lightning.predict.classifier import load_classifier
    from fmnist_lightning.runs.options import TrainOptions
    from fmnist_lightning.training.module import Classifier
    from fmnist_lightning.training.train import train

__version__ = "0.1.0"
__all__ = ["Classifier", "DataSource", "FashionMNISTDataModule", "TrainOptions", "load_classifier", "train"]

MODULES = {
    "Classifier": "fmnist_lightning.training.module",
    "DataSource": "fmnist_lightning.data.source",
    "FashionMNISTDataModule": "fmnist_lightning.data.datamodule",
    "TrainOptions": "fmnist_lightning.runs.options",
    "load_classifier": "fmnist_lightning.predict.classifier",
    "train": "fmnist_lightning.training.train",
}

# Lightning reads these ranks at its import, and fails if one is no number; cli/launchers.py has what a command ignores.
for variable in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"):
    if not os.environ.get(variable, "0").isdecimal():
        del os.environ[variable]


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(MODULES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *MODULES]
