"""Fashion-MNIST's files are verified to the bit, and read as torchvision reads them."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, pack
from torchvision.datasets import FashionMNIST

from fmnist_lightning.data.download import ensure_files
from fmnist_lightning.data.fashion_mnist import CLASSES, FILES, DataError, find_content, load_split, read_verified

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def test_classes_are_torchvisions() -> None:
    assert list(CLASSES) == FashionMNIST.classes


def read_idx_with_numpy(content: bytes, axes: int) -> np.ndarray:
    """An independent reader: http://yann.lecun.com/exdb/mnist/ in four lines."""
    assert content[:4] == bytes([0, 0, 8, axes])
    shape = [int.from_bytes(content[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(axes)]
    return np.array(list(content[4 + 4 * axes :]), np.uint8).reshape(shape)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("layout", ["", "FashionMNIST/raw"])
def test_load_split_reads_each_layout(tiny_files: dict[str, bytes], tmp_path: Path, layout: str, packed: bool) -> None:
    folder = tmp_path / layout
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in tiny_files.items():
        (folder / (f"{name}.gz" if packed else name)).write_bytes(pack(content) if packed else content)
    ensure_files(tmp_path)
    images, labels = load_split(tmp_path, train=True)
    assert (images.shape, images.dtype, labels.dtype) == ((TINY["train"], 1, 28, 28), torch.uint8, torch.int64)
    assert np.array_equal(images[:, 0].numpy(), read_idx_with_numpy(tiny_files[IMAGES], 3))
    assert np.array_equal(labels.numpy(), read_idx_with_numpy(tiny_files[LABELS], 1))
    assert len(load_split(tmp_path, train=False).labels) == TINY["t10k"]


@pytest.mark.real_data
@pytest.mark.parametrize("train", [True, False])
def test_load_split_equals_torchvision_on_real_data(real_data_dir: Path, tmp_path: Path, train: bool) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name in FILES:
        content, _ = find_content(real_data_dir, name)
        assert content
        (raw / name).write_bytes(content)
    theirs = FashionMNIST(str(tmp_path), train=train)
    ours = load_split(real_data_dir, train=train)
    assert torch.equal(ours.images[:, 0], theirs.data)
    assert torch.equal(ours.labels, theirs.targets)
    assert ours.labels.bincount().tolist() == [6000 if train else 1000] * 10


HUGE_HEADER = bytes([0, 0, 8, 3]) + (2**31 - 1).to_bytes(4, "big") * 3


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: content[:-7], "bytes, not"),
        (lambda content: content + b"more", "more than"),
        (lambda content: b"", "holds 0 bytes"),
        (lambda content: content[:-1] + bytes([content[-1] ^ 1]), "other content"),
        (lambda content: HUGE_HEADER + content[len(HUGE_HEADER) :], "other content"),
    ],
)
@pytest.mark.parametrize("name", [IMAGES, LABELS])
def test_read_verified_refuses_damage(tiny_dir: Path, name: str, damage: Callable[[bytes], bytes], words: str) -> None:
    path = tiny_dir / name
    read_verified(path, name)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=words) as caught:
        read_verified(path, name)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [
        lambda packed: packed[:-20],
        lambda packed: b"no gzip at all",
        lambda packed: packed[:200] + bytes(50) + packed[250:],
    ],
)
def test_read_verified_refuses_damaged_gzip(
    tiny_files: dict[str, bytes], tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / f"{IMAGES}.gz"
    path.write_bytes(damage(pack(tiny_files[IMAGES])))
    with pytest.raises(DataError, match=f"{path}"):
        read_verified(path, IMAGES)


def test_read_verified_unpacks_little_of_a_bomb(tiny_files: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / f"{LABELS}.gz"
    path.write_bytes(pack(bytes(20_000_000)))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="more than"):
            read_verified(path, LABELS)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_load_split_refuses_swapped_files(tiny_dir: Path) -> None:
    content = {name: (tiny_dir / name).read_bytes() for name in (IMAGES, LABELS)}
    (tiny_dir / IMAGES).write_bytes(content[LABELS])
    (tiny_dir / LABELS).write_bytes(content[IMAGES])
    with pytest.raises(DataError, match=IMAGES):
        load_split(tiny_dir, train=True)
