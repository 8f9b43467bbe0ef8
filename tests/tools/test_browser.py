"""What a person sees: TensorBoard's own pages and the report, in Chromium."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import IN_CI, Program, small_run
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from test_report import IMAGES, make_run

from fmnist_lightning.errors import UserError
from fmnist_lightning.report.page import write_report
from tools.browser import chromium, find_chromium, tensorboard
from tools.screenshotting import take_screenshots

WAIT = 30_000  # ms; TensorBoard answers before it has read the files
PHONE = {"width": 360, "height": 740}
SECTIONS = (
    "Result", "Learning curves", "Confusion matrix", "Pairs most confused", "Worst mistakes", "Classes", "Calibration",
    "Environment",
)  # fmt: skip

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


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of a report."""
    run = make_run(tmp_path_factory.mktemp("logs") / "version_0")
    return write_report(run, IMAGES).as_uri()


def width_beyond(page: Page) -> int:
    """Pixels by which a page is wider than its window."""
    return page.evaluate("document.documentElement.scrollWidth - innerWidth")


def brightness(page: Page, selector: str, what: str) -> float:
    """0 to 255, of the colour that an element really has."""
    colour = page.locator(selector).first.evaluate(f"element => getComputedStyle(element).{what}")
    return sum(map(int, colour.removeprefix("rgb(").removesuffix(")").split(","))) / 3


def test_the_report_opens_offline_without_a_fault_and_shows_all_its_parts(open_page: OpenPage, address: str) -> None:
    page, errors = open_page(address, offline=True)
    for section in SECTIONS:
        expect(page.get_by_role("heading", name=section, exact=True)).to_be_visible()
    assert page.locator("svg").count() == 6
    assert all(box["width"] > 200 for box in (drawing.bounding_box() or {} for drawing in page.locator("svg").all()))
    assert page.locator("img").count() > 0
    assert page.locator("img").evaluate_all(MISSING_PICTURES) == 0
    assert errors == []


def test_the_report_fits_a_phone(open_page: OpenPage, address: str, tmp_path: Path) -> None:
    page, _ = open_page(address, viewport=PHONE)
    assert width_beyond(page) <= 0
    (tmp_path / "wide.html").write_text('<meta name="viewport" content="width=device-width"><table width="900"><td>.')
    wide, _ = open_page((tmp_path / "wide.html").as_uri(), viewport=PHONE)
    assert width_beyond(wide) > 0  # the control


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_reports_text_and_drawings_stand_out_from_its_ground(
    open_page: OpenPage, address: str, scheme: str
) -> None:
    page, _ = open_page(address, color_scheme=scheme)
    ground = brightness(page, "section", "backgroundColor")
    assert (ground < 64) == (scheme == "dark")
    for selector, what in (("section p", "color"), ("svg text", "fill"), ("td", "color")):
        assert abs(brightness(page, selector, what) - ground) > 128


def test_a_screen_reader_hears_what_pictures_and_tables_are(open_page: OpenPage, address: str) -> None:
    page, _ = open_page(address)
    expect(page.get_by_role("img", name="Confusion matrix:").first).to_be_visible()
    expect(page.get_by_role("table", name="Each class, per cent")).to_be_visible()
    expect(page.get_by_role("rowheader", name="T-shirt/top", exact=True).first).to_be_visible()
    expect(page.get_by_role("navigation", name="Sections").get_by_role("link")).to_have_count(len(SECTIONS))


@pytest.mark.usefixtures("small_drawn", "drawing")
def test_readmes_pictures_can_be_taken_anew(program: Program, browser: Browser, tmp_path: Path) -> None:
    run, _ = small_run(program, tmp_path / "logs")
    taken = take_screenshots(browser, run, tmp_path / "images")
    assert [path.name for path in taken] == ["report.png", "tensorboard.png", "prediction.png"]
    for path in taken:
        with Image.open(path) as picture:
            assert picture.width >= 1000
            assert len(picture.convert("L").getcolors() or ()) > 30  # something is drawn
