"""Join the parts that predict.py --output wrote: python scripts/join.py --folder FOLDER --file FILE"""

import sys

from fmnist_lightning.cli import main
from fmnist_lightning.runs.options import JoinOptions

if __name__ == "__main__":
    sys.exit(main(JoinOptions, "fmnist_lightning.predict.joining:join"))
