"""A folder of pictures is read as torchvision's ImageFolder reads it, divided fairly, and explained if it can't be."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Program, metrics_of, read_only
from PIL import Image
from torchvision.datasets import ImageFolder

from fmnist_lightning.data import decoded
from fmnist_lightning.data.datamodule import FashionMNISTDataModule
from fmnist_lightning.data.sets import find_source, recorded_info
from fmnist_lightning.data.sets.folder import CACHE, LISTED
from fmnist_lightning.data.source import DataError, DataSource
from fmnist_lightning.errors import UserError
from fmnist_lightning.runs.options import SourceOptions
from fmnist_lightning.training.evaluate import evaluate
from fmnist_lightning.training.train import train


def write_picture(path: Path, seed: int = 0, size: int = 28) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)).save(path)


def write_pictures(folder: Path, count: int = 5, classes: tuple[str, ...] = ("ant", "bee")) -> Path:
    for label, name in enumerate(classes):
        for index in range(count):
            write_picture(folder / name / f"{index}.png", 100 * label + index)
    return folder


def source_of(folder: Path, **options: Any) -> DataSource:
    return find_source(SourceOptions(dataset="folder", data_dir=str(folder), **options))


def test_folder_has_image_folders_order_and_pixels(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_pictures(tmp_path / part, 11)
        write_picture(tmp_path / part / "ant" / "deep" / "er" / "x.PNG", 7)
    write_picture(tmp_path / ".hidden" / "x.png")
    write_picture(tmp_path / "train" / "bee" / "._0.png")
    (tmp_path / "train" / "bee" / "notes.txt").write_text("no picture")
    (tmp_path / "train" / "bee" / "._0.png").write_bytes(b"what macOS leaves on other disks")
    source = source_of(tmp_path)
    assert (source.title, source.classes, source.image_shape) == (tmp_path.name, ("ant", "bee"), (3, 28, 28))
    assert (source.parts, source.test_fraction) == (("train", "test"), None)
    theirs = ImageFolder(tmp_path / "train", is_valid_file=lambda path: path.lower().endswith("g") and "._" not in path)
    images, labels = source.load("train")
    assert labels.tolist() == theirs.targets
    assert torch.equal(
        images, torch.stack([torch.from_numpy(np.array(image).transpose(2, 0, 1)) for image, _ in theirs])
    )
    assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)


@pytest.mark.parametrize("channels", [1, 3])
def test_folder_scales_pictures_to_the_options(tmp_path: Path, channels: int) -> None:
    write_pictures(tmp_path)
    write_picture(tmp_path / "ant" / "large.jpg", size=90)
    source = source_of(tmp_path, image_size=12, channels=channels)
    assert source.image_shape == (channels, 12, 12)
    assert source.load("train").images.shape[1:] == (channels, 12, 12)
    with pytest.raises(UserError, match="--classes"):
        source_of(tmp_path, classes=("a", "b"))


def test_folder_without_test_is_divided_by_class(tmp_path: Path) -> None:
    write_pictures(tmp_path, 20)
    source = source_of(tmp_path)
    train, test = source.load("train"), source.load("test")
    assert (train.labels.bincount().tolist(), test.labels.bincount().tolist()) == ([16, 16], [4, 4])
    assert not any(torch.equal(image, other) for image in test.images for other in train.images)
    again = source_of(tmp_path).load("test")
    assert torch.equal(again.images, test.images)
    assert FashionMNISTDataModule(source).split_record == {
        "parts": ["train", "test"],
        "fraction": 0.1,
        "test_fraction": 0.2,
        "seed": 20170825,
        "test_sha256": source.test_digest(),
    }
    for index in range(20, 23):  # a picture that is added moves one other at most
        before = {image.numpy().tobytes() for image in source_of(tmp_path).load("test").images}
        write_picture(tmp_path / "ant" / f"{index}.png", index)
        after = {image.numpy().tobytes() for image in source_of(tmp_path).load("test").images}
        assert len(before - after) <= 1
        assert len(after - before) <= 1


def test_digest_changes_with_the_names_of_test_pictures(tmp_path: Path) -> None:
    digests, tested = [], []
    for count in (20, 20, 21, 22, 23, 24):
        source = source_of(write_pictures(tmp_path, count))
        assert source.test_digest
        digests.append(source.test_digest())
        tested.append({image.numpy().tobytes() for image in source.load("test").images})
    assert digests[0] == digests[1]
    assert len(set(digests)) > 1
    assert [one == digests[0] for one in digests] == [one == tested[0] for one in tested]
    for part in ("train", "test"):
        write_pictures(tmp_path / "parts" / part, 2)
    assert "test_sha256" not in FashionMNISTDataModule(source_of(tmp_path / "parts")).split_record


@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_evaluate_warns_if_the_test_pictures_changed(program: Program, tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "pictures", 10)
    arguments = ("--accelerator", "cpu", "--log_dir", tmp_path / "logs")
    status, output = program(
        train, "--dataset", "folder", "--data_dir", pictures, *arguments, "--max_epochs", 1, "--precision", "32-true"
    )
    assert (status, "WARNING" in output) == (0, False), output
    run = tmp_path / "logs" / "version_0"
    digest = metrics_of(run)["validation"]["test_sha256"]
    write_pictures(pictures, 15)
    status, output = program(evaluate, *arguments)
    assert (status, "WARNING: pictures were added" in output) == (0, True), output
    assert metrics_of(run)["validation"]["test_sha256"] != digest


def test_small_classes_have_a_picture_in_each_part(tmp_path: Path) -> None:
    write_pictures(tmp_path, 2)
    source = source_of(tmp_path)
    for part in ("train", "test"):
        assert source.load(part).labels.tolist() == [0, 1]
    (tmp_path / "bee" / "0.png").unlink()
    with pytest.raises(DataError, match="class bee "):
        source_of(tmp_path).load("train")


def test_val_folder_is_the_validation_split(tmp_path: Path) -> None:
    for part, count in (("train", 5), ("val", 2)):
        write_pictures(tmp_path / part, count)
    datamodule = FashionMNISTDataModule("folder", str(tmp_path), val_fraction=0.5)
    datamodule.setup()
    assert [len(datamodule.splits[name].labels) for name in ("train", "val", "test")] == [8, 4, 2]
    assert datamodule.split_record["parts"] == ["train", "val", "test"]
    assert (datamodule.split_record["fraction"], datamodule.split_record["test_fraction"]) == (0, 0.2)
    assert FashionMNISTDataModule("folder", str(tmp_path), val_fraction=0).validates


def test_title_of_a_folder_is_printable(tmp_path: Path) -> None:
    source = source_of(write_pictures(tmp_path / "my\u00a0pictures"))
    assert source.title == r"my\xa0pictures"
    assert recorded_info({"data": source.as_plain()}).title == source.title  # as a test of the run reads it


def test_image_size_has_a_limit(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="5000"):
        source_of(write_pictures(tmp_path), image_size=5000)


def test_class_may_be_named_train(tmp_path: Path) -> None:
    write_pictures(tmp_path, classes=("bus", "train"))
    assert source_of(tmp_path).classes == ("bus", "train")


LAYOUTS: dict[str, tuple[list[str], str]] = {
    "missing folder": ([], "pictures: "),
    "no classes": (["notes.txt"], "no classes"),
    "pictures without classes": (["x.png"], "x.png"),
    "pictures beside classes": (["a/x.png", "b/x.png", "x.png"], "x.png"),
    "pictures in train": (["train/x.png", "test/x.png"], "train: x.png"),
    "one class": (["a/x.png"], "class a "),
    "empty class": (["a/x.png", "b/x.heic"], "b: "),
    "empty class of test": (["train/a/x.png", "train/b/x.png", "test/a/x.png", "test/b/.x.png"], "test/b"),
    "another class in test": (["train/a/x.png", "train/b/x.png", "test/a/x.png", "test/c/x.png"], "class b"),
    "no train": (["val/a/x.png", "test/a/x.png"], "val and test|test and val"),
    "unknown part": (["train/a/x.png", "train/b/x.png", "valid/a/x.png"], "valid"),
    "unprintable class": (["a/x.png", "b\n/x.png"], r"'b\\n'"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_wrong_layouts_are_explained(tmp_path: Path, layout: str) -> None:
    files, message = LAYOUTS[layout]
    folder = tmp_path / "pictures"
    for file in files:
        write_picture(folder / "x.png")
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / "x.png").rename(folder / file)
    with pytest.raises(DataError, match=message) as caught:
        source_of(folder).prepare()
    assert "\n" not in str(caught.value)


def harm(folder: Path, count: int = 1) -> list[Path]:
    paths = sorted(folder.rglob("*.png"))[:count]
    for path in paths:
        path.write_bytes(b"")
    return paths


def test_unreadable_pictures_are_listed_and_stop_the_training(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_pictures(tmp_path / part)
    paths = [*harm(tmp_path / "train"), *harm(tmp_path / "test", 2)]
    with pytest.raises(DataError, match=r" 3 of 20 .*--skip_unreadable true") as caught:
        source_of(tmp_path).prepare()
    assert str(caught.value).splitlines()[1:] == [f"  {path} is empty" for path in paths]
    with pytest.raises(DataError, match=" 1 of 10 "):
        source_of(tmp_path).load("train")
    for path in paths:
        write_picture(path)
    source_of(tmp_path).prepare()  # the control


def test_unreadable_pictures_can_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(tmp_path, 30)
    whole = source_of(tmp_path).load("train").images
    paths = harm(tmp_path / "ant", 7)
    paths[0].unlink()
    paths[0].symlink_to("nowhere.png")
    os.mkfifo(paths[1].with_name("pipe.png"))
    source = source_of(tmp_path, skip_unreadable=True)
    source.prepare()
    printed = capsys.readouterr().err
    assert all(str(path) in printed for path in paths)
    assert "pipe.png is no file" in printed
    train, test = source.load("train"), source.load("test")
    assert (train.labels.bincount() + test.labels.bincount()).tolist() == [23, 30]
    known = {image.numpy().tobytes() for image in whole}
    assert sum(image.numpy().tobytes() in known for image in train.images) > 35
    harm(tmp_path / "ant", 30)
    with pytest.raises(DataError, match="ant: "):
        source.load("train")


def test_unprintable_file_names_are_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(tmp_path)
    (tmp_path / "ant" / "\x1b]0;owned\x07.png").write_bytes(b"")
    source_of(tmp_path, skip_unreadable=True).prepare()
    printed = capsys.readouterr().err
    assert r"\x1b]0;owned\x07.png is empty" in printed
    assert "\x1b" not in printed
    (tmp_path / "\x1b.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"\\x1b\.png") as caught:
        source_of(tmp_path)
    assert "\x1b" not in str(caught.value)


def test_list_of_unreadable_pictures_has_an_end(tmp_path: Path) -> None:
    write_pictures(tmp_path, 60)
    harm(tmp_path, 70)
    with pytest.raises(DataError) as caught:
        source_of(tmp_path).prepare()
    lines = str(caught.value).splitlines()
    assert (len(lines), lines[-1]) == (LISTED + 2, "  and 20 more")


def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("pictures are decoded again")

    monkeypatch.setattr(decoded, "decode", fail)


def test_prepare_decodes_once_for_all_later_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(tmp_path)
    expected = source_of(tmp_path).load("train")
    shutil.rmtree(tmp_path / CACHE)
    source = source_of(tmp_path)
    source.prepare()
    assert [path.name for path in (tmp_path / CACHE).iterdir()] == ["all-28x28x3.safetensors"]
    no_decoding(monkeypatch)
    source.prepare()
    assert all(map(torch.equal, source_of(tmp_path).load("train"), expected))
    with pytest.raises(AssertionError, match="decoded again"):  # the control
        source_of(tmp_path, image_size=20).load("train")


@pytest.mark.skipif(os.name != "posix", reason="POSIX file permissions")
def test_read_only_folder_is_decoded_without_a_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_pictures(tmp_path / "pictures")
    with read_only(folder):
        source = source_of(folder)
        source.prepare()
        assert capsys.readouterr().err.count("\n") == 1
        no_decoding(monkeypatch)  # in this process not again
        assert len(source.load("train").labels) + len(source.load("test").labels) == 10
    assert not (folder / CACHE).exists()


def test_folders_that_link_to_themselves_are_read_once(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    (tmp_path / "ant" / "loop").symlink_to(tmp_path / "ant", target_is_directory=True)
    write_picture(tmp_path.with_name("elsewhere") / "x.png")
    (tmp_path / "bee" / "linked").symlink_to(tmp_path.with_name("elsewhere"), target_is_directory=True)
    source = source_of(tmp_path)
    counts = [source.load(part).labels.bincount() for part in ("train", "test")]
    assert sum(counts).tolist() == [5, 6]
