"""The speed of training on this machine, beside its peers: python scripts/benchmark.py --help"""

import sys
from pathlib import Path
from typing import Literal

from jsonargparse.typing import PositiveInt

from fmnist_lightning.cli import DATA_DIR, Accelerator, Dataset, run


def benchmark(
    *,
    rounds: PositiveInt = 3,
    part: Literal["speed", "trainer", "startup", "growth", "scaling"] = "speed",
    dataset: Dataset = "auto",
    data_dir: str = DATA_DIR,
    accelerator: Accelerator = "cpu",
    keras_python: str | None = None,
    output: str = "benchmarks",
) -> None:
    """Time whole trainings, in turn: this project, Keras, Lightning as tutorials write it, a bare loop, the arithmetic.

    Args:
        rounds: How often each is measured; of trainer, in epochs.
        part: speed, beside the peers; trainer, the Trainer beside a bare loop, step by step in turn; startup, before
            the first step; growth, with more data and other batch sizes; scaling, with more processes.
        dataset: fashion_mnist; drawn; auto, the first that can be had.
        data_dir: Folder of the data.
        accelerator: Where to compute. Keras computes on the CPU in any case.
        keras_python: A Python that has keras and tensorflow-cpu. Without it Keras is left out; `make bench` makes one.
        output: Folder of the records, speed.json, trainer.json, startup.json, growth.json and scaling.json.
    """
    from fmnist_lightning.data.sources import resolve_dataset
    from tools.benchmarking import record_growth, record_speed, record_startup, record_trainer
    from tools.scaling import record_scaling, scaling_table
    from tools.speed_tables import growth_table, speed_table, startup_table, trainer_table

    resolved = resolve_dataset(dataset, Path(data_dir))
    path = Path(output, f"{part}.json")
    if part == "growth":
        table = growth_table(record_growth(path, resolved, data_dir))
    elif part == "scaling":
        table = scaling_table(record_scaling(path, resolved, data_dir))
    elif part == "trainer":
        table = trainer_table(record_trainer(path, resolved, data_dir, rounds, accelerator))
    elif part == "startup":
        table = startup_table(record_startup(path, resolved, data_dir, rounds))
    else:
        table = speed_table(record_speed(path, resolved, data_dir, rounds, accelerator, keras_python))
    print(table)


if __name__ == "__main__":
    sys.exit(run(benchmark))
