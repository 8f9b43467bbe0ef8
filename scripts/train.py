"""Train, then test: python scripts/train.py --help"""

import sys

from fmnist_lightning.cli import main
from fmnist_lightning.runs.options import TrainOptions

if __name__ == "__main__":
    sys.exit(main(TrainOptions, "fmnist_lightning.training.train:train"))
