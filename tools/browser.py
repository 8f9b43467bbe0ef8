"""TensorBoard's server and the system's Chromium, for README's pictures and for tests."""

import os
import re
import shutil
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, sync_playwright

from fmnist_lightning.errors import UserError


@contextmanager
def tensorboard(log_dir: Path) -> Iterator[str]:
    """Start TensorBoard on a free port; yield its address, which ends in a slash.

    Raises UserError if it does not start.
    """
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(log_dir), "--port", "0"]
    # Its faster loader is a separate program, which is not available on all systems.
    command += ["--load_fast", "false"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as server:
        lines: Any = server.stderr
        try:
            printed = []
            for line in lines:
                printed.append(line)
                if address := re.search(r"http://\S+", line):
                    # Drain its log: a full pipe would stop it.
                    threading.Thread(target=deque, args=(lines, 0), daemon=True).start()
                    yield address[0]
                    return
            raise UserError(f"TensorBoard did not start: {''.join(printed)}")
        finally:
            server.kill()  # on SIGTERM it may wait forever for a browser's open connections


def find_chromium() -> str:
    """The path of the system's Chromium. Raises UserError if there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    if path := next(filter(None, map(shutil.which, names)), None):
        return path
    raise UserError(f"cannot find {', '.join(names)} on PATH (Debian: apt-get install chromium)")


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start the system's Chromium without a window. Raises UserError if there is none."""
    path = find_chromium()
    with sync_playwright() as playwright:
        # CI runs as root, and Chromium's sandbox does not.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        try:
            yield browser
        finally:
            browser.close()
