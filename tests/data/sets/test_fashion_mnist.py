"""Fashion-MNIST's files are verified to the bit, and read as torchvision reads them."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import TINY, pack
from torchvision.datasets import FashionMNIST

from fmnist_lightning.data.sets import fashion_mnist
from fmnist_lightning.data.sets.download import ensure_files
from fmnist_lightning.data.sets.fashion_mnist import CLASSES, FILES, find_content, load_split, read_verified
from fmnist_lightning.data.source import DataError

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("layout", ["", "FashionMNIST/raw", "raw", "fashion-mnist", "data/fashion"])
def test_load_split_reads_each_layout(tiny_files: dict[str, bytes], tmp_path: Path, layout: str, packed: bool) -> None:
    folder = tmp_path / layout
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in tiny_files.items():
        (folder / (f"{name}.gz" if packed else name)).write_bytes(pack(content) if packed else content)
    ensure_files(tmp_path)
    images, labels = load_split(tmp_path, "train")
    assert (images.shape, images.dtype, labels.dtype) == ((TINY["train"], 1, 28, 28), torch.uint8, torch.int64)
    assert images.numpy().tobytes() == tiny_files[IMAGES][16:]
    assert labels.byte().numpy().tobytes() == tiny_files[LABELS][8:]
    assert len(load_split(tmp_path, "test").labels) == TINY["t10k"]
    assert list(CLASSES) == FashionMNIST.classes


@pytest.mark.parametrize("spell", [str.upper, lambda name: name.replace("-idx", ".idx"), lambda name: f"{name}.GZ"])
def test_files_are_found_in_each_spelling(
    tiny_files: dict[str, bytes], tmp_path: Path, spell: Callable[[str], str]
) -> None:
    for name, content in tiny_files.items():
        # What a file holds decides whether it is gzipped, not its name.
        (tmp_path / spell(name)).write_bytes(pack(content) if "IMAGES" in name.upper() else content)
    ensure_files(tmp_path)
    assert len(load_split(tmp_path, "test").labels) == TINY["t10k"]


def test_files_of_other_formats_are_listed(tmp_path: Path) -> None:
    names = ["fashion-mnist_test.csv", "fashion-mnist_train.csv"]
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=f"{IMAGES}.* in {tmp_path}, which holds {', '.join(names)}$"):
        find_content(tmp_path, IMAGES)


@pytest.mark.real_data
@pytest.mark.parametrize("train", [True, False])
def test_load_split_equals_torchvision_on_real_data(real_data_dir: Path, tmp_path: Path, train: bool) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name in FILES:
        (raw / name).write_bytes(find_content(real_data_dir, name))
    theirs, ours = FashionMNIST(str(tmp_path), train=train), load_split(real_data_dir, "train" if train else "test")
    assert torch.equal(ours.images[:, 0], theirs.data)
    assert torch.equal(ours.labels, theirs.targets)
    assert ours.labels.bincount().tolist() == [6000 if train else 1000] * 10


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (IMAGES, lambda content: content[:-7]),
        (IMAGES, lambda content: content[:4] + bytes([127] * 12) + content[16:]),  # a header that claims 2^93 pixels
        (IMAGES, lambda content: content[:-1] + bytes([content[-1] ^ 1])),
        (f"{IMAGES}.gz", lambda content: pack(content)[:-20]),
        (f"{IMAGES}.gz", lambda content: b"no gzip at all"),
        (f"{IMAGES}.gz", lambda content: pack(content)[:200] + bytes(50) + pack(content)[250:]),
    ],
)
def test_read_verified_refuses_damage(tiny_dir: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    content, path = read_verified(tiny_dir / IMAGES, IMAGES), tiny_dir / name
    path.write_bytes(damage(content))
    with pytest.raises(DataError, match=f"{path}"):
        read_verified(path, IMAGES)


def test_read_verified_unpacks_little_of_a_bomb(tiny_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "MAX_BYTES", 100_000)
    path = tiny_dir / f"{LABELS}.gz"
    path.write_bytes(pack(bytes(20_000_000)))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=LABELS):
            read_verified(path, LABELS)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
