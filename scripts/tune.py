"""Search a recipe's options on the validation split: python scripts/tune.py --help"""

import sys

from fmnist_lightning.cli import main
from fmnist_lightning.runs.options import TuneOptions

if __name__ == "__main__":
    sys.exit(main(TuneOptions, "fmnist_lightning.tune.tune:tune"))
