"""The report of a run: what it says, that it opens anywhere, and that no text in it can do harm."""

import re
from base64 import b64encode
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Program, metrics_of
from pages import Page
from torch.utils.tensorboard import SummaryWriter

from fmnist_lightning.report import page as report
from fmnist_lightning.report.analysis import confusion_matrix
from fmnist_lightning.report.page import describe_calibration, describe_measuring, facts, write_report
from fmnist_lightning.report.results import read_predictions
from fmnist_lightning.runs.folders import PREDICTIONS, REPORT, write_config, write_metrics
from fmnist_lightning.training.evaluate import evaluate

pytestmark = pytest.mark.usefixtures("drawing")
COUNT = 200
IMAGES = torch.randint(0, 256, (COUNT, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
ENVIRONMENT: dict[str, Any] = {"device": "a machine", "versions": {"torch": "2.15.0"}, "processes": 1}
ENVIRONMENT |= {"git": {"commit": "abc", "dirty": False}}
METRICS: dict[str, Any] = {
    "dataset": "fashion_mnist",
    "split": "test",
    "n": COUNT,
    "model": "seed",
    "parameters": 225034,
}
METRICS |= {"accuracy": 0.9, "precision": 0.91, "recall": 0.9, "f1": 0.905, "auroc": 0.99, "arithmetic": "32-true"}
METRICS |= {"checkpoint": "best", "checkpoint_epoch": 2, "seed": 0, "training_seconds": 12.3, "epochs": 3}
METRICS |= {"batch_size": 50, "earlier_environments": [], "tested_with": ENVIRONMENT, **ENVIRONMENT}
PLOTS = {"confusion", "confusion_by_row", "roc", "precision_recall", "reliability", "learning_curves", "worst_mistakes"}


def write_predictions(run: Path, probs: np.ndarray, labels: np.ndarray) -> None:
    """Predictions and, in the metrics, their accuracy."""
    np.savez(run / PREDICTIONS, probs=probs, labels=labels)
    write_metrics(run, metrics_of(run) | {"accuracy": float((probs.argmax(axis=1) == labels).mean())})


def make_run(run: Path, **metrics: Any) -> Path:
    """A run folder as the test leaves it, without its report."""
    run.mkdir(parents=True)
    write_metrics(run, METRICS | metrics)
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
        writer.add_scalar("epoch", 3, 33)  # by the test
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its report, for tests that only read."""
    folder = make_run(tmp_path_factory.mktemp("logs") / "version_0")
    write_report(folder, IMAGES)
    return folder


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    return Page(run / REPORT)


def test_report_is_small_and_deterministic(run: Path) -> None:
    def contents() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in [run / REPORT, *(run / "report").iterdir()]}

    before = contents()
    assert len(before[REPORT]) < 1_000_000
    write_report(run, IMAGES)
    assert contents() == before


def test_report_loads_and_runs_nothing(page: Page) -> None:
    for tag, attributes in page.elements:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form")
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,"))
    assert "://" not in page.source
    assert "@import" not in page.source


def test_report_links_to_each_section(page: Page) -> None:
    ids = [section["id"] for section in page.named("section")]
    assert len(set(ids)) == len(ids)
    assert [link["href"] for link in page.named("a")] == [f"#{name}" for name in ids]


def test_report_is_ready_for_phones_and_screen_readers(page: Page) -> None:
    assert page.source.lstrip().startswith("<!DOCTYPE html>")
    assert page.named("html") == [{"lang": "en"}]
    assert "version_0" in page.source.partition("<title>")[2].partition("</title>")[0]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.named("meta")
    headings = [tag for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert headings == ["h1"] + ["h2"] * len(page.named("section"))
    assert len(page.named("caption")) == len(page.named("table")) == 10
    assert all(header["scope"] in ("col", "row") for header in page.named("th"))


def test_report_embeds_the_png_files_with_alternative_texts(page: Page, run: Path) -> None:
    assert {path.name for path in (run / "report").iterdir()} == {f"{name}.png" for name in PLOTS}
    images = {image["class"]: image for image in page.named("img")}
    assert images.keys() == PLOTS
    for name, image in images.items():
        content = b64encode((run / "report" / f"{name}.png").read_bytes()).decode()
        assert image["src"] == f"data:image/png;base64,{content}"
    assert len({image["alt"] for image in images.values()}) == len(PLOTS)
    assert "172 of 200 images" in (images["confusion"]["alt"] or "")
    assert "val/accuracy 0.7000" in (images["learning_curves"]["alt"] or "")


def test_report_compares_with_the_original(page: Page) -> None:
    assert "recognizes 86.00% of 200 images" in page.text
    assert "The original's accuracy, 91.39%, is above the interval." in page.text
    assert re.search(r"accuracy\s*91.39\s*86.00\s*80.51 to 90.13", page.text)


def test_report_counts_the_authors_pair(page: Page, run: Path) -> None:
    counts = confusion_matrix(*read_predictions(run, metrics_of(run)))
    both = counts[6, 0] + counts[0, 6]
    assert f"takes {counts[6, 0]} of 20 shirts for T-shirts, and {counts[0, 6]} of 20 T-shirts for shirts" in page.text
    assert f"{both} of {COUNT - counts.trace()} mistakes, rank " in page.text


HARM = '<script>alert("harm")</script><img src=x onerror=alert(1)>'


def test_report_escapes_text_from_files(tmp_path: Path) -> None:
    environment = ENVIRONMENT | {"device": HARM, "versions": {HARM: HARM}}
    run = make_run(tmp_path / HARM.replace("/", ""), **environment, model=HARM, tested_with=environment)
    write_config(run, {HARM: HARM, "list": [HARM]})
    page = Page(write_report(run, IMAGES))
    assert not page.named("script")
    assert not any("onerror" in attributes for attributes in page.named("img"))
    assert page.text.count(HARM) >= 5
    # The control: it would be seen.
    (tmp_path / "page.html").write_text(f"<p>{HARM}</p>")
    control = Page(tmp_path / "page.html")
    assert control.named("script")
    assert "onerror" in control.named("img")[0]


def test_report_says_that_data_is_a_stand_in(plotted_once: Path) -> None:
    page = Page(plotted_once / REPORT)
    assert {"class": "banner", "role": "note"} in page.named("p")
    assert page.text.count("DRAWN STAND-IN, not Fashion-MNIST") == 3  # title, heading and banner
    assert "91.39" not in page.text
    assert "original" not in page.text.replace("The original's author", "")
    # All epochs, and the metrics of the test.
    assert "learning_curves" in {image["class"] for image in page.named("img")}
    assert f"recognizes {100 * metrics_of(plotted_once)['accuracy']:.2f}% of 200 images" in page.text


def test_report_needs_no_event_files_and_no_mistakes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "version_0")
    for path in run.glob("events.*"):
        path.unlink()
    labels = np.arange(COUNT) % 10
    write_predictions(run, np.eye(10, dtype=np.float32)[labels], labels)
    page = Page(write_report(run, IMAGES))
    assert "no TensorBoard event files" in page.text
    assert {image["class"] for image in page.named("img")} == PLOTS - {"learning_curves"}
    assert len(page.named("details")) == 2
    assert "0 of 0 mistakes" in page.text


def test_facts_name_each_environment() -> None:
    other = ENVIRONMENT | {"device": "another machine"}
    metrics = METRICS | {"earlier_environments": [other, {}], "tested_with": other}
    captions = [table.caption.removeprefix("Environment of ") for table in facts(metrics, {})]
    assert captions[1:-1] == ["the training", "an earlier part of the training", "the test"]
    assert len(facts(METRICS, {})) == 3


def test_describe_calibration_names_the_bias() -> None:
    probs = np.full((2, 10), 0.3 / 9, np.float32)
    probs[:, 0] = 0.7
    assert "70.00%, the accuracy 50.00%: the model is overconfident" in describe_calibration(probs, np.array([0, 1]))
    assert "underconfident" in describe_calibration(probs, np.array([0, 0]))


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({}, "with dropout, so"),
        ({"flip": False, "shift": 0, "erase": 0.0, "mixup": 0.0}, "with dropout, so"),
        ({"flip": False, "shift": 1, "mixup": 0.0}, "with dropout and on augmented images, so"),
        ({"mixup": 0.2}, "on augmented images, against the label of the larger part of each mixed image, so"),
    ],
)
def test_describe_measuring_depends_on_augmentation(config: dict[str, Any], text: str) -> None:
    assert text in describe_measuring(config)


def test_failed_report_leaves_the_metrics(program: Program, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report, "write_text", full)
    status, output = program(evaluate, "--run", trained, "--accelerator", "cpu")
    assert status == 1
    assert "No space left on device" in output
    assert not (trained / REPORT).exists()
    assert metrics_of(trained)["n"] == COUNT
