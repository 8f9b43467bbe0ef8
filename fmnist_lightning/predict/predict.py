"""Classes of people's own pictures. Heavy imports stand inside the functions, so that `--help` answers at once."""

import os
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from fmnist_lightning.errors import UserError
from fmnist_lightning.predict.bulk import predict_into
from fmnist_lightning.predict.classifier import PictureClassifier, load_classifier
from fmnist_lightning.predict.inputs import IDX_NAME, SUFFIXES, Fault, Picture, Result, expand_all, read_all
from fmnist_lightning.predict.overlap import refuse_overlap
from fmnist_lightning.predict.rows import FORMATS, printable, rows_of, warn_of_weights
from fmnist_lightning.runs.files import atomic_write
from fmnist_lightning.runs.options import PredictOptions

FEW = 20  # files that need no progress bar
MAX_NAME = 100  # characters of a picture's name that its input's file keeps; file systems take 255 bytes


def predict(options: PredictOptions) -> None:
    """Print the class of each picture, or write it into a folder. Raises UserError if a picture could not be read."""
    if options.output is not None:
        predict_into(options)
        return
    if options.devices > 1 or options.shard:
        raise UserError("--devices and --shard need --output FOLDER, where each process writes its own file")
    check_save_folder(options.save_inputs, options.images)
    classify = load_classifier(
        options.weights,
        device=options.accelerator,
        batch_size=options.batch_size,
        tta=options.tta,
        log_dir=options.log_dir,
    )
    warn_of_weights(classify.card, tta=options.tta)
    try:
        with progress_bar(options.images) as bar, warnings.catch_warnings():
            # Of damaged EXIF data and the like, without a file's name. A bomb is refused by this project's own message.
            warnings.filterwarnings("ignore", module=r"PIL\.")
            results = counted(read_all(expand_all(options.images), options.invert), bar)
            faults, total = write_rows(results, classify, options.format, options.top_k, options.save_inputs)
    except BrokenPipeError:  # what reads the output has enough, `head` for one
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the last flush, at exit, fails again
        return
    if faults:
        raise UserError(f"{faults:,} of {total:,} pictures could not be read")


def check_save_folder(save_inputs: str | None, images: Iterable[str]) -> None:
    """Raise UserError where it is a file, or where pictures are read, which would be more of them the next time."""
    if save_inputs is None:
        return
    if Path(save_inputs).exists() and not Path(save_inputs).is_dir():
        raise UserError(f"--save_inputs {save_inputs} is a file; expected a folder: name another")
    refuse_overlap("--save_inputs", save_inputs, lambda: names_saved(images), images)


def names_saved(images: Iterable[str]) -> "Iterator[str]":
    """Of the files in the folder of inputs, where each file is one picture."""
    names = (name for name in expand_all(images) if not isinstance(name, Fault))
    return (saved_name(number, name) for number, name in enumerate(names))


def progress_bar(images: list[str]) -> "tqdm":
    """A bar on the terminal, where there are many files to come and the results don't scroll there themselves."""
    if not sys.stderr.isatty() or sys.stdout.isatty():
        return tqdm(disable=True)
    has_many = Counter(bool(IDX_NAME.search(str(name))) for name in expand_all(images))
    total = None if has_many[True] else has_many[False]
    return tqdm(total=total, unit=" pictures", disable=total is not None and total <= FEW)


def counted(results: "Iterable[Result]", bar: "tqdm") -> "Iterator[Result]":
    for result in results:
        yield result
        bar.update()


def write_rows(
    results: "Iterable[Result]",
    classify: "PictureClassifier",
    kind: str,
    top_k: int,
    save_inputs: str | None,
) -> tuple[int, int]:
    """Print a row of each image as soon as its batch is done, and each fault; return how many faults of how many."""
    header, line = FORMATS[kind]
    say(header(top_k))
    faults = total = 0
    results = iter(results)
    while chunk := list(islice(results, classify.batch_size)):
        pictures = [result for result in chunk if isinstance(result, Picture)]
        if save_inputs:
            save_images(pictures, Path(save_inputs), total - faults)
        say("".join(line(row) for row in rows_of(pictures, classify, top_k)))
        total += len(chunk)
        for fault in chunk:
            if isinstance(fault, Fault):
                faults += 1
                complain(f"error: {printable(fault.name)}: {printable(fault.reason)}")
    return faults, total


def save_images(pictures: "Sequence[Picture]", folder: Path, start: int) -> None:
    """Write each image; the numbers go on from `start`."""
    for number, picture in enumerate(pictures, start):
        with atomic_write(folder / saved_name(number, picture.name)) as file:
            Image.fromarray(picture.image).save(file, "PNG")


def saved_name(number: int, name: str) -> str:
    """NUMBER_NAME.png; the number keeps equal names apart."""
    path = Path(name)
    stem = path.stem if path.suffix.lower() in SUFFIXES else path.name
    kept = re.sub(r"[^\w.\[\]-]", "_", stem, flags=re.ASCII)[-MAX_NAME:]
    return f"{number:06d}_{kept}.png"


def say(text: str) -> None:
    """Write to standard output at once. What its encoding lacks, names that are no text for one, is escaped."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), end="", flush=True)


def complain(text: str) -> None:
    """Write a line to standard error, above the progress bar where there is one."""
    tqdm.write(text, file=sys.stderr)
