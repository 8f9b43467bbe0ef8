"""What a person sees: the report and TensorBoard's own pages in Chromium."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from conftest import IN_CI
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from fmnist_lightning.errors import UserError
from fmnist_lightning.runs.folders import REPORT
from tools.browser import chromium, find_chromium, tensorboard
from tools.screenshots import take_screenshots

WAIT = 30_000  # ms; TensorBoard answers before it has read the files
PHONE = {"width": 360, "height": 740}
MISSING_IMAGES = "images => images.filter(image => !image.complete || !image.naturalWidth).length"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The system's Chromium. Without it these tests are skipped, and fail in CI."""
    try:
        find_chromium()
    except UserError as error:
        pytest.fail(str(error)) if IN_CI else pytest.skip(str(error))
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def server(plotted_once: Path) -> Iterator[str]:
    """The address of a TensorBoard of its own process, once it has read the run."""
    with tensorboard(plotted_once.parent) as address:
        deadline = time.monotonic() + WAIT / 1000
        while urlopen(f"{address}data/plugin/scalars/tags").read() == b"{}" and time.monotonic() < deadline:
            time.sleep(0.2)
        yield address


def open_page(browser: Browser, address: str, **options: object) -> tuple[Page, list[str]]:
    """An open page, and a list that grows with each error that it reports."""
    page = browser.new_page(**options)
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("requestfailed", lambda request: errors.append(f"not loaded: {request.url}"))
    page.goto(address)
    return page, errors


def width_beyond(page: Page) -> int:
    """Pixels by which a page is wider than its window."""
    return page.evaluate("document.documentElement.scrollWidth - innerWidth")


def brightness(page: Page, selector: str, what: str) -> int:
    """0 to 255, of the red in a computed color."""
    color = page.locator(selector).first.evaluate(f"element => getComputedStyle(element).{what}")
    return int(color.removeprefix("rgb(").partition(",")[0])


def test_open_page_reports_faults(browser: Browser, tmp_path: Path) -> None:
    """The control of the tests below: they would see errors, missing images and a page that is too wide."""
    faults = '<img src="missing.png"><script>throw Error("fault")</script><table width="900"><td>.'
    (tmp_path / "page.html").write_text(f'<meta name="viewport" content="width=device-width">{faults}')
    page, errors = open_page(browser, (tmp_path / "page.html").as_uri(), viewport=PHONE)
    assert "fault" in errors
    assert any("missing.png" in error for error in errors)
    assert page.locator("img").evaluate_all(MISSING_IMAGES) == 1
    assert width_beyond(page) > 0


@pytest.mark.parametrize("options", [{"color_scheme": "light"}, {"color_scheme": "dark", "viewport": PHONE}])
def test_report_is_complete_and_readable_offline(browser: Browser, plotted_once: Path, options: dict[str, Any]) -> None:
    page, errors = open_page(browser, (plotted_once / REPORT).as_uri(), offline=True, **options)
    expect(page.get_by_role("navigation", name="Sections").get_by_role("link")).to_have_count(8)
    expect(page.get_by_role("img", name="Confusion matrix")).to_be_visible()
    expect(page.get_by_role("table", name="Metrics of each class")).to_be_visible()
    images = page.locator("img")
    assert images.evaluate_all(MISSING_IMAGES) == 0
    assert all(box and box["width"] > 200 for box in (image.bounding_box() for image in images.all()))
    assert width_beyond(page) <= 0
    ground = brightness(page, "body", "backgroundColor")
    assert (ground < 64) == (options["color_scheme"] == "dark")
    assert abs(brightness(page, "td", "color") - ground) > 128
    assert errors == []


def test_tensorboard_shows_charts_plots_and_tables(browser: Browser, server: str) -> None:
    page, errors = open_page(browser, f"{server}#custom_scalars")
    for chart in ("accuracy", "loss"):
        expect(page.get_by_text(chart, exact=True).first).to_be_visible(timeout=WAIT)
    page.goto(f"{server}#images")
    plots = page.locator("img[src*='individualImage']")
    expect(plots).to_have_count(7, timeout=WAIT)
    assert plots.evaluate_all(MISSING_IMAGES) == 0
    page.goto(f"{server}#text")
    expect(page.get_by_role("cell", name="T-shirt/top").first).to_be_visible(timeout=WAIT)
    assert errors == []


def test_take_screenshots_draws_readmes_pictures(
    browser: Browser, plotted_once: Path, server: str, tmp_path: Path
) -> None:
    taken = take_screenshots(browser, plotted_once, server, tmp_path)
    assert [path.name for path in taken] == ["report.png", "tensorboard.png", "prediction.png"]
    for path in taken:
        with Image.open(path) as picture:
            assert picture.width >= 1000
            assert len(picture.convert("L").getcolors() or ()) > 30  # it is not empty
