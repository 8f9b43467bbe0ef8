"""Prediction into a folder: by several processes, resumable; shares.py says how. Heavy imports are in the functions."""

import sys
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from fmnist_lightning.errors import ProcessFailedError, UserError, advising
from fmnist_lightning.models.pretrained import weights_digest
from fmnist_lightning.predict.classifier import PictureClassifier, load_classifier
from fmnist_lightning.predict.inputs import Fault, Picture, Result, expand_all, read_behind
from fmnist_lightning.predict.overlap import refuse_overlap
from fmnist_lightning.predict.rows import PART_FORMATS, PartFormat, rows_of, warn_of_weights
from fmnist_lightning.predict.shards import (
    PARTIAL,
    PLAN,
    Part,
    Share,
    agree_on_plan,
    left,
    listing,
    name_faults,
    parse_share,
    parts_of,
    read_plan,
    rows_in,
    share_of,
)
from fmnist_lightning.ranks import Rank, is_first, launched
from fmnist_lightning.runs.options import PredictOptions
from fmnist_lightning.training.launching import launch

GO_ON = "the same command goes on"
RESTARTS = 2  # of all processes, when one is killed


def predict_into(options: PredictOptions) -> None:
    """Write the rows of this process's share; of all shares, where `options.devices` processes are to be started.

    Raises UserError where something is in the way, or, by whoever started it all, where a picture could not be read.
    """
    check(options)
    place = launched()
    if place is None and options.devices > 1:
        launch_until_done(options.devices)
        report(Path(str(options.output)))
        return
    share = share_of_process(options, place)
    with advising(GO_ON):
        write_share(options, share, place)
    if place is None:  # else who started the processes tells, or scripts/join.py, and a fault must not end the others
        report(Path(str(options.output)), share)


def launch_until_done(processes: int) -> None:
    """Start all processes, and start them again where one was killed or stopped, RESTARTS times at most."""
    for restarts in range(RESTARTS + 1):
        try:
            launch(processes)
        except ProcessFailedError as failure:
            if not failure.by_signal or restarts == RESTARTS:
                raise failure.advised(GO_ON) from None
            print(f"{failure}; all are started again", file=sys.stderr)
        else:
            return


def check(options: PredictOptions) -> None:
    """Raise UserError where options don't go with a folder of parts."""
    if options.format not in PART_FORMATS:
        raise UserError(f"--output needs --format json or csv, not {options.format}")
    if "-" in options.images:
        raise UserError("standard input can't be shared or read again: --output needs files")
    if options.save_inputs:
        raise UserError("--save_inputs does not go with --output: what the net sees is numbered by one process")
    if options.shard and options.devices > 1:
        raise UserError(
            f"--shard {options.shard} is that of one process: take either it or --devices {options.devices}"
        )
    refuse_overlap("--output", str(options.output), lambda: names_written(options), options.images)


def names_written(options: PredictOptions) -> list[str]:
    """Of the files in the folder of parts."""
    place = launched()
    share = share_of_process(options, place) if place or options.shard else Share(1, options.devices)
    part = share.part(options.format)
    return [PLAN, f".{PLAN}.lock", part, f".{part}.lock", part + PARTIAL]


def share_of_process(options: PredictOptions, place: Rank | None) -> "Share":
    if place and options.shard:
        raise UserError(f"--shard {options.shard} beside torchrun or srun, which say the share: leave it out")
    if place and options.devices not in (1, place.world_size):
        raise UserError(f"--devices {options.devices}, and {place.world_size} processes were started: leave it out")
    if place:
        return Share(place.rank + 1, place.world_size)
    return parse_share(options.shard) if options.shard else Share(1, 1)


def write_share(options: PredictOptions, share: "Share", place: Rank | None) -> None:
    """Go on with this share's part to its end."""
    classify = load_classifier(
        options.weights,
        device=device_name(options.accelerator, place),
        batch_size=options.batch_size,
        tta=options.tta,
        log_dir=options.log_dir,
    )
    if is_first():
        warn_of_weights(classify.card, tta=options.tta)
    folder, plan = Path(str(options.output)), plan_of(options, classify, share, listing(expand_all(options.images)))
    agree_on_plan(folder, plan)
    style = PART_FORMATS[options.format]
    part = Part(folder, share, options.format, style.header(options.top_k))
    with part.locked(), warnings.catch_warnings():
        # Of damaged EXIF data and the like, without a file's name.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        if part.path.exists():
            return
        with part.opened():
            names = share_of(expand_all(options.images), share, plan["files"])
            names, images_done = left(names, rows_in(part.partial, options.format), part.partial)
            results = read_behind(names, images_done, options.invert)
            for text in texts(results, classify, style, options.top_k):
                part.write(text)
        if listing(expand_all(options.images)) != {name: plan[name] for name in ("files", "list")}:
            raise UserError(f"the files have changed since {folder} was begun: name another folder, and begin anew")
        part.finish()


def plan_of(
    options: PredictOptions, classify: "PictureClassifier", share: "Share", files: dict[str, Any]
) -> dict[str, Any]:
    """What all processes, and those that go on, must have in common."""
    kept = {name: getattr(options, name) for name in ("format", "top_k", "invert", "tta")}
    return {**files, "shares": share.total, **kept, "weights": weights_digest(classify.net)}


def device_name(accelerator: str, place: Rank | None) -> str:
    """The accelerator; where there are several GPUs, that of this process."""
    gpus = torch.cuda.device_count()
    if place is None or gpus < 2 or accelerator not in ("auto", "gpu", "cuda"):
        return accelerator
    return f"cuda:{place.local_rank % gpus}"


def texts(results: "Iterator[Result]", classify: "PictureClassifier", style: PartFormat, top_k: int) -> Iterator[str]:
    """The rows of each batch, in the order of the results."""
    while chunk := list(islice(results, classify.batch_size)):
        rows = rows_of([result for result in chunk if isinstance(result, Picture)], classify, top_k)
        yield "".join(
            style.fault(result.name, result.reason, top_k) if isinstance(result, Fault) else style.line(next(rows))
            for result in chunk
        )


def report(folder: Path, share: "Share | None" = None) -> None:
    """Name what could not be read, in all parts or in that of a share; raise UserError where there is such."""
    plan = read_plan(folder)
    parts = [folder / share.part(plan["format"])] if share else parts_of(folder, plan)
    print(f"written: {folder}, {len(parts)} of {plan['shares']} parts of {plan['files']:,} files", file=sys.stderr)
    if faults := name_faults(parts, plan["format"]).faults:
        raise UserError(f"{faults:,} of the pictures could not be read")
