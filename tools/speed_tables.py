"""The tables of docs/speed.md, from the records of the benchmark."""

import json
import statistics
from pathlib import Path
from typing import Any

from fmnist_lightning.errors import UserError
from tools.markdown import markdown, origin

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
    ("this project in bf16 / Keras", "epoch", "ours bf16-mixed", "keras"),
    ("this project in 32 bits / Keras", "epoch", "ours 32-true", "keras"),
    ("this project in bf16 / Keras without autotuning", "epoch", "ours bf16-mixed", "keras untuned"),
    ("this project in 32 bits / Keras without autotuning", "epoch", "ours 32-true", "keras untuned"),
    ("this project in bf16 / Lightning as tutorials write it", "epoch", "ours bf16-mixed", "idiomatic"),
    ("this project in 32 bits / Lightning as tutorials write it", "epoch", "ours 32-true", "idiomatic"),
    ("training step / its matrix products, 32 bits", "train", "bare 32-true", "floor 32-true"),
    ("training step / its matrix products, bf16", "train", "bare bf16-mixed", "floor bf16-mixed"),
)
STARTS = (
    ("`train.py --help`", "help"),
    ("`import lightning`", "imports"),
    ("`train.py` until after its first training step, imports included", "step"),
    ("`test.py` until its table, five exact metrics on 10,000 images, imports included", "test"),
)


def median_and_range(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def speed_table(record: dict[str, Any]) -> str:
    """Seconds per epoch, images per second and memory of each program, and the ratios."""
    rounds = record["rounds"]
    rows = [(f"an epoch of {IMAGES:,} images", "seconds: median (range)", "images/s", "peak memory, MB")]
    for program, part, label in ROWS:
        if program in rounds[0]:
            seconds = medians(rounds, program, part)
            memory = f"{statistics.median(medians(rounds, program, 'peak_mb')):,.0f}" if part == "epoch" else ""
            rows.append((label, median_and_range(seconds), f"{IMAGES / statistics.median(seconds):,.0f}", memory))
    ratios = [("ratio of times, median of the rounds", "")]
    for label, part, above, below in RATIOS:
        if above in rounds[0] and below in rounds[0]:
            ratios.append((label, f"{ratio(rounds, part, above, below):.2f}"))
    return f"{markdown(rows)}\n\n{markdown(ratios)}\n\n{origin(record)}; {len(rounds)} rounds."


def trainer_table(record: dict[str, Any]) -> str:
    """Seconds per epoch of the bare loop and of the Trainer, and their ratio."""
    rows = [("", "bare loop, s", "Trainer, s", "ratio: median (range)", "pairs")]
    for precision, pairs in record["pairs"].items():
        bare, trainer = (f"{statistics.median(pair[name] for pair in pairs):.2f}" for name in ("bare", "trainer"))
        ratios = [pair["trainer"] / pair["bare"] for pair in pairs]
        rows.append((precision, bare, trainer, median_and_range(ratios), str(len(pairs))))
    return f"{markdown(rows)}\n\n{origin(record)}."


def startup_table(record: dict[str, Any]) -> str:
    """Seconds of each start, and the memory of a training before its first step."""
    starts = record["startup"]
    rows = [("start", "seconds, median", "beyond `import lightning`")]
    for label, name in STARTS:
        seconds, imports = starts[name]["seconds"], starts["imports"]["seconds"]
        beyond = statistics.median(one - other for one, other in zip(seconds, imports, strict=True))
        rows.append((label, f"{statistics.median(seconds):.1f}", f"{beyond:.1f}" if name in ("step", "test") else ""))
    memory = statistics.median(starts["data"]["peak_mb"])
    return f"{markdown(rows)}\n\nImports and data alone take {memory:,.0f} MB. {origin(record)}."


def growth_table(record: dict[str, Any]) -> str:
    """Seconds per 54,000 images and memory, by amount of data and by batch size."""
    rows = [("data", "batch size", "s per 54,000 images", "peak memory, MB")]
    for row in record["growth"]:
        rows.append((f"{row['copies']} x", row["batch_size"], f"{row['seconds']:.2f}", f"{row['peak_mb']:,.0f}"))
    return f"{markdown(rows)}\n\n{record['precision']}; {origin(record)}."


def ratio(rounds: list[dict[str, Any]], part: str, above: str, below: str) -> float:
    """The median over rounds of one program's seconds over another's."""
    return statistics.median(
        statistics.median(measured[above][part]) / statistics.median(measured[below][part]) for measured in rounds
    )


def medians(rounds: list[dict[str, Any]], program: str, part: str) -> list[float]:
    return [statistics.median(measured[program][part]) for measured in rounds if measured[program][part]]


def read_record(path: Path) -> dict[str, Any]:
    """A benchmark's record. Raises UserError if there is none."""
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"cannot read the benchmark record {path}: {error} (make one with `make bench`)") from error
    return record
