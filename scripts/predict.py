"""Classify pictures: python scripts/predict.py IMAGE... --help"""

import sys

from fmnist_lightning.cli import main
from fmnist_lightning.runs.options import PredictOptions

if __name__ == "__main__":
    sys.exit(main(PredictOptions, "fmnist_lightning.predict.predict:predict"))
