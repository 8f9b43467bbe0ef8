"""torchvision downloads MNIST and its kin, and checks its digests; we read what it leaves, upright and from label 0."""

import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import NOWHERE, TINY, Mirror, pack
from torchvision import datasets

from fmnist_lightning.data.sets import find_source
from fmnist_lightning.data.sets.fashion_mnist import FILES
from fmnist_lightning.data.sets.torchvision_sets import EMNIST_LETTERS, KMNIST, MNIST
from fmnist_lightning.data.source import DataError, DataSource
from fmnist_lightning.errors import UserError
from fmnist_lightning.runs.options import SourceOptions


def source_of(name: str, folder: Path) -> DataSource:
    return find_source(SourceOptions(dataset=name, data_dir=str(folder)))  # type: ignore[arg-type]


@pytest.fixture(params=["mnist", "kmnist"])
def kind(request: pytest.FixtureRequest, mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> type[datasets.MNIST]:
    """torchvision's class, whose only mirror has the four small files."""
    found = getattr(datasets, request.param.upper())
    monkeypatch.setattr(found, "mirrors", [mirror.url])
    monkeypatch.setattr(found, "resources", datasets.FashionMNIST.resources)
    return found


def test_set_is_downloaded_once_in_torchvisions_layout(
    kind: type[datasets.MNIST], mirror: Mirror, tiny_files: dict[str, bytes], tmp_path: Path
) -> None:
    source = source_of(kind.__name__.lower(), tmp_path)
    for _ in range(2):
        source.prepare()
        assert sorted(mirror.asked) == sorted(f"{name}.gz" for name in FILES)
    raw = tmp_path / kind.__name__ / "raw"
    assert {path.name for path in raw.iterdir()} == {*FILES}
    theirs = kind(str(tmp_path), train=False)
    images, labels = source.load("test")
    assert torch.equal(images[:, 0], theirs.data)
    assert torch.equal(labels, theirs.targets)
    assert len(source.load("train").labels) == TINY["train"]


def test_missing_file_alone_is_added(kind: type[datasets.MNIST], mirror: Mirror, tmp_path: Path) -> None:
    source = source_of(kind.__name__.lower(), tmp_path)
    source.prepare()
    raw = tmp_path / kind.__name__ / "raw"
    (raw / "t10k-labels-idx1-ubyte").unlink()
    kept = raw / "train-labels-idx1-ubyte"
    kept.write_bytes(kept.read_bytes()[:-1] + b"\x01")  # the user's own file is not replaced
    source.prepare()
    assert kept.read_bytes().endswith(b"\x01")
    assert len(source.load("test").labels) == TINY["t10k"]
    kept.write_bytes(kept.read_bytes()[:-1])
    with pytest.raises(DataError, match=f"{kept}"):
        source.load("train")


def test_wrong_digest_and_missing_network_are_explained(
    kind: type[datasets.MNIST], mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.serve("train-labels-idx1-ubyte.gz", pack(b"something else"))
    source = source_of(kind.__name__.lower(), tmp_path)
    for url in (mirror.url, NOWHERE):
        monkeypatch.setattr(kind, "mirrors", [url])
        with pytest.raises(DataError, match=f"{kind.__name__}/raw.*--data_dir"):
            source.prepare()
    assert not list(tmp_path.iterdir())


def test_letters_are_upright_and_counted_from_zero(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = io.BytesIO()
    upright = np.random.default_rng(0).integers(0, 256, (26, 28, 28), np.uint8)
    with zipfile.ZipFile(archive, "w") as file:
        for part in ("train", "test"):
            for name, values in (
                (f"emnist-letters-{part}-images-idx3-ubyte", upright.transpose(0, 2, 1)),
                (f"emnist-letters-{part}-labels-idx1-ubyte", np.arange(1, 27, dtype=np.uint8)),
            ):
                header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
                file.writestr(f"gzip/{name}.gz", pack(header + values.tobytes()))
    mirror.serve("gzip.zip", archive.getvalue())
    monkeypatch.setattr(datasets.EMNIST, "url", f"{mirror.url}gzip.zip")
    monkeypatch.setattr(datasets.EMNIST, "md5", hashlib.md5(archive.getvalue()).hexdigest())  # noqa: S324
    source = source_of("emnist_letters", tmp_path)
    for _ in range(2):
        source.prepare()
        assert mirror.asked == ["gzip.zip"]
    for part in ("train", "test"):
        images, labels = source.load(part)  # type: ignore[arg-type]
        assert np.array_equal(images[:, 0].numpy(), upright)
        assert labels.tolist() == list(range(26))
    assert len(list((tmp_path / "EMNIST" / "raw").glob("emnist-letters-*"))) == 4


def test_classes_are_torchvisions() -> None:
    assert list(MNIST.classes) == [name[0] for name in datasets.MNIST.classes]
    assert list(KMNIST.classes) == datasets.KMNIST.classes
    assert ["N/A", *EMNIST_LETTERS.classes] == datasets.EMNIST.classes_split_dict["letters"]
    with pytest.raises(UserError, match="--image_size"):
        find_source(SourceOptions(dataset="mnist", image_size=32))
