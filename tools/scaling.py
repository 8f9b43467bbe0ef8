"""How the cost of a step grows with processes: measured on this machine's CPU, and modelled for GPUs."""

import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

from fmnist_lightning.errors import UserError
from fmnist_lightning.training.launching import usable_cores
from tools.benchmarking import PROGRAMS, observe, write_record
from tools.speed_tables import origin

SCALING = re.compile(r"scaling ([\d.]+) ([\d.]+) ([\d.]+)")
PROCESSES = (1, 2, 3, 4)
BATCH_SIZES = (128, 512)
STEPS = 160  # timed, half of them without exchange

WEIGHTS = 225_034  # of the original's net
BYTES = 4 * WEIGHTS  # of gradients that each process sends at a step, in 32 bits
# Of one image in training: forward, as torch's counter has it (tests/test_scaling.py), and twice that backward.
FLOP_AN_IMAGE = 3 * 4.43e6


class Case(NamedTuple):
    """One training that is timed."""

    processes: int
    threads: int  # of each
    batch_size: int  # of all together


class Link(NamedTuple):
    """What gradients travel by. Nominal figures; a link of one's own goes into the formula of docs/scale.md."""

    name: str
    bytes_a_second: float
    latency: float  # seconds, of one message


LINKS = (
    Link("NVLink, 450 GB/s each way", 450e9, 10e-6),
    Link("PCIe 4.0 x16, 32 GB/s", 32e9, 15e-6),
    Link("Ethernet, 10 Gbit/s", 1.25e9, 50e-6),
)
DEVICE_FLOPS = 20e12  # an assumption: what a GPU makes of convolutions as small as these
DEVICES = (2, 8, 64)


def cases(cores: int) -> list[Case]:
    """Each number of processes with a thread each, and one process with a thread for each core."""
    threads = [(1, cores), *((processes, 1) for processes in PROCESSES)]
    return [Case(*pair, batch_size) for batch_size in BATCH_SIZES for pair in dict.fromkeys(threads)]


def measure_case(case: Case, dataset: str, data_dir: str) -> dict[str, float]:
    """Seconds of a step with exchange and without, and of an exchange by itself: medians.

    Raises UserError where the program does not tell them.
    """
    words = [*map(str, case), dataset, data_dir, str(STEPS)]
    seen = observe([sys.executable, str(PROGRAMS / "scaling.py"), *words])
    for _, line in seen.lines:
        if match := SCALING.search(line):
            step, free, exchange = map(float, match.groups())
            return {**case._asdict(), "step": step, "free": free, "exchange": exchange}
    raise UserError(f"benchmarks/scaling.py {' '.join(words)} told no times")


def record_scaling(path: Path, dataset: str, data_dir: str) -> dict[str, Any]:
    """Measure all cases, write the record, return it."""
    rows = []
    cores = usable_cores()
    for case in cases(cores):
        rows.append(measure_case(case, dataset, data_dir))
        print(f"{case}: {1e3 * rows[-1]['step']:.2f} ms a step", flush=True)
    return write_record(path, {"scaling": rows, "cores": cores}, dataset, "cpu", None)


def scaling_table(record: dict[str, Any]) -> str:
    """Time of a step and for an image, and the share of communication, by processes and batch size."""
    lines = [
        "| processes | threads each | batch size, all together | ms a step | microseconds an image | images/s | "
        "exchange of gradients | an exchange by itself, ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in record["scaling"]:
        step, image = row["step"], row["step"] / row["batch_size"]
        share = f"{max(0.0, 1 - row['free'] / step):.0%}" if row["processes"] > 1 else ""
        alone = f"{1e3 * row['exchange']:.2f}" if row["processes"] > 1 else ""
        lines.append(
            f"| {row['processes']} | {row['threads']} | {row['batch_size']} | {1e3 * step:.1f} | {1e6 * image:.0f} | "
            f"{1 / image:,.0f} | {share} | {alone} |"
        )
    return "\n".join([*lines, "", f"{record['cores']} cores. {origin(record)}."])


def exchange_seconds(devices: int, link: Link) -> float:
    """What a ring takes to add up all gradients: each device sends 2 (K - 1) messages of a K-th of them.

    Source: Patarasuk and Yuan (2009), https://doi.org/10.1016/j.jpdc.2008.09.002.
    """
    messages = 2 * (devices - 1)
    return messages * (link.latency + BYTES / devices / link.bytes_a_second)


def paying_batch_size(devices: int, link: Link) -> int:
    """The global batch size from which so many devices are faster than one.

    That is where the computing that they save, B F (1 - 1 / K) seconds, is more than the exchange.
    """
    seconds_an_image = FLOP_AN_IMAGE / DEVICE_FLOPS
    return round(exchange_seconds(devices, link) / (seconds_an_image * (1 - 1 / devices)))


def model_table() -> str:
    """The exchange of a step, and the batch size from which devices pay, by link and number of devices."""
    lines = ["| link | devices | exchange of a step, ms | pays from a batch size of |", "|---|---|---|---|"]
    for link in LINKS:
        for devices in DEVICES:
            exchange, batch_size = exchange_seconds(devices, link), paying_batch_size(devices, link)
            lines.append(f"| {link.name} | {devices} | {1e3 * exchange:.2f} | {batch_size:,} |")
    return "\n".join(lines)
