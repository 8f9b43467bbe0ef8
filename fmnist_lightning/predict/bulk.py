"""Predict into a folder with several processes; shards.py describes the files."""

import sys
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment

from fmnist_lightning.cli import is_rank_zero
from fmnist_lightning.errors import ProcessFailedError, UserError, advising
from fmnist_lightning.models.pretrained import weights_digest
from fmnist_lightning.predict.classifier import PictureClassifier, load_classifier
from fmnist_lightning.predict.inputs import STDIN, Fault, Picture, Result, expand_all, read_remaining
from fmnist_lightning.predict.rows import PART_FORMATS, fault_line, header, row_line, rows_of, warn_of_weights
from fmnist_lightning.predict.shards import (
    Part,
    Shard,
    agree_on_plan,
    listing,
    name_faults,
    parse_shard,
    parts_of,
    read_plan,
    remaining,
    rows_in,
)
from fmnist_lightning.runs.options import PredictOptions
from fmnist_lightning.training.devices import cluster_environment, launch

RESUME = "the same command resumes"
RESTARTS = 2  # of all processes, if one is killed


def predict_into(options: PredictOptions) -> None:
    """Write this process's shard, or start `options.devices` processes for all shards.

    Raises UserError if the options don't fit or another process is in the way. The process that started all others
    also raises it if a picture can't be read.
    """
    check(options)
    environment = cluster_environment()
    if environment is None and options.devices > 1:
        launch_until_done(options.devices)
        report(Path(str(options.output)))
        return
    shard = shard_of_process(options, environment)
    with advising(RESUME):
        write_shard(options, shard, environment)
    if environment is None:  # else the launching process or scripts/join.py reports: a fault must not end the others
        report(Path(str(options.output)), shard)


def launch_until_done(processes: int) -> None:
    """Start all processes, and up to RESTARTS times again if a signal ended one."""
    for restarts in range(RESTARTS + 1):
        try:
            launch(processes, hint=RESUME)
        except ProcessFailedError as failure:
            if failure.exit_status <= 128 or restarts == RESTARTS:
                raise
            print(f"{failure}; restarting all", file=sys.stderr)
        else:
            return


def check(options: PredictOptions) -> None:
    """Raise UserError if options don't go with `--output`."""
    if options.format not in PART_FORMATS:
        raise UserError(f"--output needs --format json or csv, not {options.format}")
    if STDIN in options.images:
        raise UserError("cannot use standard input with --output: processes can't share or reread it (name files)")
    if options.save_inputs:
        raise UserError("cannot use --save_inputs with --output: only one process can number the pictures")
    if options.shard and options.devices > 1:
        raise UserError(f"cannot use --shard {options.shard} with --devices {options.devices}: a shard has one process")


def shard_of_process(options: PredictOptions, environment: ClusterEnvironment | None) -> Shard:
    if environment and options.shard:
        raise UserError(f"cannot use --shard {options.shard} with torchrun or srun, which set the shard (leave it out)")
    if environment:
        total = environment.world_size()
        if options.devices not in (1, total):
            raise UserError(f"cannot use --devices {options.devices} in {total} started processes (leave it out)")
        return Shard(environment.global_rank() + 1, total)
    return parse_shard(options.shard) if options.shard else Shard(1, 1)


def write_shard(options: PredictOptions, shard: Shard, environment: ClusterEnvironment | None) -> None:
    """Write the rows of a shard that its part does not have yet."""
    folder = Path(str(options.output))
    classify = load_classifier(
        options.weights,
        device=device_name(options.accelerator, environment),
        batch_size=options.batch_size,
        tta=options.tta,
        log_dir=options.log_dir,
    )
    if is_rank_zero():
        warn_of_weights(classify.card, tta=options.tta)
    folder.mkdir(parents=True, exist_ok=True)  # first, so that a pattern that matches its parent always does
    names = expand_all(options.images, options.output)
    files = listing(names)
    kept = {name: getattr(options, name) for name in ("format", "top_k", "invert", "tta")}
    agree_on_plan(folder, {**files, "shards": shard.total, **kept, "weights": weights_digest(classify.net)})
    part = Part(folder, shard, options.format, header(options.format, options.top_k, errors=True))
    with part.locked(), warnings.catch_warnings():
        # Pillow warns of damaged EXIF data and the like without the file's name.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        if part.path.exists():
            return
        with part.opened():
            start, end = shard.of(len(names))
            rest, images_done = remaining(names[start:end], rows_in(part.partial, options.format), part.partial)
            for text in batch_lines(read_remaining(rest, images_done, options.invert), classify, options):
                part.write(text)
        if listing(expand_all(options.images, options.output)) != files:
            raise UserError(f"the files have changed since {folder} was started (start anew in another folder)")
        part.finish()


def device_name(accelerator: str, environment: ClusterEnvironment | None) -> str:
    """The accelerator; this process's own GPU if there are several."""
    gpus = torch.cuda.device_count()
    if environment is None or gpus < 2 or accelerator not in ("auto", "gpu", "cuda"):
        return accelerator
    return f"cuda:{environment.local_rank() % gpus}"


def batch_lines(results: Iterator[Result], classify: PictureClassifier, options: PredictOptions) -> Iterator[str]:
    """The rows of each batch, in the order of the results."""
    kind, top_k = options.format, options.top_k
    while batch := list(islice(results, classify.batch_size)):
        rows = rows_of([result for result in batch if isinstance(result, Picture)], classify, top_k)
        yield "".join(
            fault_line(kind, result, top_k) if isinstance(result, Fault) else row_line(kind, next(rows), errors=True)
            for result in batch
        )


def report(folder: Path, shard: Shard | None = None) -> None:
    """List faults in all parts or a shard's. Raises UserError if there are any."""
    plan: dict[str, Any] = read_plan(folder)
    parts = [folder / shard.part(plan["format"])] if shard else parts_of(folder, plan)
    print(f"written: {folder}, {len(parts)} of {plan['shards']} parts of {plan['files']:,} files", file=sys.stderr)
    if faults := name_faults(parts, plan["format"]).faults:
        raise UserError(f"cannot read {faults:,} of the pictures")
