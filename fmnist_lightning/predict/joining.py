"""Join the parts that the processes of a prediction wrote into one file."""

import shutil
import sys
from pathlib import Path

from fmnist_lightning.errors import UserError
from fmnist_lightning.predict.shards import PLAN, Count, Shard, name_faults, parts_of, raw_records, read_plan
from fmnist_lightning.runs.files import atomic_write
from fmnist_lightning.runs.options import JoinOptions


def join(options: JoinOptions) -> None:
    """Join the parts. Raises UserError if one is missing or damaged."""
    folder, file = Path(options.folder), Path(options.file)
    plan = read_plan(folder)
    kind, parts = plan["format"], parts_of(folder, plan)
    if missing := [part.name for part in parts if not part.is_file()]:
        raise UserError(
            f"cannot join {folder}: {len(missing)} of {len(parts)} parts are missing, the first of them {missing[0]} "
            f"(repeat the command that started them)"
        )
    if file.resolve() in {path.resolve() for path in (folder / PLAN, *parts)}:
        raise UserError(f"cannot write --file {file}: it is one of the files that are joined (name another)")
    header = next(raw_records(parts[0], kind), (b"", 0))[0] if kind == "csv" else b""
    bounds = [Shard(number, len(parts)).of(plan["files"]) for number in range(1, len(parts) + 1)]
    counts = [checked(part, kind, header, end - start) for part, (start, end) in zip(parts, bounds, strict=True)]
    with atomic_write(file) as target:
        target.write(header)
        for part in parts:
            with part.open("rb") as source:
                source.seek(len(header))
                shutil.copyfileobj(source, target)
    print(f"{file}: {sum(count.rows for count in counts):,} rows of {plan['files']:,} files")
    if faults := sum(count.faults for count in counts):
        print(f"{faults:,} of the files could not be read; their rows say why", file=sys.stderr)


def checked(part: Path, kind: str, header: bytes, files: int) -> Count:
    """Count rows, print faults. Raises UserError if a part is damaged or too short."""
    hint = f"delete it, and repeat the command that started {part.parent}"
    with part.open("rb") as file:
        if kind == "csv" and (not header or file.read(len(header)) != header):
            raise UserError(f"cannot join {part}: it does not begin with the header of all parts ({hint})")
    if sum(len(record) for record, _ in raw_records(part, kind)) < part.stat().st_size:
        raise UserError(f"cannot join {part}: it ends within a row ({hint})")
    count = name_faults([part], kind)
    if count.rows < files:
        raise UserError(f"cannot join {part}: it has {count.rows:,} rows for {files:,} files ({hint})")
    return count
