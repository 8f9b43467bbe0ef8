"""Kill trainings at random moments, let them go on, and compare: python scripts/torture.py --help"""

import sys
import tempfile
from pathlib import Path

from jsonargparse.typing import PositiveInt

from fmnist_lightning.cli import DATA_DIR, Dataset, run


def torture(
    *,
    runs: PositiveInt = 100,
    dataset: Dataset = "auto",
    data_dir: str = DATA_DIR,
    output: str = "benchmarks/torture.json",
) -> None:
    """Start trainings, kill -9 each up to three times, let it go on to its end, compare it with one left alone.

    Args:
        runs: How many; half of them are killed at any time, half while they write a checkpoint.
        dataset: fashion_mnist; drawn; auto, the first that can be had. A few thousand of its images are used.
        data_dir: Folder of the data.
        output: The record.
    """
    from fmnist_lightning.data.sources import resolve_dataset
    from tools.torturing import record_torture, torture_table

    resolved = resolve_dataset(dataset, Path(data_dir))
    with tempfile.TemporaryDirectory() as folder:
        record = record_torture(Path(output), resolved, data_dir, runs, Path(folder))
    print(torture_table(record))


if __name__ == "__main__":
    sys.exit(run(torture))
