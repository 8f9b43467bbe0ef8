"""Export a trained model, verified on the test set: python scripts/export.py --help"""

import sys

from fmnist_lightning.cli import main
from fmnist_lightning.runs.options import ExportOptions

if __name__ == "__main__":
    sys.exit(main(ExportOptions, "fmnist_lightning.models.export:export"))
