"""Train, then test: python scripts/train.py --help"""

import sys

from fmnist_lightning.cli import run
from fmnist_lightning.training import train

if __name__ == "__main__":
    sys.exit(run(train))
