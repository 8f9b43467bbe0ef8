"""Search a recipe's options on the validation split: python scripts/tune.py --help"""

import sys

from _setup import run

if __name__ == "__main__":
    sys.exit(run("tune"))
