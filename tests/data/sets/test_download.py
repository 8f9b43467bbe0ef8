"""Missing and damaged files are downloaded completely or not at all, from the first mirror that has them."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from conftest import NOWHERE, Mirror, pack, use_mirrors

from fmnist_lightning.data.sets import download
from fmnist_lightning.data.sets.download import ensure_files
from fmnist_lightning.data.sets.fashion_mnist import FILES, RAW_FOLDER, load_split
from fmnist_lightning.data.source import DataError

IMAGES = "train-images-idx3-ubyte"


def assert_complete(folder: Path) -> None:
    """All files are good, and nothing temporary is left."""
    for train in (True, False):
        load_split(folder, "train" if train else "test")
    assert not list(folder.rglob(f"{download.STAGING_PREFIX}*"))


def test_ensure_files_fills_an_empty_folder_once(mirror: Mirror, tmp_path: Path) -> None:
    stale = tmp_path / RAW_FOLDER / f"{download.STAGING_PREFIX}stale"  # of a killed download
    stale.mkdir(parents=True)
    (stale / "half").write_bytes(b"half")
    for _ in range(2):
        ensure_files(tmp_path)
        assert_complete(tmp_path)
        assert sorted(mirror.asked) == sorted(f"{name}.gz" for name in FILES)


@pytest.mark.parametrize("name", [IMAGES, "t10k-labels-idx1-ubyte"])
def test_ensure_files_replaces_only_the_damaged_file(
    mirror: Mirror, tiny_dir: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """And none that has a good copy."""
    content = (tiny_dir / name).read_bytes()
    (tiny_dir / name).write_bytes(b"broken")
    (tiny_dir / f"{name}.gz").write_bytes(pack(content))
    ensure_files(tiny_dir)
    assert mirror.asked == []
    assert_complete(tiny_dir)
    (tiny_dir / f"{name}.gz").unlink()
    ensure_files(tiny_dir)
    assert mirror.asked == [f"{name}.gz"]
    assert (tiny_dir / f"{name}.broken").read_bytes() == b"broken"
    assert_complete(tiny_dir)
    assert str(tiny_dir / name) in capsys.readouterr().err


FAULTS: dict[str, Callable[[Mirror, str, bytes], object]] = {
    "breaks off": lambda mirror, name, body: mirror.serve(name, body[:50], length=len(body)),
    "sends other bytes": lambda mirror, name, body: mirror.serve(name, pack(b"something else")),
    "closes at once": lambda mirror, name, body: mirror.answers.update({name: lambda asked: asked.connection.close()}),
    "hangs": lambda mirror, name, body: mirror.answers.update({name: lambda asked: time.sleep(1)}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_download_takes_the_second_mirror(
    mirror: Mirror, new_mirror: Callable[[], Mirror], tiny_dir: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    faulty = new_mirror()
    FAULTS[fault](faulty, f"{IMAGES}.gz", pack((tiny_dir / IMAGES).read_bytes()))
    (tiny_dir / IMAGES).unlink()
    use_mirrors(monkeypatch, faulty.url, mirror.url)
    monkeypatch.setattr(download, "SOCKET_TIMEOUT_SECONDS", 0.3)
    ensure_files(tiny_dir)
    assert_complete(tiny_dir)
    assert (faulty.contacts > 0, mirror.asked) == (True, [f"{IMAGES}.gz"])


def test_download_retries_the_users_mirror_first(
    mirror: Mirror, new_mirror: Callable[[], Mirror], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = new_mirror()  # has no file
    use_mirrors(monkeypatch, other.url)
    monkeypatch.setenv(download.MIRROR_VARIABLE, mirror.url.rstrip("/"))
    good = mirror.answers[f"{IMAGES}.gz"]

    def fail_once(handler: BaseHTTPRequestHandler) -> None:
        mirror.answers[f"{IMAGES}.gz"] = good
        handler.send_error(503)

    mirror.answers[f"{IMAGES}.gz"] = fail_once
    ensure_files(tmp_path)
    assert_complete(tmp_path)
    assert set(other.asked) <= {f"{IMAGES}.gz"}


def test_ensure_files_explains_a_missing_network(tiny_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_mirrors(monkeypatch, NOWHERE)
    (tiny_dir / IMAGES).write_bytes(b"broken")
    with pytest.raises(DataError, match=f"(?s){IMAGES}.*{NOWHERE}.*--data_dir"):
        ensure_files(tiny_dir)
    assert (tiny_dir / IMAGES).read_bytes() == b"broken"
    assert not list(tiny_dir.rglob(f"{download.STAGING_PREFIX}*"))


def test_ensure_files_downloads_once_for_two_callers(
    mirror: Mirror, tiny_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tiny_dir / IMAGES).unlink()
    answer, second = mirror.answers[f"{IMAGES}.gz"], threading.Thread(target=ensure_files, args=(tiny_dir,))

    def start_the_second(handler: BaseHTTPRequestHandler) -> None:
        if not second.ident:
            second.start()
            time.sleep(0.3)
        answer(handler)

    mirror.answers[f"{IMAGES}.gz"] = start_the_second
    ensure_files(tiny_dir)
    second.join()
    assert_complete(tiny_dir)
    assert mirror.asked == [f"{IMAGES}.gz"]
    assert "waiting until it ends" in capsys.readouterr().err


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


@pytest.mark.skipif(os.name != "posix", reason="POSIX file permissions")
def test_ensure_files_reads_a_read_only_folder_in_place(tiny_dir: Path) -> None:
    before = sorted(tiny_dir.rglob("*"))
    with read_only(tiny_dir):
        with pytest.raises(PermissionError):  # the control
            (tiny_dir / "new").touch()
        ensure_files(tiny_dir)
        assert_complete(tiny_dir)
    assert sorted(tiny_dir.rglob("*")) == before


@pytest.mark.skipif(os.name != "posix", reason="POSIX file permissions")
def test_ensure_files_explains_a_damaged_read_only_file(tiny_dir: Path) -> None:
    (tiny_dir / IMAGES).write_bytes(b"broken")
    with read_only(tiny_dir), pytest.raises(DataError, match=f"{IMAGES}.*cannot write to.*--data_dir"):
        ensure_files(tiny_dir)
