"""Test a trained run: python scripts/test.py --help"""

import sys

from fmnist_lightning.__main__ import run

if __name__ == "__main__":
    sys.exit(run("test"))
