"""The report of a run: what it says, that it opens anywhere, and that no file it is made from can do harm."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Program, metrics_of, small_run
from pages import Page
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from fmnist_lightning.data.fashion_mnist import CLASSES
from fmnist_lightning.errors import UserError
from fmnist_lightning.report import page as report
from fmnist_lightning.report.analysis import confusion_matrix
from fmnist_lightning.report.findings import read_predictions
from fmnist_lightning.runs.folders import PREDICTIONS, REPORT, write_config, write_metrics
from fmnist_lightning.training.evaluate import evaluate

pytestmark = pytest.mark.usefixtures("drawing")
COUNT = 200
IMAGES = torch.randint(0, 256, (COUNT, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
ENVIRONMENT = {
    "device": "a machine",
    "versions": {"torch": "2.15.0"},
    "git": {"commit": "abc", "dirty": False},
    "processes": 1,
}
METRICS_OF_A_RUN = {
    "dataset": "fashion_mnist",
    "split": "test",
    "n": COUNT,
    "accuracy": 0.9,
    "precision": 0.91,
    "recall": 0.9,
    "f1": 0.905,
    "auroc": 0.99,
    "checkpoint": "best",
    "checkpoint_epoch": 2,
    "seed": 0,
    "training_seconds": 12.3,
    "epochs": 3,
    "batch_size": 50,
    "model": "seed",
    "parameters": 225034,
    "arithmetic": "32-true",
    **ENVIRONMENT,
    "earlier_environments": [],
    "tested_with": ENVIRONMENT,
}


def write_predictions(run: Path, probs: np.ndarray, labels: np.ndarray, **more: Any) -> None:
    """With the accuracy that they give in the metrics."""
    np.savez(run / PREDICTIONS, probs=probs, labels=labels, **more)
    write_metrics(run, metrics_of(run) | {"accuracy": float((probs.argmax(axis=1) == labels).mean())})


def make_run(run: Path, **metrics: Any) -> Path:
    """A run folder as the test loop leaves it, with predictions of which every seventh is wrong."""
    run.mkdir(parents=True)
    write_metrics(run, METRICS_OF_A_RUN | metrics)
    write_config(run, {"model": "seed", "lr": 0.001, "patience": None})
    rng = np.random.default_rng(0)
    labels = np.arange(COUNT) % 10
    probs = rng.dirichlet([0.3] * 10, COUNT)
    probs[np.arange(COUNT), labels] += 0.6
    write_predictions(run, (probs / probs.sum(axis=1, keepdims=True)).astype(np.float32), labels)
    with SummaryWriter(str(run)) as writer:
        for epoch in range(3):
            for name in ("train/loss", "val/loss", "train/accuracy", "val/accuracy"):
                writer.add_scalar(name, 0.5 + epoch / 10, 11 * (epoch + 1))
            writer.add_scalar("epoch", epoch, 11 * (epoch + 1))
        writer.add_scalar("test/loss", 0.4, 33)
        writer.add_scalar("epoch", 3, 33)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its report, for tests that only look."""
    folder = make_run(tmp_path_factory.mktemp("logs") / "version_0")
    report.write_report(folder, IMAGES)
    return folder


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    return Page(run / REPORT)


def test_the_same_run_gives_the_same_bytes(run: Path) -> None:
    def contents() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in [run / REPORT, *(run / "report").iterdir()]}

    before = contents()
    assert len(before) == 8
    report.write_report(run, IMAGES)
    assert contents() == before


def test_nothing_is_fetched_and_nothing_runs(page: Page) -> None:
    for tag, attributes in page.elements:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form")
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,"))
    assert "://" not in page.source
    assert "@import" not in page.source


def test_ids_are_unique_and_what_refers_to_them_finds_them(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    references = {attributes["href"] for _, attributes in page.elements if attributes.get("href")}
    references |= set(re.findall(r"url\((#[^)]+)\)", page.source))
    assert len(references) > 20
    assert references <= {f"#{name}" for name in ids}


def test_a_phone_and_a_screen_reader_are_told_what_they_need(page: Page) -> None:
    assert page.source.lstrip().startswith("<!DOCTYPE html>")
    assert page.named("html") == [{"lang": "en"}]
    assert "version_0" in page.source.partition("<title>")[2].partition("</title>")[0]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.named("meta")
    assert "prefers-color-scheme: dark" in page.source
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_tables_have_captions_and_scoped_headers(page: Page) -> None:
    assert len(page.tables) == 9
    for table in page.tables:
        assert table["captions"] == 1
        head, *rows = table["rows"]
        assert set(head) == {("th", "col")}
        assert rows
        for row in rows:
            assert row == [("th", "row")] + [("td", None)] * (len(head) - 1)


def test_pictures_say_in_words_what_they_show(page: Page, run: Path) -> None:
    told = {drawing["class"]: drawing["aria-label"] for drawing in page.named("svg")}
    assert all(drawing["role"] == "img" for drawing in page.named("svg"))
    counts = confusion_matrix(*read_predictions(run, metrics_of(run)))
    row = counts[6]
    mistakes = row * (np.arange(10) != 6)
    shirt = f"Shirt: {row[6]} of 20 recognised, {mistakes.max()} taken for {CLASSES[mistakes.argmax()]}."
    assert shirt in told["confusion"]
    assert shirt in told["confusion_by_row"]
    assert f"{counts.trace()} of {COUNT} images are recognised" in told["confusion"]
    for name in ("roc", "precision_recall"):
        assert all(re.search(rf"{label} \d+\.\d\d", told[name]) for label in CLASSES)
    assert "expected calibration error" in told["reliability"]
    assert "train/loss 0.5000 after epoch 1, 0.7000 after epoch 3, best 0.5000 after 1" in told["learning_curves"]
    assert "val/accuracy 0.5000 after epoch 1, 0.7000 after epoch 3, best 0.7000 after 3" in told["learning_curves"]
    pictures = page.named("img")
    assert len(pictures) == min(report.MISTAKES, counts.sum() - counts.trace())
    assert all(re.match(r"Image \d+ of the test set, labelled", picture["alt"] or "") for picture in pictures)


def test_drawings_are_in_the_pages_own_colour_which_is_light_in_the_dark(page: Page) -> None:
    drawn = page.source[page.source.index("<svg") : page.source.rindex("</svg>")]
    assert "currentColor" in drawn
    assert "#000000" not in drawn
    assert "<style" not in drawn  # matplotlib's would hold for the whole page


def test_pictures_lie_beside_the_report_as_png(run: Path) -> None:
    names = {"confusion", "confusion_by_row", "roc", "precision_recall", "reliability", "learning_curves"}
    paths = list((run / "report").iterdir())
    assert {path.name for path in paths} == {f"{name}.png" for name in (*names, "worst_mistakes")}
    for path in paths:
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert picture.width > 600


def test_the_originals_figures_stand_beside_the_runs(page: Page) -> None:
    assert "86.00 % of 200 images are recognised" in page.text
    assert "The original's 91.39 % lies above that interval." in page.text
    assert re.search(r"accuracy\s*91.39\s*86.00\s*80.51 to 90.13", page.text)


def test_t_shirt_and_shirt_come_first_with_their_numbers(page: Page, run: Path) -> None:
    counts = confusion_matrix(*read_predictions(run, metrics_of(run)))
    assert f"{counts[6, 0]} of 20 shirts are taken for T-shirts or tops" in page.text
    assert f"{counts[0, 6]} of 20 T-shirts and tops for shirts" in page.text
    assert page.text.index("which the original's author named") < page.text.index("The 10 pairs most confused")


HARM = '<script>alert("harm")</script><img src=x onerror=alert(1)>'


def test_text_from_files_is_escaped(tmp_path: Path) -> None:
    environment = ENVIRONMENT | {"device": HARM, "versions": {HARM: HARM}}
    run = make_run(tmp_path / HARM.replace("/", ""), **environment, model=HARM, tested_with=environment)
    write_config(run, {HARM: HARM, "list": [HARM]})
    page = Page(report.write_report(run, IMAGES))
    assert not page.named("script")
    assert not any("onerror" in attributes for attributes in page.named("img"))
    assert page.text.count(HARM) >= 5


def test_harm_that_is_not_escaped_would_be_seen(tmp_path: Path) -> None:
    """The control of the test above."""
    (tmp_path / "page.html").write_text(f"<p>{HARM}</p>")
    page = Page(tmp_path / "page.html")
    assert page.named("script")
    assert "onerror" in page.named("img")[0]


def test_a_run_on_the_stand_in_says_so_and_is_compared_with_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "version_0", dataset="drawn")
    page = Page(report.write_report(run, IMAGES))
    assert {"class": "banner", "role": "note"} in page.named("p")
    drawings = len(page.named("svg"))
    assert page.text.count("DRAWN STAND-IN, not Fashion-MNIST") == drawings + 3  # title, head and banner
    assert "91.39" not in page.text
    assert "original" not in page.text.replace("which the original's author named", "").replace("the original's.", "")


def test_a_run_without_event_files_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "version_0")
    for path in run.glob("events.*"):
        path.unlink()
    page = Page(report.write_report(run, IMAGES))
    assert "holds no TensorBoard event files" in page.text
    assert len(page.named("svg")) == 5


def test_a_run_without_mistakes_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "version_0")
    labels = np.arange(COUNT) % 10
    write_predictions(run, np.eye(10, dtype=np.float32)[labels], labels)
    page = Page(report.write_report(run, IMAGES))
    assert "There are none: every image is recognised." in page.text
    assert not page.named("img")


@pytest.mark.parametrize(("count", "dataset"), [(COUNT - 1, "fashion_mnist"), (COUNT, "cifar10")])
def test_another_data_set_is_refused(tmp_path: Path, count: int, dataset: str) -> None:
    run = make_run(tmp_path / "version_0", dataset=dataset)
    with pytest.raises(UserError, match=f"was tested on 200 images of {dataset}, not on these {count}"):
        report.write_report(run, IMAGES[:count])


def test_a_report_of_the_whole_test_set_stays_small(tmp_path: Path) -> None:
    count = 10_000
    run = make_run(tmp_path / "version_0", n=count)
    rng = np.random.default_rng(0)
    write_predictions(run, rng.dirichlet([0.3] * 10, count).astype(np.float32), rng.integers(0, 10, count))
    written = report.write_report(run, IMAGES.expand(COUNT, 50, 28, 28).reshape(count, 1, 28, 28))
    assert written.stat().st_size < 600_000


def test_earlier_parts_of_the_training_and_another_machine_for_the_test_are_told() -> None:
    other = ENVIRONMENT | {"device": "another machine"}
    metrics = METRICS_OF_A_RUN | {"earlier_environments": [other, {}], "tested_with": other}
    captions = [table.caption.removeprefix("Environment of ") for table in report.environments(metrics)]
    assert captions == ["the training", "an earlier part of the training", "the test"]
    assert len(report.environments(METRICS_OF_A_RUN)) == 1


class TestInTheTestLoop:
    """What the programs write."""

    def test_training_ends_with_a_report_of_all_its_epochs(
        self, program: Program, tmp_path: Path, small_drawn: None
    ) -> None:
        run, output = small_run(program, tmp_path)
        assert f"report: {run / REPORT}" in output
        assert "more than one graph" not in output
        page = Page(run / REPORT)
        assert f"{100 * metrics_of(run)['accuracy']:.2f} % of 200 images are recognised" in page.text
        told = next(drawing["aria-label"] for drawing in page.named("svg") if drawing["class"] == "learning_curves")
        assert re.search(r"val/accuracy .* after epoch 2, best", told or "")

    def test_a_fault_in_the_report_leaves_the_metrics(
        self, program: Program, trained: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(report, "write_text", full)
        status, output = program(evaluate, "--run", trained, "--accelerator", "cpu")
        assert status == 1
        assert "No space left on device" in output
        assert not (trained / REPORT).exists()
        assert metrics_of(trained)["n"] == 200
