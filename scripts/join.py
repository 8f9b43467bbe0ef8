"""Join the files that predict.py --output wrote: python scripts/join.py --help"""

import sys

from _setup import run

if __name__ == "__main__":
    sys.exit(run("join"))
