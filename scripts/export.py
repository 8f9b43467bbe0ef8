"""Export a trained model, verified on the test set: python scripts/export.py --help"""

import sys

from _setup import run

if __name__ == "__main__":
    sys.exit(run("export"))
