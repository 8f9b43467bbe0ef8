"""A search over a recipe's options, on the validation cut alone: python scripts/tune.py --help"""

import sys

from fmnist_lightning.cli import run
from fmnist_lightning.tuning import tune

if __name__ == "__main__":
    sys.exit(run(tune))
