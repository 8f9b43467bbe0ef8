"""Classes of pictures: python scripts/predict.py IMAGE... --help"""

import sys

from fmnist_lightning.cli import run
from fmnist_lightning.prediction import predict

if __name__ == "__main__":
    sys.exit(run(predict))
