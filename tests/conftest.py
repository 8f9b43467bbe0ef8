"""What the tests share: tiny data of their own, the real data where it is, a mirror, and the program in-process."""

import contextlib
import gzip
import hashlib
import json
import os
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest

# Before torch is imported: processes of pytest-xdist share the cores, and each taking all of them costs time.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# Before Keras is imported: the backend to compare with, and no file of its own in the user's home.
os.environ["KERAS_BACKEND"] = "torch"
os.environ["KERAS_HOME"] = os.devnull

import lightning as L

from fmnist_lightning.cli.main import main
from fmnist_lightning.data import decoded
from fmnist_lightning.data.sets import download, drawn
from fmnist_lightning.data.sets.fashion_mnist import FILES
from fmnist_lightning.errors import SIGNALS
from fmnist_lightning.report.logged_plots import ValidationPlots
from fmnist_lightning.runs.folders import find_run
from fmnist_lightning.training.train import train

Program = Callable[..., tuple[int, str]]
TINY = {"train": 120, "t10k": 40}  # images in the tiny sets
IN_CI = os.environ.get("CI") == "true"


@pytest.hookimpl(trylast=True)  # as the last lines but one
def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say why tests were skipped, in a line for each reason; pytest's -rs has one for each place."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(str(report.longrepr[2]).removeprefix("Skipped: ") for report in skipped)
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count} skipped: {reason}")


@pytest.fixture(autouse=True)
def plain_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' own servers are reached without a proxy, and no mirror of the user's is asked."""
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    monkeypatch.delenv(download.MIRROR_VARIABLE, raising=False)


@pytest.fixture
def real_data_dir() -> Path:
    """The folder of the genuine files; without it the test is skipped, and in CI fails."""
    folder = os.environ.get("FMNIST_DATA_DIR")
    if folder:
        return Path(folder).resolve()
    reason = "FMNIST_DATA_DIR does not name the genuine Fashion-MNIST"
    return pytest.fail(reason) if IN_CI else pytest.skip(reason)


@pytest.fixture
def tiny_files(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Four small IDX files, which the program then takes for the genuine ones."""
    rng = np.random.default_rng(0)
    files = {}
    for prefix, count in TINY.items():
        images = rng.integers(0, 256, (count, 28, 28), np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        for name, values in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
            header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes()
            files[name] = header + values.tobytes()
    take_for_genuine(monkeypatch, files)
    return files


def take_for_genuine(monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]) -> None:
    """Let the program expect these files."""
    from torchvision.datasets import FashionMNIST

    for name, content in files.items():
        monkeypatch.setitem(FILES, name, hashlib.sha256(content).hexdigest())
    md5s = [(f"{name}.gz", hashlib.md5(pack(content)).hexdigest()) for name, content in files.items()]  # noqa: S324
    monkeypatch.setattr(FashionMNIST, "resources", md5s)


def pack(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


@pytest.fixture
def tiny_dir(tiny_files: dict[str, bytes], tmp_path: Path) -> Path:
    """A folder that holds the four small files, unpacked, without torchvision's layout."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    for name, content in tiny_files.items():
        (folder / name).write_bytes(content)
    return folder


class Mirror:
    """A local HTTP server that answers each path by a function, and counts what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        self.asked: list[str] = []
        self.contacts = 0
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.rpartition("/")[2]
                mirror.contacts += 1
                # torchvision first looks for redirects, by a GET whose body it does not read.
                if self.headers.get("Method") != "HEAD":
                    mirror.asked.append(name)
                mirror.answers.get(name, lambda handler: handler.send_error(404))(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def serve(self, name: str, body: bytes, length: int | None = None) -> None:
        """Answer `name` with `body`; a larger `length` makes it a transfer that breaks off."""

        def answer(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(200)
            handler.send_header("Content-Length", str(length or len(body)))
            handler.end_headers()
            handler.wfile.write(body)

        self.answers[name] = answer


@pytest.fixture
def new_mirror() -> Iterator[Callable[[], Mirror]]:
    mirrors: list[Mirror] = []

    def start() -> Mirror:
        mirrors.append(Mirror())
        return mirrors[-1]

    yield start
    for mirror in mirrors:
        mirror.server.shutdown()
        mirror.server.server_close()


@pytest.fixture
def mirror(new_mirror: Callable[[], Mirror], tiny_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Mirror:
    """The only mirror that the program knows, with the four small files, packed."""
    started = new_mirror()
    for name, content in tiny_files.items():
        started.serve(f"{name}.gz", pack(content))
    use_mirrors(monkeypatch, started.url)
    return started


def use_mirrors(monkeypatch: pytest.MonkeyPatch, first: str, second: str | None = None) -> None:
    """Replace the built-in mirrors, and don't wait between attempts."""
    from torchvision.datasets import FashionMNIST

    monkeypatch.setattr(FashionMNIST, "mirrors", [first])
    monkeypatch.setattr(download, "AUTHORS_MIRROR", second or first)
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0)


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Let nobody write to `folder`, not even root, which takes the rights of the user nobody."""
    for path in (*folder.rglob("*"), folder):
        path.chmod(0o555 if path.is_dir() else 0o444)
    user = os.geteuid()
    if user == 0:
        for parent in folder.parents:
            if parent.name.startswith(("pytest-", "popen-")) or parent == folder.parent:  # closed to other users
                parent.chmod(0o755)
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.fixture(autouse=True)
def short_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures that a test has just written are cached soon: its clock advances every few milliseconds."""
    monkeypatch.setattr(decoded, "TICK_SECONDS", 0.05)


NOWHERE = "http://127.0.0.1:9/"  # the discard port: nothing listens, so a connection is refused at once


@pytest.fixture
def small_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """600 + 200 drawn garments instead of 60,000 + 10,000."""
    draw_few(monkeypatch)


def draw_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(drawn.PER_CLASS, "train", 60)
    monkeypatch.setitem(drawn.PER_CLASS, "test", 20)


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Program]:
    """Call a script's function as its command line would: (exit status, what it printed)."""

    def call(command: Callable[..., object], *arguments: object) -> tuple[int, str]:
        status = run_command(monkeypatch, command, *arguments)
        output = capsys.readouterr()
        return status, output.out + output.err

    with own_signals():
        yield call


def run_command(monkeypatch: pytest.MonkeyPatch, command: Callable[..., object], *arguments: object) -> int:
    """The exit status of a script's function."""
    monkeypatch.setattr("sys.argv", [command.__name__, *map(str, arguments)])
    try:
        options = next(iter(get_type_hints(command).values()))
        return main(options, command)
    except SystemExit as leaving:
        return int(leaving.code or 0)


@contextlib.contextmanager
def own_signals() -> Iterator[None]:
    """Put pytest's answers to signals back at the end."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings and tests make no pictures, which takes longer than all the rest, but in tests that use `drawing`."""
    if "drawing" not in request.fixturenames:
        leave_undrawn(monkeypatch)


def leave_undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ValidationPlots, "draw_validation", lambda *_: None)
    monkeypatch.setattr("fmnist_lightning.training.evaluate.write_report", lambda *_: None)


@pytest.fixture
def drawing() -> None:
    """Trainings and tests make their pictures."""


SMALL = ("--dataset", "drawn", "--max_epochs", 2, "--batch_size", 50, "--accelerator", "cpu")


def small_run(program: Program, log_dir: Path, *arguments: object) -> tuple[Path, str]:
    """Train on the small drawn set, for tests that use `small_drawn`: the run folder and what was printed."""
    status, output = program(train, *SMALL, "--log_dir", log_dir, *arguments)
    assert status == 0, output
    return find_run("last", log_dir), output


def metrics_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.json").read_text())


def shared_run(log_dir: Path, *arguments: object, plots: bool = False) -> Path:
    """What `small_run` does, for fixtures that several tests share."""
    with pytest.MonkeyPatch.context() as patch, own_signals():
        draw_few(patch)
        if not plots:
            leave_undrawn(patch)
        assert run_command(patch, train, *SMALL, *arguments, "--log_dir", log_dir) == 0
    return find_run("last", log_dir)


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that `trained` copies."""
    return shared_run(tmp_path_factory.mktemp("trained"), "--max_epochs", 1, "--test", "false")


@pytest.fixture(scope="session")
def plotted_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs with plots in TensorBoard and a report, for tests that only read it."""
    options = ("--lr", 0.003, "--schedule", "one_cycle", "--seed", 3, "--precision", "32-true")
    return shared_run(tmp_path_factory.mktemp("plotted"), *options, plots=True)


@pytest.fixture
def trained(trained_once: Path, tmp_path: Path, small_drawn: None) -> Path:
    """A run of one epoch that was not tested, for one test alone."""
    return Path(shutil.copytree(trained_once, tmp_path / "logs" / "version_0"))


def steps_of_saves(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows with each save, by the number of its step."""
    steps: list[int] = []
    save = L.Trainer.save_checkpoint

    def noting(self: L.Trainer, *arguments: Any, **keywords: Any) -> None:
        steps.append(self.global_step)
        save(self, *arguments, **keywords)

    monkeypatch.setattr(L.Trainer, "save_checkpoint", noting)
    return steps
