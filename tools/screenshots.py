"""README's pictures, taken anew in Chromium: python scripts/screenshots.py --help"""

import sys
from pathlib import Path

from fmnist_lightning.cli import LOG_DIR, run


def screenshots(*, run_folder: str = "last", log_dir: str = LOG_DIR, output: str = "docs/images") -> None:
    """Show a run's report, its pages in TensorBoard, and predictions, as PNG files.

    Args:
        run_folder: Run folder, or last for the newest in the log folder. It was tested.
        log_dir: Folder of the run folders version_N.
        output: Folder of the pictures.
    """
    from fmnist_lightning.runs.folders import find_run
    from tools.browser import chromium
    from tools.screenshotting import take_screenshots

    run_found = find_run(run_folder, Path(log_dir))
    with chromium() as browser:
        for picture in take_screenshots(browser, run_found, Path(output)):
            print(picture)


if __name__ == "__main__":
    sys.exit(run(screenshots))
