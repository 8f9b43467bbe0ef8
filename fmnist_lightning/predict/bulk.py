"""Predict into a folder with several processes; shards.py describes the files."""

import sys
from pathlib import Path

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment

from fmnist_lightning.errors import UserError, advising
from fmnist_lightning.models.pretrained import weights_digest
from fmnist_lightning.predict import shards
from fmnist_lightning.predict.inputs import STDIN, expand_all, read_remaining, report_left_out
from fmnist_lightning.predict.rows import PART_FORMATS, RowFormat, classified, prepare_classifier
from fmnist_lightning.predict.shards import Shard
from fmnist_lightning.runs.files import fsync_folder, locked, make_folder, writing
from fmnist_lightning.runs.folders import explain_write_errors
from fmnist_lightning.runs.options import PredictOptions
from fmnist_lightning.training.devices import cluster_environment, launch

RESUME = "the same command resumes"
AGAIN = "the same command again"
PREPARATION = 2  # how pictures become images, and rows; a folder that began with another is not resumed
RESTARTS = 2  # of all processes, if one is killed


def predict_into(options: PredictOptions, folder: Path) -> None:
    """Write this process's shard, or start `options.devices` processes for all shards.

    Raises UserError if the options don't fit or another process is in the way. The process that started all others
    also raises it if a picture can't be read.
    """
    if options.format not in PART_FORMATS or STDIN in options.images or options.save_inputs:
        raise UserError("--output needs --format json or csv, the names of files, and no --save_inputs")
    environment = cluster_environment()
    if options.shard and (environment or options.devices > 1):
        raise UserError(f"cannot use --shard {options.shard}: --devices, torchrun or srun set the shard (leave it out)")
    if environment is None and options.devices > 1:
        launch_until_done(options.devices)
        report(folder)
        return
    if environment:
        shard = Shard(environment.global_rank() + 1, environment.world_size())
    else:
        shard = shards.parse_shard(options.shard) if options.shard else Shard(1, 1)
    with explain_write_errors(folder, AGAIN), advising(RESUME):
        write_shard(options, folder, shard, environment)
    if environment is None:  # else the launching process or the join command reports: a fault must not end the others
        report(folder, shard)


def launch_until_done(processes: int) -> None:
    """Start all processes, and up to RESTARTS times again if a signal ended one."""
    for restarts in range(RESTARTS + 1):
        try:
            launch(processes, hint=RESUME)
            return
        except UserError as failure:
            if failure.exit_status <= 128 or restarts == RESTARTS:
                raise
            print(f"{failure}; restarting all", file=sys.stderr)


def write_shard(
    options: PredictOptions, folder: Path, shard: Shard, environment: ClusterEnvironment | None = None
) -> None:
    """Write the rows of a shard that its part does not have yet."""
    device, gpus = str(options.accelerator), torch.cuda.device_count()
    if environment and gpus > 1 and device in ("auto", "gpu", "cuda"):
        device = f"cuda:{environment.local_rank() % gpus}"  # each rank has its own
    classify = prepare_classifier(options, device)
    make_folder(folder)  # first, so that a pattern that matches its parent always does
    left_out: dict[str, list[str]] = {}
    names = expand_all(options.images, options.output, left_out)
    if shard.number == 1:  # all processes find the same
        report_left_out(left_out)
    files = shards.listing(names)
    kept = {name: getattr(options, name) for name in ("format", "top_k", "invert", "tta")}
    model = {"weights": weights_digest(classify.net), "data": shards.data_digest(classify.info)}
    shards.agree_on_plan(folder, {**files, "shards": shard.total, "preparation": PREPARATION, **kept, **model})
    kind = options.format
    rows_format = RowFormat(kind, options.top_k, classify.info, errors=True)
    part = folder / shard.part(kind)
    partial = part.with_name(part.name + shards.PARTIAL)
    lock = part.with_name(f".{part.name}.lock")
    with locked(lock, f"another process writes {partial} (wait until it ends, or stop it)"):
        if part.exists():
            return
        with shards.open_part(partial, kind, rows_format.header()) as file:
            start, end = shard.of(len(names))
            rest, images_done = shards.remaining(names[start:end], shards.rows_in(partial, kind), partial)
            results = read_remaining(rest, images_done, classify.info, options.invert)
            for rows in classified(results, classify, options.top_k):
                shards.write_rows(file, "".join(map(rows_format.line, rows)))
        if shards.listing(expand_all(options.images, options.output)) != files:
            raise UserError(f"the files have changed since {folder} was started (start anew in another folder)")
        with writing(part):
            partial.replace(part)
            fsync_folder(folder)


def report(folder: Path, shard: Shard | None = None) -> None:
    """List faults in all parts or a shard's. Raises UserError if there are any."""
    plan = shards.read_plan(folder)
    parts = [folder / shard.part(plan["format"])] if shard else shards.parts_of(folder, plan)
    print(f"written: {folder}, {len(parts)} of {plan['shards']} parts of {plan['files']:,} files", file=sys.stderr)
    _, faults = shards.name_faults(parts, plan["format"])
    if faults:
        raise UserError(f"cannot read {faults:,} of the pictures")
