"""Train, then test: python scripts/train.py --help"""

import sys

from _setup import run

if __name__ == "__main__":
    sys.exit(run("train"))
