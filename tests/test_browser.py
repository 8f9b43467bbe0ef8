"""What a person sees: TensorBoard's own pages and the report, in Chromium."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import IN_CI, Program, small_run
from playwright.sync_api import Browser, Page, expect

from fmnist_lightning.browser import chromium, find_chromium, tensorboard
from fmnist_lightning.errors import UserError

WAIT = 30_000  # ms; TensorBoard answers before it has read the files

# A report without its pictures' text alternatives or with a fault in its code would be noticed: see the controls below.
MISSING_PICTURES = "images => images.filter(image => !image.complete || !image.naturalWidth).length"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The system's Chromium; without it these tests are skipped, and in CI they fail."""
    try:
        find_chromium()
    except UserError as error:
        pytest.fail(str(error)) if IN_CI else pytest.skip(str(error))
    with chromium() as started:
        yield started


OpenPage = Callable[..., tuple[Page, list[str]]]


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Open an address; gives the page, and a list that grows with each error that it reports."""
    pages: list[Page] = []

    def load(address: str, **options: object) -> tuple[Page, list[str]]:
        page = browser.new_page(**options)
        pages.append(page)
        errors: list[str] = []
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("requestfailed", lambda request: errors.append(f"not loaded: {request.url}"))
        page.goto(address)
        return page, errors

    yield load
    for page in pages:
        page.close()


def test_a_fault_on_a_page_is_heard_of(open_page: OpenPage, tmp_path: Path) -> None:
    """The control: what the tests below take for silence is not deafness."""
    (tmp_path / "page.html").write_text('<img src="missing.png"><script>throw Error("fault")</script>')
    page, errors = open_page((tmp_path / "page.html").as_uri())
    assert "fault" in errors
    assert any("missing.png" in error for error in errors)
    assert page.locator("img").evaluate_all(MISSING_PICTURES) == 1


@pytest.mark.usefixtures("small_drawn", "drawing")
def test_tensorboard_shows_curves_pictures_and_tables(program: Program, open_page: OpenPage, tmp_path: Path) -> None:
    small_run(program, tmp_path, "--test", "false")
    with tensorboard(tmp_path) as address:
        page, errors = open_page(f"{address}#custom_scalars")
        for chart in ("accuracy", "loss"):
            expect(page.get_by_text(chart, exact=True).first).to_be_visible(timeout=WAIT)
        page.goto(f"{address}#images")
        # What is filtered stands in a group of its own, none folded away, beside the groups that are open at first.
        page.get_by_role("textbox", name="Filter tags").fill("val/.*")
        pictures = page.locator("img[src*='individualImage']")
        expect(pictures).to_have_count(8, timeout=WAIT)
        assert pictures.evaluate_all(MISSING_PICTURES) == 0
        page.goto(f"{address}#text")
        expect(page.get_by_role("cell", name="T-shirt/top").first).to_be_visible(timeout=WAIT)
        assert errors == []
