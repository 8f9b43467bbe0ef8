"""A trained net for other programs, proven on the test set: python scripts/export.py --help"""

import sys

from fmnist_lightning.cli import run
from fmnist_lightning.exporting import export

if __name__ == "__main__":
    sys.exit(run(export))
