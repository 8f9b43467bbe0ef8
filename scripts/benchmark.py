"""The speed of training on this machine: python scripts/benchmark.py --help"""

import sys
from pathlib import Path

from jsonargparse.typing import PositiveInt

from fmnist_lightning.cli import run
from fmnist_lightning.training import Accelerator


def benchmark(
    *,
    images: PositiveInt = 12800,
    batch_size: PositiveInt = 128,
    repeats: PositiveInt = 5,
    accelerator: Accelerator = "auto",
    output: str = "benchmarks/speed.json",
) -> None:
    """Time training through the Trainer against the bare loop on the same data path, in turn, on drawn images.

    Args:
        images: In a measured epoch.
        batch_size: Images in a step.
        repeats: Measured pairs, after one that warms up.
        accelerator: Where to compute.
        output: File of the record.
    """
    import lightning as L

    from fmnist_lightning.benchmarking import measure, speed_table, write_record
    from fmnist_lightning.console import quiet
    from fmnist_lightning.data import Split
    from fmnist_lightning.devices import resolve_devices
    from fmnist_lightning.drawn import load_drawn

    quiet()
    resolve_devices(accelerator, 1, "32-true")
    device = L.Fabric(accelerator=accelerator, devices=1).device
    split = Split(*(part[:images].to(device) for part in load_drawn(train=True)))
    figures = measure(split, batch_size, accelerator, repeats)
    write_record(Path(output), figures, split, batch_size)
    print(f"{speed_table(figures)}\nwritten: {output}")


if __name__ == "__main__":
    sys.exit(run(benchmark))
