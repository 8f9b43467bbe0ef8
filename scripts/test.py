"""The test loop alone, on a trained run: python scripts/test.py --help"""

import sys

from fmnist_lightning.cli import run
from fmnist_lightning.evaluation import evaluate

if __name__ == "__main__":
    sys.exit(run(evaluate))
