"""Tested runs beside each other: python scripts/compare.py RUN RUN... --help"""

import sys

from fmnist_lightning.cli import run
from fmnist_lightning.comparison import compare

if __name__ == "__main__":
    sys.exit(run(compare))
