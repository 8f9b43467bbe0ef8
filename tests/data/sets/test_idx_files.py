"""Any four IDX files are a data set, however they are spelled and packed; what does not fit is explained."""

import gzip
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Program, pack
from numpy.typing import NDArray

from fmnist_lightning.data.datamodule import FashionMNISTDataModule
from fmnist_lightning.data.sets import find_source
from fmnist_lightning.data.source import DataError, DataSource
from fmnist_lightning.errors import UserError
from fmnist_lightning.runs.options import SourceOptions
from fmnist_lightning.training.train import train

COUNTS = {"train": 30, "t10k": 9}
LABELS = "train-labels-idx1-ubyte"


def idx(values: NDArray[np.uint8]) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.tobytes()


def images_of(prefix: str) -> NDArray[np.uint8]:
    return np.random.default_rng(len(prefix)).integers(0, 256, (COUNTS[prefix], 5, 7), np.uint8)


def labels_of(prefix: str) -> NDArray[np.uint8]:
    return np.arange(COUNTS[prefix], dtype=np.uint8) % 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """30 + 9 images of 5 x 7 pixels and 3 classes."""
    folder = tmp_path / "shapes"
    folder.mkdir()
    for prefix in COUNTS:
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images_of(prefix)))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(labels_of(prefix)))
    return folder


def source_of(folder: Path, **options: Any) -> DataSource:
    return find_source(SourceOptions(dataset="idx", data_dir=str(folder), **options))


@pytest.mark.parametrize("mark", ["-", "."])
@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_are_read_in_each_spelling(folder: Path, mark: str, packed: bool) -> None:
    for path in list(folder.iterdir()):
        content = path.read_bytes()
        path.unlink()
        name = path.name.replace("-idx", f"{mark}idx")
        (folder / (f"{name}.gz" if packed else name)).write_bytes(pack(content) if packed else content)
    source = source_of(folder)
    assert (source.title, source.classes, source.image_shape) == ("shapes", ("0", "1", "2"), (1, 5, 7))
    for part, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = source.load(part)  # type: ignore[arg-type]
        assert (images.numpy()[:, 0].tobytes(), images.dtype) == (images_of(prefix).tobytes(), torch.uint8)
        assert (labels.tolist(), labels.dtype) == (labels_of(prefix).tolist(), torch.int64)


def test_class_names_come_from_the_option_or_a_file(folder: Path) -> None:
    (folder / "classes.txt").write_text("\ufeffEule\n Käfer \nÜbung\n\n", encoding="utf-8")
    assert source_of(folder).classes == ("Eule", "Käfer", "Übung")
    assert source_of(folder, classes=("x", "y", "z")).classes == ("x", "y", "z")
    for name, value in (("channels", 3), ("skip_unreadable", True)):
        with pytest.raises(UserError, match=f"--{name}"):
            source_of(folder, **{name: value})


def test_gzipped_sorted_labels_are_no_bomb(folder: Path) -> None:
    """They shrink to less than a hundredth; the control is the next test."""
    count = 60_000
    (folder / "train-images-idx3-ubyte").write_bytes(idx(np.zeros((count, 5, 7), np.uint8)))
    (folder / LABELS).unlink()
    packed = pack(idx((np.arange(count) * 3 // count).astype(np.uint8)))
    assert count > 200 * len(packed)
    (folder / f"{LABELS}.gz").write_bytes(packed)
    assert source_of(folder).load("train").labels.bincount().tolist() == [20_000] * 3


def test_gzip_bombs_take_little_memory(folder: Path) -> None:
    path = folder / "train-images-idx3-ubyte"
    header = bytes([0, 0, 8, 3]) + np.array([40_000, 50, 50], ">u4").tobytes()
    path.write_bytes(gzip.compress(header + bytes(100_000_000), 9))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="200 times"):
            source_of(folder)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_source_reads_only_the_header_of_images(folder: Path) -> None:
    path = folder / "train-images-idx3-ubyte"
    content = bytearray(pack(path.read_bytes()))
    path.unlink()
    content[-5] ^= 1  # of the checksum, which gzip compares at the end
    path.with_name(f"{path.name}.gz").write_bytes(content)
    source = source_of(folder, classes=("a", "b", "c"))
    assert source.image_shape == (1, 5, 7)
    with pytest.raises(DataError, match=path.name):
        source.load("train")


def test_title_of_idx_files_is_printable(folder: Path) -> None:
    assert source_of(folder.rename(folder.with_name("my\u00a0shapes"))).title == r"my\xa0shapes"


def test_images_that_the_model_cannot_take_are_one_line(program: Program, folder: Path, tmp_path: Path) -> None:
    arguments = ("--dataset", "idx", "--data_dir", folder, "--log_dir", tmp_path / "logs", "--accelerator", "cpu")
    status, output = program(train, *arguments, "--batch_size", 10)
    assert status == 1
    [line] = [line for line in output.splitlines() if "seed" in line]
    assert line.startswith("error: cannot build the model seed for images 5 x 7")
    assert "--model compact" in line
    assert "--image_size" in line
    assert not (tmp_path / "logs").exists()
    assert program(train, *arguments, "--model", "compact", "--fast_dev_run", "true")[0] == 0  # the control


def rewrite(name: str, values: NDArray[np.uint8]) -> Any:
    return lambda folder: (folder / name).write_bytes(idx(values))


FAULTS: dict[str, tuple[Any, str]] = {
    "missing": (lambda folder: (folder / "t10k-labels-idx1-ubyte").unlink(), "t10k-labels-idx1-ubyte"),
    "truncated": (lambda folder: (folder / LABELS).write_bytes(idx(labels_of("train"))[:-1]), "37 bytes; 30 labels"),
    "packed and truncated": (
        lambda folder: (folder / LABELS).write_bytes(pack(idx(labels_of("train"))[:-1])),
        "30 labels",
    ),
    "too long": (
        lambda folder: (folder / LABELS).write_bytes(pack(idx(labels_of("train")) + b"x")),
        " 30 ",
    ),
    "no IDX": (lambda folder: (folder / LABELS).write_bytes(b"no IDX file"), "6e 6f 20 49"),
    "other axes": (rewrite(LABELS, images_of("train")), "00 00 08 03"),
    "count": (rewrite("t10k-labels-idx1-ubyte", labels_of("train")), "9 images and 30 labels"),
    "gap": (rewrite(LABELS, labels_of("train") * 2), r"0, 2, 4, .*--classes"),
    "one class": (rewrite(LABELS, labels_of("train") * 0), "class 0 "),
    "unknown label": (rewrite("t10k-labels-idx1-ubyte", labels_of("t10k") + 1), "labels are 1 to 3, expected 0 to 2"),
    "other shape": (rewrite("t10k-images-idx3-ubyte", images_of("t10k")[:, :4]), r"images are \(1, 4, 7\)"),
    "names": (lambda folder: (folder / "classes.txt").write_text("a\nb\n"), "labels are 0 to 2, expected 0 to 1"),
    "repeated name": (lambda folder: (folder / "classes.txt").write_text("a\na\nb\n"), "the name a"),
    "empty name": (lambda folder: (folder / "classes.txt").write_text("a\n\nb\n"), "class name ''"),
    "no UTF-8": (lambda folder: (folder / "classes.txt").write_bytes(b"\xff"), "classes.txt"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_idx_files_are_one_message(folder: Path, fault: str) -> None:
    FashionMNISTDataModule("idx", str(folder)).setup()  # the control
    harm, message = FAULTS[fault]
    harm(folder)
    with pytest.raises(DataError, match=message) as caught:
        FashionMNISTDataModule("idx", str(folder)).setup()
    assert "\n" not in str(caught.value)


def test_unknown_data_set_is_refused_with_a_list(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"'cifar'.*fashion_mnist, drawn, folder, idx, mnist, kmnist, emnist_letters"):
        find_source(SourceOptions(dataset="cifar"))  # type: ignore[arg-type]
    shutil.rmtree(folder)
    with pytest.raises(DataError, match="train-images"):
        source_of(folder)
