"""The predict command: classify a user's pictures and print a row for each."""

import os
import re
import sys
import warnings
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from fmnist_lightning.errors import UserError
from fmnist_lightning.predict.classifier import PictureClassifier, load_classifier
from fmnist_lightning.predict.inputs import IDX_NAME, SUFFIXES, Fault, Picture, Result, expand_all, read_all, real
from fmnist_lightning.predict.rows import fault_message, header, row_line, rows_of, warn_of_weights
from fmnist_lightning.runs.files import atomic_write
from fmnist_lightning.runs.options import PredictOptions

FEW = 20  # files that need no progress bar
MAX_NAME = 100  # characters of a picture's name that its saved input keeps; file systems take 255 bytes


def predict(options: PredictOptions) -> None:
    """Print or write the class of each picture. Raises UserError if one is unreadable."""
    if options.output is not None:
        # Lightning, which starts the processes, takes 4 s to import; the rest of the program takes 2 s.
        from fmnist_lightning.predict.bulk import predict_into

        predict_into(options)
        return
    if options.devices > 1 or options.shard:
        raise UserError("--devices and --shard need --output FOLDER, in which each process writes its own file")
    names = expand_all(options.images)
    if options.save_inputs is not None:
        check_save_folder(options.save_inputs, options.images, names)
    classify = load_classifier(
        options.weights,
        device=options.accelerator,
        batch_size=options.batch_size,
        tta=options.tta,
        log_dir=options.log_dir,
    )
    warn_of_weights(classify.card, tta=options.tta)
    try:
        with progress_bar(read_all(names, options.invert), names) as results, warnings.catch_warnings():
            # Pillow warns of damaged EXIF data and the like without the file's name.
            warnings.filterwarnings("ignore", module=r"PIL\.")
            faults, total = write_rows(results, classify, options)
    except BrokenPipeError:  # the reader of the output, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the flush at exit fails again
        return
    if faults:
        raise UserError(f"cannot read {faults:,} of {total:,} pictures")


def check_save_folder(folder: str, images: Iterable[str], names: Iterable[str | Fault]) -> None:
    """Raise UserError if pictures saved in the folder would be input, now or later."""
    path, problem = real(folder), ""
    if path.exists() and not path.is_dir():
        problem = "it is a file"
    for image in images:
        if Path(image).is_dir() and path.is_relative_to(real(image)):
            problem = f"it lies in {image}, which is read"
    for parent in {Path(name).parent for name in names if not isinstance(name, Fault)}:
        if real(parent).is_relative_to(path):
            problem = f"pictures in {parent} are read"
    if problem:
        raise UserError(f"cannot write --save_inputs to {folder}: {problem} (name another folder)")


def progress_bar(results: Iterable[Result], names: Sequence[str | Fault]) -> tqdm:
    """Show progress on the terminal for many files, unless the rows scroll there."""
    if not sys.stderr.isatty() or sys.stdout.isatty():
        return tqdm(results, disable=True)
    total = None if any(IDX_NAME.search(str(name)) for name in names) else len(names)
    return tqdm(results, total=total, unit=" pictures", disable=total is not None and total <= FEW)


def write_rows(results: Iterable[Result], classify: PictureClassifier, options: PredictOptions) -> tuple[int, int]:
    """Print rows batch by batch, and faults. Return the number of faults and results."""
    say(header(options.format, options.top_k))
    classified = total = 0
    results = iter(results)
    while batch := list(islice(results, classify.batch_size)):
        pictures = [result for result in batch if isinstance(result, Picture)]
        if options.save_inputs:
            save_images(pictures, Path(options.save_inputs), classified)
        say("".join(row_line(options.format, row) for row in rows_of(pictures, classify, options.top_k)))
        for fault in batch:
            if isinstance(fault, Fault):
                tqdm.write(fault_message(*fault), file=sys.stderr)  # above the progress bar
        classified += len(pictures)
        total += len(batch)
    return total - classified, total


def save_images(pictures: Sequence[Picture], folder: Path, start: int) -> None:
    """Write each image to a file, numbered from `start`."""
    for number, picture in enumerate(pictures, start):
        with atomic_write(folder / saved_name(number, picture.name)) as file:
            Image.fromarray(picture.image).save(file, "PNG")


def saved_name(number: int, name: str) -> str:
    """NUMBER_NAME.png; the number distinguishes pictures of the same name."""
    path = Path(name)
    stem = path.stem if path.suffix.lower() in SUFFIXES else path.name
    kept = re.sub(r"[^\w.\[\]-]", "_", stem, flags=re.ASCII)[-MAX_NAME:]
    return f"{number:06d}_{kept}.png"


def say(text: str) -> None:
    """Write to standard output at once; escape what its encoding lacks."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), end="", flush=True)
