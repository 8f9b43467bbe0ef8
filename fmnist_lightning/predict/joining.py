"""Join the parts that the processes of a prediction wrote into one file."""

import shutil
from pathlib import Path

from fmnist_lightning.errors import UserError
from fmnist_lightning.predict.shards import PLAN, RESTART, Shard, name_faults, parts_of, raw_records, read_plan
from fmnist_lightning.runs.files import atomic_write
from fmnist_lightning.runs.options import JoinOptions


def join(options: JoinOptions) -> None:
    """Join the parts. Raises UserError if one is missing or damaged."""
    folder, file = Path(options.folder), Path(options.file)
    plan = read_plan(folder)
    kind, parts = plan["format"], parts_of(folder, plan)
    if missing := [part.name for part in parts if not part.is_file()]:
        found = f"{len(missing)} of {len(parts)} parts are missing, the first of them {missing[0]}"
        raise UserError(f"cannot join {folder}: {found} (repeat the command that writes them)")
    if file.resolve() in {path.resolve() for path in (folder / PLAN, *parts)}:
        raise UserError(f"cannot write --file {file}: it is one of the files that are joined (name another)")
    header = next(raw_records(parts[0], kind), b"") if kind == "csv" else b""
    rows = 0
    for number, part in enumerate(parts, 1):
        start, end = Shard(number, len(parts)).of(plan["files"])
        rows += checked(part, kind, header, end - start)
    with atomic_write(file) as target:
        target.write(header)
        for part in parts:
            with part.open("rb") as source:
                source.seek(len(header))
                shutil.copyfileobj(source, target)
    print(f"{file}: {rows:,} rows of {plan['files']:,} files")


def checked(part: Path, kind: str, header: bytes, files: int) -> int:
    """Print faults, count rows. Raises UserError if a part is damaged or too short."""
    with part.open("rb") as file:
        if kind == "csv" and (not header or file.read(len(header)) != header):
            raise UserError(f"cannot join {part}: it does not begin with the header of all parts ({RESTART})")
    if sum(map(len, raw_records(part, kind))) < part.stat().st_size:
        raise UserError(f"cannot join {part}: it ends within a row ({RESTART})")
    rows, _ = name_faults([part], kind)
    if rows < files:
        raise UserError(f"cannot join {part}: it has {rows:,} rows for {files:,} files ({RESTART})")
    return rows
