"""Fashion-MNIST's files are checked to the bit, and read as torchvision reads them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, pack
from torchvision.datasets import FashionMNIST

from fmnist_lightning.data.download import ensure_files
from fmnist_lightning.data.fashion_mnist import (
    CLASSES,
    FILES,
    DataError,
    find_content,
    load_split,
    read_checked,
    stratified_split,
)

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
def test_files_are_read_in_each_layout(tiny_files: dict[str, bytes], tmp_path: Path, layout: str, packed: bool) -> None:
    folder = tmp_path / layout
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in tiny_files.items():
        (folder / (f"{name}.gz" if packed else name)).write_bytes(pack(content) if packed else content)
    ensure_files(tmp_path)
    images, labels = load_split(tmp_path, train=True)
    assert images.shape == (TINY["train"], 1, 28, 28)
    assert images.dtype == torch.uint8
    assert labels.dtype == torch.int64
    assert np.array_equal(images[:, 0].numpy(), read_idx_with_numpy(tiny_files[IMAGES], 3))
    assert np.array_equal(labels.numpy(), read_idx_with_numpy(tiny_files[LABELS], 1))
    assert len(load_split(tmp_path, train=False).labels) == TINY["t10k"]


@pytest.mark.real_data
@pytest.mark.parametrize("train", [True, False])
def test_real_data_is_read_as_torchvision_reads_it(real_data_dir: Path, tmp_path: Path, train: bool) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name in FILES:
        content, _ = find_content(real_data_dir, name)
        (raw / name).write_bytes(content)
    theirs = FashionMNIST(str(tmp_path), train=train)
    ours = load_split(real_data_dir, train=train)
    assert torch.equal(ours.images[:, 0], theirs.data)
    assert torch.equal(ours.labels, theirs.targets)
    assert len(ours.labels) == (60000 if train else 10000)
    assert ours.labels.bincount().tolist() == [len(ours.labels) // 10] * 10


def flip_a_bit(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "truncated": (lambda content: content[:-7], "bytes; expected"),
    "too long": (lambda content: content + b"more", "holds more than"),
    "empty": (lambda content: b"", "holds 0 bytes; expected"),
    "flipped": (flip_a_bit, "right size but other content"),
    "foreign, of the same size": (lambda content: bytes(len(content)), "right size but other content"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", list(FILES))
def test_a_damaged_file_is_refused_by_name(tiny_dir: Path, name: str, damage: str) -> None:
    harm, words = DAMAGES[damage]
    path = tiny_dir / name
    path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(DataError, match=words) as caught:
        read_checked(path, name)
    assert str(path) in str(caught.value)


def test_swapped_files_are_refused(tiny_dir: Path) -> None:
    content = {name: (tiny_dir / name).read_bytes() for name in (IMAGES, LABELS)}
    (tiny_dir / IMAGES).write_bytes(content[LABELS])
    (tiny_dir / LABELS).write_bytes(content[IMAGES])
    with pytest.raises(DataError, match=IMAGES):
        load_split(tiny_dir, train=True)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda packed: packed[:-20], "can't be unpacked"),
        (lambda packed: b"no gzip at all", "can't be unpacked"),
        (lambda packed: packed[:200] + bytes(50) + packed[250:], "can't be unpacked|other content"),
    ],
)
def test_a_damaged_packed_file_is_refused(
    tiny_files: dict[str, bytes], tmp_path: Path, harm: Callable[[bytes], bytes], words: str
) -> None:
    path = tmp_path / f"{IMAGES}.gz"
    path.write_bytes(harm(pack(tiny_files[IMAGES])))
    with pytest.raises(DataError, match=words):
        read_checked(path, IMAGES)


def test_a_gzip_bomb_is_unpacked_no_further_than_one_byte_too_many(
    tiny_files: dict[str, bytes], tmp_path: Path
) -> None:
    path = tmp_path / f"{LABELS}.gz"
    path.write_bytes(pack(bytes(50_000_000)))
    with pytest.raises(DataError, match="holds more than"):
        read_checked(path, LABELS)


def test_a_header_that_claims_more_images_than_memory_holds_is_never_believed(
    tiny_files: dict[str, bytes], tmp_path: Path
) -> None:
    claim = bytes([0, 0, 8, 3]) + (2**31 - 1).to_bytes(4, "big") * 3
    (tmp_path / IMAGES).write_bytes(claim + tiny_files[IMAGES][len(claim) :])
    with pytest.raises(DataError, match="right size but other content"):
        read_checked(tmp_path / IMAGES, IMAGES)


def test_the_validation_cut_is_balanced_disjoint_and_fixed_by_its_seed() -> None:
    labels = torch.arange(1000) % 10
    train, val = stratified_split(labels, 0.1, seed=1)
    assert labels[val].bincount().tolist() == [10] * 10
    assert torch.equal(torch.cat([train, val]).sort().values, torch.arange(1000))
    assert torch.equal(val, stratified_split(labels, 0.1, seed=1)[1])
    assert not torch.equal(val, stratified_split(labels, 0.1, seed=2)[1])


def test_a_cut_that_leaves_a_part_empty_is_refused() -> None:
    with pytest.raises(DataError, match="leaves one part empty"):
        stratified_split(torch.arange(10), 0.1, seed=0)
