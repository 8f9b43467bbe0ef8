"""Test a trained run: python scripts/test.py --help"""

import sys

from fmnist_lightning.cli import main
from fmnist_lightning.runs.options import TestOptions

if __name__ == "__main__":
    sys.exit(main(TestOptions, "fmnist_lightning.training.evaluate:evaluate"))
