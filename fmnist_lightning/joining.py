"""One file of the parts that processes wrote."""

import shutil
import sys
from pathlib import Path

from fmnist_lightning.errors import UserError
from fmnist_lightning.files import atomic_write
from fmnist_lightning.shares import PLAN, name_faults, parts_of, raw_records, read_plan


def join(*, folder: str, file: str) -> None:
    """Join the parts that scripts/predict.py --output wrote into one file, in the order of the list.

    Args:
        folder: What --output named.
        file: File to write. It takes its name when it is whole.
    """
    plan = read_plan(Path(folder))
    kind, parts = plan["format"], parts_of(Path(folder), plan)
    if missing := [part.name for part in parts if not part.is_file()]:
        raise UserError(
            f"{folder} is not complete: {len(missing)} of {len(parts)} parts are still to be written, the first of "
            f"them {missing[0]}; run the command that began them again"
        )
    if Path(file).resolve() in {path.resolve() for path in (Path(folder, PLAN), *parts)}:
        raise UserError(f"--file {file} is one of the files that are joined, and would be lost: name another")
    with atomic_write(Path(file)) as target:
        for part in parts:
            with part.open("rb") as source:
                if kind == "csv" and part != parts[0]:
                    source.seek(len(next(raw_records(part, kind))[0]))  # one header is enough
                shutil.copyfileobj(source, target)
    rows, faults = name_faults(parts, kind)
    print(f"{file}: {rows:,} rows of {plan['files']:,} files")
    if faults:
        print(f"{faults:,} of the files could not be read; their rows say why", file=sys.stderr)
