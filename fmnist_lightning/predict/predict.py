"""The predict command: classify a user's pictures and print a row for each."""

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from fmnist_lightning.data.pictures import SUFFIXES
from fmnist_lightning.errors import UserError, output_fault
from fmnist_lightning.predict.inputs import IDX_NAME, Fault, Result, expand_all, read_all, real, report_left_out
from fmnist_lightning.predict.rows import RowFormat, classified, fault_message, prepare_classifier
from fmnist_lightning.runs.files import atomic_write
from fmnist_lightning.runs.options import PredictOptions

DELAY = 1.0  # seconds until there is a progress bar
MAX_NAME = 100  # characters of a picture's name that its saved input keeps; file systems take 255 bytes


def predict(options: PredictOptions) -> None:
    """Print or write the class of each picture. Raises UserError if one is unreadable."""
    if options.output is not None:
        # Lightning, which starts the processes, takes 4 s to import; the rest of the program takes 2 s.
        from fmnist_lightning.predict.bulk import predict_into

        predict_into(options, Path(options.output))
        return
    if options.devices > 1 or options.shard:
        raise UserError("--devices and --shard need --output FOLDER, in which each process writes its own file")
    left_out: dict[str, list[str]] = {}
    names = expand_all(options.images, left_out=left_out)
    report_left_out(left_out)
    if options.save_inputs is not None:
        check_save_folder(options.save_inputs, options.images, names)
    classify = prepare_classifier(options, options.accelerator)
    results = read_all(names, classify.info, options.invert)
    if options.save_inputs is not None:
        results = saving(results, Path(options.save_inputs))
    rows_format = RowFormat(options.format, options.top_k, classify.info)
    faults = total = 0
    print(rows_format.header(), end="", flush=True)
    with progress_bar(results, names) as bar:
        for rows in classified(bar, classify, options.top_k):
            lines = [rows_format.line(row) for row in rows if "error" not in row]
            print("".join(lines), end="", flush=True)
            if output_fault() and options.save_inputs is None:
                return  # nobody reads the rest, as after `head`
            for row in rows:
                if "error" in row:
                    tqdm.write(fault_message(row), file=sys.stderr)  # above the progress bar
            faults += len(rows) - len(lines)
            total += len(rows)
    if faults:
        raise UserError(f"cannot read {faults:,} of {total:,} pictures")


def check_save_folder(folder: str, images: Iterable[str], names: Iterable[str | Fault]) -> None:
    """Raise UserError if pictures saved in the folder would be input, now or later."""
    path = real(folder)
    read_now = {real(Path(name).parent) for name in names if not isinstance(name, Fault)}
    read_later = [real(image) for image in images if Path(image).is_dir()]
    if any(parent.is_relative_to(path) for parent in read_now) or any(map(path.is_relative_to, read_later)):
        raise UserError(f"cannot write --save_inputs to {folder}: its pictures are read (name another folder)")


def saving(results: Iterable[Result], folder: Path) -> Iterator[Result]:
    """Write each image to a file NUMBER_NAME.png in passing; names may be equal."""
    number = 0
    for result in results:
        if not isinstance(result, Fault):
            path = Path(result.name)
            stem = path.stem if path.suffix.lower() in SUFFIXES else path.name
            kept = re.sub(r"[^\w.\[\]-]", "_", stem, flags=re.ASCII)[-MAX_NAME:]
            with atomic_write(folder / f"{number:06d}_{kept}.png") as file:
                # (H, W), or (H, W, 3): pictures become images of 1 or 3 channels only.
                pixels = result.image[0] if len(result.image) == 1 else result.image.transpose(1, 2, 0)
                Image.fromarray(pixels).save(file, "PNG")
            number += 1
        yield result


def progress_bar(results: Iterable[Result], names: Sequence[str | Fault]) -> tqdm:
    """Show progress on the terminal if it takes long, unless the rows scroll there."""
    total = None if any(IDX_NAME.search(str(name)) for name in names) else len(names)
    disable = True if sys.stdout.isatty() else None  # None: unless standard error is a terminal
    return tqdm(results, total=total, unit=" pictures", delay=DELAY, disable=disable)
