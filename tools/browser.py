"""TensorBoard's own server and the system's Chromium, for the pictures of README and for the tests."""

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
    """A TensorBoard of its own process on a port that is free; gives its address, which ends in a slash.

    Raises UserError where it does not start.
    """
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(log_dir), "--port", "0"]
    # Its faster loader is a program of its own, which reads remote folders too and is not there on all systems.
    command += ["--load_fast", "false"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as server:
        lines: Any = server.stderr
        try:
            printed = []
            for line in lines:
                printed.append(line)
                if address := re.search(r"http://\S+", line):
                    # What it logs from here on goes nowhere; a full pipe would stop it.
                    threading.Thread(target=deque, args=(lines, 0), daemon=True).start()
                    yield address[0]
                    return
            raise UserError(f"TensorBoard did not start: {''.join(printed)}")
        finally:
            server.kill()  # asked to end, it may wait for a browser's open connections for ever


def find_chromium() -> str:
    """The path of the system's Chromium. Raises UserError where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    if path := next(filter(None, map(shutil.which, names)), None):
        return path
    raise UserError(f"none of {', '.join(names)} is on PATH: install Chromium (Debian: apt-get install chromium)")


@contextmanager
def chromium() -> Iterator[Browser]:
    """The system's Chromium without a window. Raises UserError where there is none."""
    path = find_chromium()
    with sync_playwright() as playwright:
        # Chromium refuses to run as root in its sandbox, which CI does.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        try:
            yield browser
        finally:
            browser.close()
