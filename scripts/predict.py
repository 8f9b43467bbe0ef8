"""Classify pictures: python scripts/predict.py --help"""

import sys

from _setup import run

if __name__ == "__main__":
    sys.exit(run("predict"))
