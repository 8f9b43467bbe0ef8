"""The tables of docs/speed.md, from the records of the benchmark."""

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fmnist_lightning.errors import UserError

IMAGES = 54000  # in an epoch of the original's training: 60,000 without its validation split
ROWS = (
    ("keras", "epoch", "Keras on TensorFlow, the original's listing"),
    ("keras untuned", "epoch", "the same without the autotuning of its data pipeline, which sometimes waits"),
    ("idiomatic", "epoch", "Lightning as tutorials write it"),
    ("ours 32-true", "epoch", "**this project**, 32 bits"),
    ("ours bf16-mixed", "epoch", "**this project**, bf16"),
    ("bare 32-true", "epoch", "this project's model and data without Lightning, 32 bits"),
    ("bare bf16-mixed", "epoch", "the same, bf16"),
    ("bare 32-true", "train", "its training steps alone, 32 bits"),
    ("bare bf16-mixed", "train", "its training steps alone, bf16"),
    ("floor 32-true", "train", "convolutions and dense products alone, 32 bits"),
    ("floor bf16-mixed", "train", "convolutions and dense products alone, bf16"),
)
RATIOS = (
    ("this project in bf16 / Keras", ("ours bf16-mixed", "epoch"), ("keras", "epoch")),
    ("this project in 32 bits / Keras", ("ours 32-true", "epoch"), ("keras", "epoch")),
    ("this project in bf16 / Keras without autotuning", ("ours bf16-mixed", "epoch"), ("keras untuned", "epoch")),
    ("this project in 32 bits / Keras without autotuning", ("ours 32-true", "epoch"), ("keras untuned", "epoch")),
    ("this project in bf16 / Lightning as tutorials write it", ("ours bf16-mixed", "epoch"), ("idiomatic", "epoch")),
    ("this project in 32 bits / Lightning as tutorials write it", ("ours 32-true", "epoch"), ("idiomatic", "epoch")),
    ("training step / its matrix products, 32 bits", ("bare 32-true", "train"), ("floor 32-true", "train")),
    (
        "training step / its matrix products, bf16",
        ("bare bf16-mixed", "train"),
        ("floor bf16-mixed", "train"),
    ),
)
STARTS = (
    ("`train.py --help`", "help"),
    ("`import lightning`", "imports"),
    ("`train.py` until after its first training step, imports included", "step"),
    ("`test.py` until its table, five exact metrics on 10,000 images, imports included", "test"),
)


def speed_table(record: dict[str, Any]) -> str:
    """Seconds per epoch, images per second and memory of each program, and the ratios."""
    rounds = record["rounds"]
    lines = [
        f"| an epoch of {IMAGES:,} images | seconds: median (range) | images/s | peak memory, MB |",
        "|---|---|---|---|",
    ]
    for program, part, label in ROWS:
        if program not in rounds[0]:
            continue
        seconds = medians(rounds, program, part)
        median = statistics.median(seconds)
        memory = f"{statistics.median(medians(rounds, program, 'peak_mb')):,.0f}" if part == "epoch" else ""
        spread = f"{median:.2f} ({min(seconds):.2f} to {max(seconds):.2f})"
        lines.append(f"| {label} | {spread} | {IMAGES / median:,.0f} | {memory} |")
    lines += ["", "| ratio of times, median of the rounds | |", "|---|---|"]
    for label, above, below in RATIOS:
        value = ratio(rounds, above, below)
        if value is not None:
            lines.append(f"| {label} | {value:.2f} |")
    return "\n".join([*lines, "", f"{origin(record)}; {len(rounds)} rounds."])


def trainer_table(record: dict[str, Any]) -> str:
    """Seconds per epoch of the bare loop and of the Trainer, and their ratio."""
    lines = ["| | bare loop, s | Trainer, s | ratio: median (range) | pairs |", "|---|---|---|---|---|"]
    for precision, pairs in record["pairs"].items():
        bare, trainer = (statistics.median(pair[name] for pair in pairs) for name in ("bare", "trainer"))
        ratios = [pair["trainer"] / pair["bare"] for pair in pairs]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        lines.append(f"| {precision} | {bare:.2f} | {trainer:.2f} | {spread} | {len(pairs)} |")
    return "\n".join([*lines, "", f"{origin(record)}."])


def startup_table(record: dict[str, Any]) -> str:
    """Seconds of each start, and the memory of a training before its first step."""
    starts = record["startup"]
    lines = ["| start | seconds, median | beyond `import lightning` |", "|---|---|---|"]
    for label, name in STARTS:
        seconds, imports = starts[name]["seconds"], starts["imports"]["seconds"]
        beyond = statistics.median(one - other for one, other in zip(seconds, imports, strict=True))
        shown = f"{beyond:.1f}" if name in ("step", "test") else ""
        lines.append(f"| {label} | {statistics.median(seconds):.1f} | {shown} |")
    memory = statistics.median(starts["data"]["peak_mb"])
    return "\n".join([*lines, "", f"Imports and data alone take {memory:,.0f} MB. {origin(record)}."])


def origin(record: dict[str, Any]) -> str:
    """Machine, versions, data and commit of a record, in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    commit = record["git"]["commit"][:7] + (" with uncommitted changes" if record["git"]["dirty"] else "")
    return f"{record['device']}; {versions}; {record['dataset']}; commit {commit}"


def growth_table(record: dict[str, Any]) -> str:
    """Seconds per 54,000 images and memory, by amount of data and by batch size."""
    lines = ["| data | batch size | s per 54,000 images | peak memory, MB |", "|---|---|---|---|"]
    lines += [
        f"| {row['copies']} x | {row['batch_size']} | {row['seconds']:.2f} | {row['peak_mb']:,.0f} |"
        for row in record["growth"]
    ]
    return "\n".join([*lines, "", f"{record['precision']}; {origin(record)}."])


def ratio(rounds: list[dict[str, Any]], above: tuple[str, str], below: tuple[str, str]) -> float | None:
    """The median over rounds of one program's seconds over another's; None if one of them was not measured."""
    (program, part), (peer, peer_part) = above, below
    if program not in rounds[0] or peer not in rounds[0]:
        return None
    return statistics.median(
        statistics.median(measured[program][part]) / statistics.median(measured[peer][peer_part]) for measured in rounds
    )


def medians(rounds: Iterable[dict[str, Any]], program: str, part: str) -> list[float]:
    return [statistics.median(measured[program][part]) for measured in rounds if measured[program][part]]


def read_record(path: Path) -> dict[str, Any]:
    """A benchmark's record. Raises UserError if there is none."""
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"cannot read the benchmark record {path}: {error} (make one with `make bench`)") from error
    return record
