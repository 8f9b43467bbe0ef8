"""How the cost of a step grows with processes: measured on this machine's CPU, and modeled for GPUs."""

import itertools
import re
import sys
from typing import Any, NamedTuple

from fmnist_lightning.training.devices import usable_cores
from tools.markdown import markdown, origin
from tools.observe import PROGRAMS, observe

SCALING = re.compile(r"scaling (?P<step>[\d.]+) (?P<free>[\d.]+) (?P<exchange>[\d.]+)")
PROCESSES = (1, 2, 3, 4)
BATCH_SIZES = (128, 512)
STEPS = 160  # timed, half of them without exchange

WEIGHTS = 225_034  # of the original's model
BYTES = 4 * WEIGHTS  # of gradients that each process sends at a step, in 32 bits
# Of one image in training: forward, by torch's counter (tests/tools/test_scaling.py), and twice that backward.
FLOP_AN_IMAGE = 3 * 4.43e6


class Case(NamedTuple):
    """One training that is timed."""

    processes: int
    threads: int  # of each
    batch_size: int  # of all together


class Link(NamedTuple):
    """A link between devices, with its nominal speed; docs/scale.md has the formula for your own."""

    name: str
    bytes_a_second: float
    latency: float  # seconds, of one message


LINKS = (
    Link("NVLink, 450 GB/s each way", 450e9, 10e-6),
    Link("PCIe 4.0 x16, 32 GB/s", 32e9, 15e-6),
    Link("Ethernet, 10 Gbit/s", 1.25e9, 50e-6),
)
DEVICE_FLOPS = 20e12  # an assumption for convolutions as small as these
DEVICES = (2, 8, 64)


def cases(cores: int) -> list[Case]:
    """Each number of processes with one thread each, and one process with a thread per core."""
    threads = [(1, cores), *((processes, 1) for processes in PROCESSES)]
    return [Case(*pair, batch_size) for batch_size in BATCH_SIZES for pair in dict.fromkeys(threads)]


def measure_case(case: Case, dataset: str, data_dir: str) -> dict[str, float]:
    """Median seconds of a step with exchange and without, and of an exchange alone."""
    command = [sys.executable, str(PROGRAMS / "scaling.py"), *map(str, case), dataset, data_dir, str(STEPS)]
    [found] = [match for _, line in observe(command).lines if (match := SCALING.search(line))]
    return {**case._asdict(), **{name: float(seconds) for name, seconds in found.groupdict().items()}}


def measure_scaling(dataset: str, data_dir: str) -> dict[str, Any]:
    """Measure all cases."""
    rows, cores = [], usable_cores()
    for case in cases(cores):
        rows.append(measure_case(case, dataset, data_dir))
        print(f"{case}: {1e3 * rows[-1]['step']:.2f} ms per step", flush=True)
    return {"scaling": rows, "cores": cores}


def scaling_table(record: dict[str, Any]) -> str:
    """Time per step and per image, and the share of communication, by processes and batch size."""
    times = ("ms per step", "microseconds per image", "images/s", "exchange of gradients", "an exchange alone, ms")
    rows: list[tuple[object, ...]] = [("processes", "threads each", "batch size, all together", *times)]
    for row in record["scaling"]:
        step, image = row["step"], row["step"] / row["batch_size"]
        computing = (f"{1e3 * step:.1f}", f"{1e6 * image:.0f}", f"{1 / image:,.0f}")
        exchange = (f"{max(0.0, 1 - row['free'] / step):.0%}", f"{1e3 * row['exchange']:.2f}")
        if row["processes"] == 1:
            exchange = ("", "")
        rows.append((row["processes"], row["threads"], row["batch_size"], *computing, *exchange))
    return f"{markdown(rows)}\n\n{record['cores']} cores. {origin(record)}."


def exchange_seconds(devices: int, link: Link) -> float:
    """Seconds of a ring all-reduce of all gradients: each device sends 2 (K - 1) messages of a K-th of them.

    Source: Patarasuk and Yuan (2009), https://doi.org/10.1016/j.jpdc.2008.09.002.
    """
    messages = 2 * (devices - 1)
    return messages * (link.latency + BYTES / devices / link.bytes_a_second)


def paying_batch_size(devices: int, link: Link) -> int:
    """The global batch size from which `devices` are faster than one.

    From there, the computing that they save, B F (1 - 1 / K) seconds, exceeds the exchange.
    """
    seconds_an_image = FLOP_AN_IMAGE / DEVICE_FLOPS
    return round(exchange_seconds(devices, link) / (seconds_an_image * (1 - 1 / devices)))


def model_table() -> str:
    """The exchange per step, and the batch size from which devices pay, by link and number of devices."""
    rows = [("link", "devices", "exchange of a step, ms", "pays from a batch size of")]
    for link, devices in itertools.product(LINKS, DEVICES):
        milliseconds = 1e3 * exchange_seconds(devices, link)
        rows.append((link.name, str(devices), f"{milliseconds:.2f}", f"{paying_batch_size(devices, link):,}"))
    return markdown(rows)
