"""Classes of people's own pictures. Heavy imports stand inside the functions, so that `--help` answers at once."""

import os
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jsonargparse.typing import PositiveInt, restricted_number_type

from fmnist_lightning.bulk import BulkOptions, predict_into
from fmnist_lightning.cli import LOG_DIR, Accelerator
from fmnist_lightning.errors import UserError
from fmnist_lightning.files import atomic_write
from fmnist_lightning.overlap import refuse_overlap
from fmnist_lightning.rows import FORMATS, printable, rows_of, warn_of_weights

if TYPE_CHECKING:
    from tqdm import tqdm

    from fmnist_lightning.inference import PictureClassifier
    from fmnist_lightning.sources import Picture, Result

    TopK = int
else:
    TopK = restricted_number_type("TopK", int, [(">=", 1), ("<=", 10)])

FEW = 20  # files that need no progress bar
MAX_NAME = 100  # characters of a picture's name that its input's file keeps; file systems take 255 bytes


def predict(
    images: list[str],
    *,
    weights: str = "packaged",
    format: Literal["table", "json", "csv"] = "table",  # noqa: A002
    top_k: TopK = 1,
    batch_size: PositiveInt = 256,
    invert: Literal["auto", "always", "never"] = "auto",
    save_inputs: str | None = None,
    tta: bool = False,
    output: str | None = None,
    devices: PositiveInt = 1,
    share: str | None = None,
    accelerator: Accelerator = "auto",
    log_dir: str = LOG_DIR,
) -> None:
    """Tell the class of each picture. What can't be read is named, the rest goes on, and the exit status is then 1.

    Args:
        images: Pictures, folders of them, patterns such as "shop/**/*.jpg", IDX files, or - for standard input.
        weights: packaged, those that come with the package; last, the newest run in the log folder; a run folder, whose
            tested checkpoint is taken; a .ckpt or a .safetensors file.
        format: table to read; json, an object a line; csv, with a header.
        top_k: How many classes to tell of each picture, the most probable first.
        batch_size: Pictures in a step. The results don't depend on it.
        invert: The net knows light garments on dark. auto inverts pictures whose corners are bright; always; never.
        save_inputs: Folder to write the 28 x 28 pixels to that the net sees, a PNG file each, numbered.
        tta: Test-time augmentation: average over each picture and its mirror image. For nets trained with --flip.
        output: Folder to write rows into, a file for each process, in place of standard output. The same command goes
            on after a kill, and scripts/join.py makes one file of them. Needs --format json or csv.
        devices: With --output, how many processes share the pictures, on a GPU each where there are GPUs.
        share: With --output, the share of the pictures that this process does, such as 2/3, where none of torchrun,
            srun and --devices says it.
        accelerator: Where to compute.
        log_dir: Folder of the run folders version_N.
    """
    if output is not None:
        predict_into(BulkOptions(**locals()))
        return
    if devices > 1 or share:
        raise UserError("--devices and --share need --output FOLDER, where each process writes a file of its own")
    from fmnist_lightning.inference import load_classifier
    from fmnist_lightning.sources import expand_all, read_all

    check_save_folder(save_inputs, images)
    classify = load_classifier(weights, device=accelerator, batch_size=batch_size, tta=tta, log_dir=log_dir)
    warn_of_weights(classify.card, tta=tta)
    try:
        with progress_bar(images) as bar, warnings.catch_warnings():
            # Of damaged EXIF data and the like, without a file's name. A bomb is refused by this project's own message.
            warnings.filterwarnings("ignore", module=r"PIL\.")
            results = counted(read_all(expand_all(images), invert), bar)
            faults, total = write_rows(results, classify, format, top_k, save_inputs)
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
    from fmnist_lightning.sources import Fault, expand_all

    names = (name for name in expand_all(images) if not isinstance(name, Fault))
    return (saved_name(number, name) for number, name in enumerate(names))


def progress_bar(images: list[str]) -> "tqdm":
    """A bar on the terminal, where there are many files to come and the results don't scroll there themselves."""
    from tqdm import tqdm

    from fmnist_lightning.sources import IDX_NAME, expand_all

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
    from fmnist_lightning.sources import Fault, Picture

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
    from PIL import Image

    for number, picture in enumerate(pictures, start):
        with atomic_write(folder / saved_name(number, picture.name)) as file:
            Image.fromarray(picture.image).save(file, "PNG")


def saved_name(number: int, name: str) -> str:
    """NUMBER_NAME.png; the number keeps equal names apart."""
    from fmnist_lightning.sources import SUFFIXES

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
    from tqdm import tqdm

    tqdm.write(text, file=sys.stderr)
