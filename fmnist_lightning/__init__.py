"""Fashion-MNIST-CNN-Dropout on PyTorch Lightning. Import from the module that you mean."""

__version__ = "0.1.0"
