"""One file of the parts that predict.py --output wrote: python scripts/join.py --folder FOLDER --file FILE"""

import sys

from fmnist_lightning.cli import run
from fmnist_lightning.joining import join

if __name__ == "__main__":
    sys.exit(run(join))
