"""Compare tested runs: python scripts/compare.py RUN RUN... --help"""

import sys

from fmnist_lightning.cli import main
from fmnist_lightning.runs.options import CompareOptions

if __name__ == "__main__":
    sys.exit(main(CompareOptions, "fmnist_lightning.report.compare:compare"))
