"""Fashion-MNIST-CNN-Dropout on PyTorch Lightning.

The names in `__all__` are the public interface. They are imported at first use (PEP 562), since torch takes seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fmnist_lightning.data.datamodule import FashionMNISTDataModule
    from fmnist_lightning.predict.classifier import load_classifier
    from fmnist_lightning.training.module import Classifier

__version__ = "0.1.0"
__all__ = ["Classifier", "FashionMNISTDataModule", "load_classifier"]

MODULES = {
    "Classifier": "fmnist_lightning.training.module",
    "FashionMNISTDataModule": "fmnist_lightning.data.datamodule",
    "load_classifier": "fmnist_lightning.predict.classifier",
}


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(MODULES[name]), name)
