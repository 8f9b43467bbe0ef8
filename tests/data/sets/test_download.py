"""Missing and damaged files are downloaded completely or not at all, from the first mirror that has them."""

import errno
import os
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from conftest import NOWHERE, Mirror, pack, read_only, use_mirrors

from fmnist_lightning.data.sets import download, resolve_dataset
from fmnist_lightning.data.sets.download import ensure_files, find_mirrors
from fmnist_lightning.data.sets.fashion_mnist import FILES, RAW_FOLDER, load_split
from fmnist_lightning.data.source import DataError, OtherDataError

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
@pytest.mark.parametrize("packed", [False, True])
def test_ensure_files_sets_a_damaged_download_aside(
    mirror: Mirror, tiny_dir: Path, capsys: pytest.CaptureFixture[str], name: str, packed: bool
) -> None:
    raw = tiny_dir / RAW_FOLDER
    raw.mkdir(parents=True)
    damaged = raw / (f"{name}.gz" if packed else name)
    content = (tiny_dir / name).read_bytes()
    damaged.write_bytes((pack(content) if packed else content)[:-1])
    ensure_files(tiny_dir)  # the good copy in the folder itself counts
    assert (mirror.asked, damaged.exists()) == ([], True)
    (tiny_dir / name).unlink()
    ensure_files(tiny_dir)
    assert mirror.asked == [f"{name}.gz"]
    assert damaged.with_name(f"{damaged.name}.broken").exists()
    assert_complete(tiny_dir)
    assert str(damaged) in capsys.readouterr().err


def test_damaged_file_outside_of_its_folder_stays(mirror: Mirror, tiny_dir: Path) -> None:
    (tiny_dir / IMAGES).write_bytes(b"broken")
    ensure_files(tiny_dir)
    assert (tiny_dir / IMAGES).read_bytes() == b"broken"
    assert mirror.asked == [f"{IMAGES}.gz"]
    assert not list(tiny_dir.rglob("*.broken"))
    assert_complete(tiny_dir)


def other_values(content: bytes) -> bytes:
    """A valid IDX file of the same shape, as MNIST's is."""
    return content[:-20] + bytes(value ^ 1 for value in content[-20:])


def all_files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("layout", ["", str(RAW_FOLDER)])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("names", [list(FILES), ["t10k-labels-idx1-ubyte"]])
def test_ensure_files_never_touches_another_data_set(
    mirror: Mirror, tiny_files: dict[str, bytes], tmp_path: Path, layout: str, packed: bool, names: list[str]
) -> None:
    """Not even if only one file is another data set's, and another one is missing."""
    folder = tmp_path / layout
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in tiny_files.items():
        content = other_values(content) if name in names else content
        (folder / (f"{name}.gz" if packed else name)).write_bytes(pack(content) if packed else content)
    if len(names) == 1:
        (folder / (f"{IMAGES}.gz" if packed else IMAGES)).unlink()
    before = all_files(tmp_path)
    with pytest.raises(DataError, match=f"--dataset idx --data_dir {folder}"):
        ensure_files(tmp_path)
    assert (all_files(tmp_path), mirror.asked) == (before, [])


def test_good_copy_beside_another_data_set_is_taken(mirror: Mirror, tiny_dir: Path) -> None:
    """The control: a good copy is all that is needed, wherever it lies."""
    (tiny_dir / RAW_FOLDER).mkdir(parents=True)
    foreign = tiny_dir / RAW_FOLDER / IMAGES
    foreign.write_bytes(other_values((tiny_dir / IMAGES).read_bytes()))
    before = all_files(tiny_dir)
    ensure_files(tiny_dir)
    assert (all_files(tiny_dir), mirror.asked) == (before, [])
    assert_complete(tiny_dir)


def redirect(location: str) -> Callable[[Mirror, str, bytes], object]:
    def answer(asked: BaseHTTPRequestHandler) -> None:
        asked.send_response(302)
        asked.send_header("Location", location)
        asked.end_headers()

    return lambda mirror, name, body: mirror.answers.update({name: answer})


FAULTS: dict[str, Callable[[Mirror, str, bytes], object]] = {
    "breaks off": lambda mirror, name, body: mirror.serve(name, body[:50], length=len(body)),
    "sends other bytes": lambda mirror, name, body: mirror.serve(name, pack(b"something else")),
    "closes at once": lambda mirror, name, body: mirror.answers.update({name: lambda asked: asked.connection.close()}),
    "sends a page": lambda mirror, name, body: mirror.serve(name, b"<html>404 not found</html>"),
    "redirects in a circle": redirect(f"{IMAGES}.gz"),
    "redirects to a file": redirect("file:///etc/passwd"),
    "redirects to a malformed address": redirect("http://[bad"),
    "redirects to no port": redirect("http://127.0.0.1:99999/"),
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


MALFORMED = (
    *("mirror.example.org/fashion", "localhost:8000", "file:///data", "/data/fashion", r"C:\data", "ftp://host/data/"),
    *("http://[bad", "http://", "http:///folder", "http://host:99999/", "http://host:port/", "http://host/my folder/"),
    *("http://höst/", "http://host/a?b=c", "http://host/#a", "http://user:secret@host/", "http://host/\tx", "http"),
)


@pytest.mark.parametrize("url", MALFORMED)
def test_malformed_mirror_is_one_warning(
    url: str, mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(download.MIRROR_VARIABLE, url)
    ensure_files(tmp_path)
    assert_complete(tmp_path)
    output = capsys.readouterr().err
    [line] = [one for one in output.splitlines() if "FMNIST_MIRROR" in one]
    assert line.startswith("WARNING: cannot use FMNIST_MIRROR=")
    assert "\t" not in line
    assert "secret" not in output


@pytest.mark.parametrize(
    ("typed", "taken"),
    [
        ("", None),
        (" \n", None),
        ("http://host/folder", "http://host/folder/"),
        ("https://host:8000/folder//\n", "https://host:8000/folder/"),
        ("http://[::1]:8000", "http://[::1]:8000/"),
    ],
)
def test_find_mirrors_takes_the_users_first(typed: str, taken: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    built_in = find_mirrors()
    monkeypatch.setenv(download.MIRROR_VARIABLE, typed)
    assert find_mirrors() == [*([taken] if taken else []), *built_in]


@pytest.mark.parametrize("proxy", ["http://[bad", "http://127.0.0.1:99999", "socks9://127.0.0.1:9", "127.0.0.1:9"])
def test_malformed_proxy_is_named(
    proxy: str, mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    monkeypatch.delenv("no_proxy")
    monkeypatch.setattr("urllib.request._opener", None)  # which keeps the proxies of the first download
    assert resolve_dataset("auto", tmp_path) == "drawn"
    assert "(through http_proxy)" in capsys.readouterr().err
    assert not mirror.contacts


def test_failed_download_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither folders nor a lock; and the message names the folder that was meant."""
    use_mirrors(monkeypatch, NOWHERE)
    meant = tmp_path / "fashion-mnist"
    meant.mkdir()
    with pytest.raises(DataError, match=re.escape(f"there is no {tmp_path}/fashion_mnist; did you mean {meant}?")):
        ensure_files(tmp_path / "fashion_mnist")
    assert list(tmp_path.rglob("*")) == [meant]
    own = meant / RAW_FOLDER
    own.mkdir(parents=True)  # the user's own folders stay
    with pytest.raises(DataError, match="which holds FashionMNIST"):
        ensure_files(meant)
    assert not list(own.iterdir())


def test_data_dir_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="it is a file") as error:
        ensure_files(tmp_path / "file")
    assert "\n" not in str(error.value)


def test_full_disk_is_no_fault_of_a_mirror(mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download, "read_verified", fail)
    with pytest.raises(DataError, match=f"cannot write {tmp_path}.*No space left"):
        ensure_files(tmp_path)
    assert len(mirror.asked) == 1


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
    with read_only(tiny_dir), pytest.raises(DataError, match=f"{IMAGES}.*{tiny_dir}.*--data_dir"):
        ensure_files(tiny_dir)


def test_auto_takes_no_stand_in_for_another_data_set(tiny_dir: Path) -> None:
    assert resolve_dataset("auto", tiny_dir) == "fashion_mnist"  # the negative control
    (tiny_dir / IMAGES).write_bytes(other_values((tiny_dir / IMAGES).read_bytes()))
    with pytest.raises(OtherDataError, match=IMAGES):
        resolve_dataset("auto", tiny_dir)
