"""One file of the parts that processes wrote."""

import shutil
import sys
from pathlib import Path

from fmnist_lightning.errors import UserError
from fmnist_lightning.predict.shards import PLAN, Share, Told, name_faults, parts_of, raw_records, read_plan
from fmnist_lightning.runs.files import atomic_write
from fmnist_lightning.runs.options import JoinOptions


def join(options: JoinOptions) -> None:
    """Join the parts. Raises UserError if one is missing or damaged."""
    folder, file = options.folder, options.file
    plan = read_plan(Path(folder))
    kind, parts = plan["format"], parts_of(Path(folder), plan)
    if missing := [part.name for part in parts if not part.is_file()]:
        raise UserError(
            f"{folder} is not complete: {len(missing)} of {len(parts)} parts are still to be written, the first of "
            f"them {missing[0]}; run the command that began them again"
        )
    if Path(file).resolve() in {path.resolve() for path in (Path(folder, PLAN), *parts)}:
        raise UserError(f"--file {file} is one of the files that are joined, and would be lost: name another")
    header = next(raw_records(parts[0], kind), (b"", 0))[0] if kind == "csv" else b""
    bounds = [Share(number, len(parts)).of(plan["files"]) for number in range(1, len(parts) + 1)]
    told = [checked(part, kind, header, end - start) for part, (start, end) in zip(parts, bounds, strict=True)]
    with atomic_write(Path(file)) as target:
        target.write(header)  # one is enough
        for part in parts:
            with part.open("rb") as source:
                source.seek(len(header))
                shutil.copyfileobj(source, target)
    print(f"{file}: {sum(part.rows for part in told):,} rows of {plan['files']:,} files")
    if faults := sum(part.faults for part in told):
        print(f"{faults:,} of the files could not be read; their rows say why", file=sys.stderr)


def checked(part: Path, kind: str, header: bytes, files: int) -> Told:
    """What a part holds; its faults are named. Raises UserError where it was damaged, or has rows of too few files."""
    cure = f"delete it, and run the command that began {part.parent} again"
    with part.open("rb") as file:
        if kind == "csv" and (not header or file.read(len(header)) != header):
            raise UserError(f"{part} does not begin with the header of all parts: {cure}")
    if sum(len(record) for record, _ in raw_records(part, kind)) < part.stat().st_size:
        raise UserError(f"{part} ends within a row: {cure}")
    told = name_faults([part], kind)
    if told.rows < files:
        raise UserError(f"{part} has {told.rows:,} rows; expected one for each of {files:,} files at least: {cure}")
    return told
