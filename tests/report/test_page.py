"""The report of a run: what it says, that it opens anywhere, and that no text in it can do harm."""

from base64 import b64encode
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from conftest import Program, metrics_of
from matplotlib.figure import Figure
from matplotlib.text import Text

from fmnist_lightning.data.source import DataInfo
from fmnist_lightning.report import plots
from fmnist_lightning.report.console import result_text
from fmnist_lightning.report.page import facts, overview, recipe_of, write_report
from fmnist_lightning.report.results import CURVES, NEEDED
from fmnist_lightning.runs.folders import HISTORY, PREDICTIONS, REPORT, write_config, write_metrics
from fmnist_lightning.runs.options import as_yaml, read_recipe
from fmnist_lightning.training.evaluate import evaluate

COUNT = 200
LABELS = np.arange(COUNT) % 10
IMAGES = torch.randint(0, 256, (COUNT, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
ENVIRONMENT = {"device": "a machine", "versions": {"torch": "2.15.0"}, "git": {"commit": "abc", "dirty": False}}
METRICS = dict.fromkeys(NEEDED, 0.9) | {"dataset": "fashion_mnist", "split": "test", "n": COUNT}
METRICS |= {**ENVIRONMENT, "tested_with": ENVIRONMENT}
PLOTS = {"confusion", "roc", "precision_recall", "reliability", "learning_curves", "worst_mistakes"}
CROPS = DataInfo(name="crops", title="Crops, in color", classes=("a", "b", "c", "$d$"), image_shape=(3, 32, 32))
HARM = '<script>alert("harm")</script><img src="x" onerror="alert(1)"/>'


def write_predictions(run: Path, probs: np.ndarray, labels: np.ndarray) -> None:
    """Predictions and, in the metrics, their accuracy."""
    np.savez(run / PREDICTIONS, probs=probs, labels=labels)
    write_metrics(run, metrics_of(run) | {"accuracy": float((probs.argmax(axis=1) == labels).mean())})


def make_run(run: Path, **metrics: Any) -> Path:
    """A tested run of which all predictions are right, without metrics.csv."""
    run.mkdir(parents=True)
    write_metrics(run, METRICS | metrics)
    write_config(run, {"model": "seed", "lr": 0.001, "patience": None})
    write_predictions(run, np.eye(10, dtype=np.float32)[LABELS], LABELS)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with mistakes, curves and its report, for tests that only read."""
    run = make_run(tmp_path_factory.mktemp("logs") / "version_0")
    probs = np.random.default_rng(0).dirichlet([0.3] * 10, COUNT)
    probs[np.arange(COUNT), LABELS] += 0.6
    write_predictions(run, (probs / probs.sum(axis=1, keepdims=True)).astype(np.float32), LABELS)
    rows = [[str(epoch), *(len(CURVES) * [f"{0.4 + epoch / 10:.1f}"])] for epoch in (1, 2, 3)]
    (run / HISTORY).write_text("\n".join(map(",".join, [["epoch", *CURVES], *rows])))
    write_report(run, IMAGES)
    return run


def parsed(page: Path) -> ElementTree.Element:
    """The root of a page. Raises ParseError if elements are not nested, or an attribute occurs twice."""
    return ElementTree.fromstring(page.read_text(encoding="utf-8"))  # noqa: S314


@pytest.fixture(scope="module")
def page(run: Path) -> ElementTree.Element:
    return parsed(run / REPORT)


def text_of(element: ElementTree.Element) -> str:
    return " ".join("".join(element.itertext()).split())


def plots_of(page: ElementTree.Element) -> dict[str, ElementTree.Element]:
    return {image.get("class", ""): image for image in page.iter("img")}


def test_report_loads_and_runs_nothing(page: ElementTree.Element, run: Path) -> None:
    for element in page.iter():
        assert element.tag not in ("script", "link", "iframe", "object", "embed", "base", "form")
        assert not any(name.startswith("on") for name in element.attrib)
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert element.get(name, "#").startswith(("#", "data:image/png;base64,"))
    source = (run / REPORT).read_text()
    assert "://" not in source
    assert "@import" not in source
    assert len(source) < 1_000_000


def test_report_is_ready_for_phones_and_screen_readers(page: ElementTree.Element, run: Path) -> None:
    assert (run / REPORT).read_text().lstrip().startswith("<!DOCTYPE html>")
    assert page.get("lang") == "en"
    assert page.findtext("head/title") == "version_0: Fashion-MNIST, report"
    assert page.find("head/meta[@name='viewport']").get("content") == "width=device-width, initial-scale=1"
    sections = {section.get("id"): section.findtext("h2") for section in page.iter("section")}
    assert [(link.get("href"), link.text) for link in page.iter("a")] == [
        (f"#{name}", title) for name, title in sections.items()
    ]
    assert len(list(page.iter("caption"))) == len(list(page.iter("table"))) == 8
    assert {header.get("scope") for header in page.iter("th")} == {"col", "row"}


def test_report_embeds_the_png_files_with_alternative_texts(page: ElementTree.Element, run: Path) -> None:
    assert {path.stem for path in (run / "report").glob("*.png")} == plots_of(page).keys() == PLOTS
    for name, image in plots_of(page).items():
        content = b64encode((run / "report" / f"{name}.png").read_bytes()).decode()
        assert image.get("src") == f"data:image/png;base64,{content}"
    assert len({image.get("alt") for image in page.iter("img")}) == len(PLOTS)
    assert "val/accuracy 0.7000." in plots_of(page)["learning_curves"].get("alt", "")


def test_report_compares_with_published_results(page: ElementTree.Element) -> None:
    [accuracy] = [row for row in page.iter("tr") if row.findtext("th") == "accuracy"]
    assert [cell.text for cell in accuracy] == ["accuracy", "91.39", "86.00", "80.51 to 90.13"]
    assert "the accuracy 86.00%: the model is underconfident." in text_of(page)


def test_report_escapes_text_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "png", lambda figure: b"")
    environment = ENVIRONMENT | {"device": HARM, "versions": {HARM: HARM}}
    data = CROPS.as_plain() | {"title": HARM, "classes": [f"{HARM} {label}" for label in range(10)], "stand_in": True}
    run = make_run(tmp_path / HARM.replace("/", ""), **environment, model=HARM, tested_with=environment, data=data)
    write_config(run, {HARM: HARM, "list": [HARM]})
    page = parsed(write_report(run, IMAGES))
    assert not list(page.iter("script"))
    assert not any(image.get("onerror") for image in page.iter("img"))
    assert text_of(page).count(HARM) >= 5
    # The control: it would be seen.
    (tmp_path / "page.html").write_text(f"<p>{HARM}</p>")
    control = parsed(tmp_path / "page.html")
    assert list(control.iter("script"))
    assert control.find("img").get("onerror")


def test_report_says_that_data_is_a_stand_in(plotted_once: Path) -> None:
    page = parsed(plotted_once / REPORT)
    assert page.find(".//p[@class='banner'][@role='note']") is not None
    assert text_of(page).count("DRAWN STAND-IN, not Fashion-MNIST") == 3  # title, heading and banner
    assert "91.39" not in text_of(page)
    assert "original" not in text_of(page)
    assert "published" not in text_of(page)
    assert plots_of(page).keys() == PLOTS
    assert f"the accuracy {100 * metrics_of(plotted_once)['accuracy']:.2f}%" in text_of(page)


def of_other_data(run: Path) -> Path:
    """A tested run on CROPS, with mistakes. Its images are of one color."""
    labels = np.arange(COUNT) % len(CROPS.classes)
    make_run(run, dataset=CROPS.name, data=CROPS.as_plain())
    write_predictions(run, np.eye(len(CROPS.classes), dtype=np.float32)[np.where(labels == 3, 0, labels)], labels)
    return run


def test_report_of_other_data_has_its_own_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    png = plots.png

    def noting(figure: Figure) -> bytes:
        drawn.extend(text.get_text() for text in figure.findobj(Text))
        return png(figure)

    monkeypatch.setattr(plots, "png", noting)
    run = of_other_data(tmp_path / "version_0")
    page = parsed(write_report(run, torch.zeros(COUNT, 3, 32, 32, dtype=torch.uint8)))
    shown = text_of(page) + result_text(metrics_of(run)) + " ".join(drawn)
    assert shown.count(CROPS.title) >= 2
    assert "$d$ and" in shown or "and $d$" in shown
    assert r"\$d\$" in drawn  # how matplotlib takes it for text
    assert page.find(".//p[@class='banner']") is None
    for foreign in ("Fashion", "MNIST", "91.39", "T-shirt", "published", "original"):
        assert foreign not in shown


def test_report_needs_no_metrics_csv_and_no_mistakes(tmp_path: Path) -> None:
    page = parsed(write_report(make_run(tmp_path / "version_0"), IMAGES))
    assert f"no {HISTORY}" in text_of(page)
    assert plots_of(page).keys() == PLOTS - {"learning_curves"}
    assert len(list(page.iter("details"))) == 1


def test_facts_name_each_environment() -> None:
    other = ENVIRONMENT | {"device": "another machine"}
    metrics = METRICS | {"earlier_environments": [other, {}], "tested_with": other}
    captions = [table.caption.removeprefix("Environment of ") for table in facts(metrics, {})]
    assert captions[1:-1] == ["the training", "an earlier part of the training", "the test"]
    assert len(facts(METRICS, {})) == 3


def test_failed_report_leaves_the_metrics(program: Program, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fmnist_lightning.training.evaluate.write_report", full)
    status, output = program(evaluate, "--run", trained, "--accelerator", "cpu")
    assert status == 1
    assert "No space left on device" in output
    assert metrics_of(trained)["n"] == COUNT


def test_overview_names_recipe_times_and_dates() -> None:
    config = as_yaml(read_recipe("fast")) | {"dataset": "drawn", "seed": 3, "precision": "64-true"}
    metrics = METRICS | {"training_seconds": 4320, "trained_at": "2026-01-02", "tested_at": "2026-01-03"}
    known = {"recipe": "fast", "training time": "1 h 12 min"}
    assert overview(metrics, config) == known | {"trained until": "2026-01-02", "tested": "2026-01-03"}
    assert overview(METRICS | {"training_seconds": 4320}, config) == known
    assert recipe_of(config | {"max_epochs": 2, "flip": True}) == "fast, but flip True, max_epochs 2"
    assert (
        recipe_of(config | {"model": "own", "lr": 5, "ema": 0.5, "flip": True, "shift": 3}) == "none of the project's"
    )
