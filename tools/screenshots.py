"""Take README's pictures in Chromium, without any image of the data set: python -m tools.screenshots --help"""

import html
import sys
from base64 import b64encode
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Browser

from fmnist_lightning.cli.main import main
from fmnist_lightning.cli.types import LOG_DIR, path_option
from fmnist_lightning.errors import UserError
from fmnist_lightning.predict.classifier import PictureClassifier, load_classifier
from fmnist_lightning.predict.pictures import prepare
from fmnist_lightning.runs.files import atomic_write
from fmnist_lightning.runs.folders import REPORT, find_run
from tools.browser import chromium, tensorboard

WIDTH = 1000  # pixels
WAIT = 60_000  # ms; TensorBoard answers before it has read its files
# Characters that the system's fonts draw in color: pictures that the model has never seen, and no photographs.
DRAWINGS = "👕👖👗🧥👜👢"

PREDICTION_STYLE = """
body { margin: 0; padding: 24px; width: 952px; font: 15px "DejaVu Sans", sans-serif; background: #fff; color: #16181d }
main { display: grid; grid-template-columns: 1fr 1fr; gap: 18px }
article { display: grid; grid-template-columns: 96px 96px 1fr; gap: 14px; align-items: center }
img { width: 96px; height: 96px; border: 1px solid #d5d9e0; border-radius: 6px }
img + img { image-rendering: pixelated }
li { list-style: none; position: relative; padding: 3px 6px; margin: 2px 0 }
i { position: absolute; inset: 0 auto 0 0; background: #9fd0f5; border-radius: 4px; z-index: -1 }
ul { padding: 0; margin: 0 }
"""


def take_screenshots(browser: Browser, run: Path, address: str, folder: Path) -> list[Path]:
    """Write pictures of a run's report, of its TensorBoard at `address`, and of predictions; return the files."""
    pictures = {
        "report": report_picture(browser, run),
        "tensorboard": tensorboard_picture(browser, address),
        "prediction": prediction_picture(browser),
    }
    for name, content in pictures.items():
        with atomic_write(folder / f"{name}.png") as file:
            file.write(content)
    return [folder / f"{name}.png" for name in pictures]


def report_picture(browser: Browser, run: Path) -> bytes:
    """The head of the report: result, curves and confusion matrix."""
    page = browser.new_page(viewport={"width": WIDTH, "height": 1350})
    page.goto((run / REPORT).absolute().as_uri())
    return page.screenshot()


def tensorboard_picture(browser: Browser, address: str) -> bytes:
    """The plots of the last validation that show no garments."""
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.goto(f"{address}#images")
    page.get_by_role("textbox", name="Filter tags").fill("roc|reliability|precision|confusion")
    page.locator("img[src*='individualImage']").nth(3).wait_for(timeout=WAIT)
    page.wait_for_load_state("networkidle")
    return page.screenshot()


def prediction_picture(browser: Browser) -> bytes:
    """DRAWINGS, what the model sees of them, and its three most probable classes.

    Raises UserError if no font has them, so that all look alike.
    """
    classify = load_classifier()
    drawings = [drawing(browser, character) for character in DRAWINGS]
    if len({picture.tobytes() for picture in drawings}) < len(drawings):
        raise UserError(f"cannot draw {DRAWINGS}: no font has them (Debian: apt-get install fonts-noto-color-emoji)")
    articles = [article(classify, picture) for picture in drawings]
    page = browser.new_page(viewport={"width": WIDTH, "height": 100})
    page.set_content(f"<style>{PREDICTION_STYLE}</style><main>{''.join(articles)}</main>")
    return page.screenshot(full_page=True)


def drawing(browser: Browser, character: str) -> Image.Image:
    """A character in a size of 200 pixels, on white."""
    page = browser.new_page(viewport={"width": 300, "height": 300})
    style = "margin: 0; height: 300px; display: grid; place-items: center; font-size: 200px"
    page.set_content(f'<body style="{style}">{character}</body>')
    content = page.screenshot()
    page.close()
    return Image.open(BytesIO(content))


def article(classify: PictureClassifier, picture: Image.Image) -> str:
    """HTML of a picture, of what the model sees of it, and of its prediction."""
    seen = Image.fromarray(prepare(picture)[0])
    [top] = classify(np.asarray(seen)).top(3)
    bars = [
        f'<li><i style="width: {100 * prob:.1f}%"></i>{html.escape(classify.card["classes"][label])} {prob:.0%}</li>'
        for label, prob in top
    ]
    return f"<article>{image_tag(picture)}{image_tag(seen)}<ul>{''.join(bars)}</ul></article>"


def image_tag(image: Image.Image) -> str:
    file = BytesIO()
    image.save(file, "PNG")
    return f'<img src="data:image/png;base64,{b64encode(file.getvalue()).decode()}">'


@dataclass(frozen=True, kw_only=True)
class ScreenshotOptions:
    """Show a tested run's report, its pages in TensorBoard, and predictions, as PNG files."""

    run_folder: str = path_option("last")
    """Run folder, or last for the newest in the log folder."""
    log_dir: str = path_option(LOG_DIR)
    """Folder of the run folders version_N."""
    output: str = path_option("docs/images")
    """Folder of the pictures."""


def screenshots(options: ScreenshotOptions) -> None:
    """Take the pictures and print their paths."""
    run = find_run(options.run_folder, Path(options.log_dir))
    with chromium() as browser, tensorboard(run) as address:
        for picture in take_screenshots(browser, run, address, Path(options.output)):
            print(picture)


if __name__ == "__main__":
    sys.exit(main(ScreenshotOptions, screenshots))
