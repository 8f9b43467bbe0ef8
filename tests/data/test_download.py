"""Missing and broken files are fetched whole or not at all, from the first mirror that has them."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from conftest import NOWHERE, Mirror, pack, use_mirrors

from fmnist_lightning.data import download
from fmnist_lightning.data.download import ensure_files
from fmnist_lightning.data.fashion_mnist import FILES, DataError, find_content

IMAGES = "train-images-idx3-ubyte"


def assert_whole(folder: Path) -> None:
    assert all(find_content(folder, name)[0] is not None for name in FILES)


def leftovers(folder: Path) -> list[Path]:
    return list(folder.rglob(f"{download.STAGING_PREFIX}*"))


def test_an_empty_folder_is_filled(mirror: Mirror, tmp_path: Path) -> None:
    ensure_files(tmp_path)
    assert_whole(tmp_path)
    assert sorted(mirror.asked) == sorted(f"{name}.gz" for name in FILES)
    assert not leftovers(tmp_path)


def test_good_files_are_not_fetched_again(mirror: Mirror, tiny_dir: Path) -> None:
    ensure_files(tiny_dir)
    assert mirror.asked == []


@pytest.mark.parametrize("name", list(FILES))
def test_only_the_broken_file_is_fetched_and_it_is_set_aside(
    mirror: Mirror, tiny_dir: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tiny_dir / name).write_bytes(b"broken")
    ensure_files(tiny_dir)
    assert mirror.asked == [f"{name}.gz"]
    assert (tiny_dir / f"{name}.broken").read_bytes() == b"broken"
    assert_whole(tiny_dir)
    assert f"{tiny_dir / name} holds 6 bytes" in capsys.readouterr().err


def test_a_broken_copy_beside_a_good_one_is_told_and_not_used(
    mirror: Mirror, tiny_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tiny_dir / f"{IMAGES}.gz").write_bytes(pack((tiny_dir / IMAGES).read_bytes()))
    (tiny_dir / IMAGES).write_bytes(b"broken")
    ensure_files(tiny_dir)
    assert mirror.asked == []
    assert "Another copy" in capsys.readouterr().err


def break_off(mirror: Mirror, name: str, body: bytes) -> None:
    mirror.serve(name, body[:50], length=len(body))


def send_other_bytes(mirror: Mirror, name: str, body: bytes) -> None:
    mirror.serve(name, pack(b"something else"))


def send_nothing(mirror: Mirror, name: str, body: bytes) -> None:
    mirror.serve(name, b"")


def close_at_once(mirror: Mirror, name: str, body: bytes) -> None:
    mirror.answers[name] = lambda handler: handler.connection.close()


@pytest.mark.parametrize("fault", [break_off, send_other_bytes, send_nothing, close_at_once])
def test_the_second_mirror_steps_in(
    mirror: Mirror,
    new_mirror: Callable[[], Mirror],
    tiny_files: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    fault: Callable[[Mirror, str, bytes], None],
) -> None:
    faulty = new_mirror()
    for name, content in tiny_files.items():
        fault(faulty, f"{name}.gz", pack(content))
    use_mirrors(monkeypatch, faulty.url, mirror.url)
    ensure_files(tmp_path)
    assert_whole(tmp_path)
    assert faulty.contacts
    assert not leftovers(tmp_path)


def test_a_mirror_that_hangs_is_left(
    mirror: Mirror, new_mirror: Callable[[], Mirror], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hanging, released = new_mirror(), threading.Event()

    def hang(handler: BaseHTTPRequestHandler) -> None:
        released.wait(60)

    hanging.answers = {f"{name}.gz": hang for name in FILES}
    use_mirrors(monkeypatch, hanging.url, mirror.url)
    monkeypatch.setattr(download, "SOCKET_TIMEOUT_SECONDS", 1.0)
    ensure_files(tmp_path)
    released.set()
    assert_whole(tmp_path)


def test_a_mirror_that_fails_once_is_asked_again(
    mirror: Mirror, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use_mirrors(monkeypatch, mirror.url, NOWHERE)
    good = mirror.answers[f"{IMAGES}.gz"]

    def fail_once(handler: BaseHTTPRequestHandler) -> None:
        mirror.answers[f"{IMAGES}.gz"] = good
        handler.send_error(503)

    mirror.answers[f"{IMAGES}.gz"] = fail_once
    ensure_files(tmp_path)
    assert_whole(tmp_path)
    assert mirror.answers[f"{IMAGES}.gz"] is good


def test_a_users_own_mirror_comes_first(mirror: Mirror, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_mirrors(monkeypatch, NOWHERE)
    monkeypatch.setenv(download.MIRROR_VARIABLE, mirror.url.rstrip("/"))
    ensure_files(tmp_path)
    assert_whole(tmp_path)


def test_without_a_network_the_message_names_file_mirrors_and_cure(
    tiny_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use_mirrors(monkeypatch, NOWHERE)
    with pytest.raises(DataError) as caught:
        ensure_files(tmp_path)
    message = str(caught.value)
    assert "train-images-idx3-ubyte is not in" in message
    assert NOWHERE in message
    assert "--data_dir" in message
    assert not leftovers(tmp_path)


def test_a_broken_file_that_cannot_be_fetched_stays_where_it_is(
    tiny_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_mirrors(monkeypatch, NOWHERE)
    (tiny_dir / IMAGES).write_bytes(b"broken")
    with pytest.raises(DataError, match="holds 6 bytes"):
        ensure_files(tiny_dir)
    assert (tiny_dir / IMAGES).read_bytes() == b"broken"


def test_what_a_killed_download_left_is_swept(mirror: Mirror, tmp_path: Path) -> None:
    stale = tmp_path / "FashionMNIST" / "raw" / f"{download.STAGING_PREFIX}stale"
    stale.mkdir(parents=True)
    (stale / "half").write_bytes(b"half")
    ensure_files(tmp_path)
    assert not stale.exists()


def test_two_at_once_fetch_each_file_once(mirror: Mirror, tmp_path: Path) -> None:
    slow = dict(mirror.answers)

    def slowly(name: str) -> Callable[[BaseHTTPRequestHandler], None]:
        def answer(handler: BaseHTTPRequestHandler) -> None:
            time.sleep(0.3)
            slow[name](handler)

        return answer

    mirror.answers = {name: slowly(name) for name in slow}
    threads = [threading.Thread(target=ensure_files, args=(tmp_path,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_whole(tmp_path)
    assert sorted(mirror.asked) == sorted(f"{name}.gz" for name in FILES)


READ_IN_PLACE = """
import os, sys
from pathlib import Path
from fmnist_lightning.data import fashion_mnist as data
from fmnist_lightning.data import download
if os.geteuid() == 0:
    os.setuid(65534)  # root may write anywhere; nobody may not
data.FILES.update({name: data.FileSpec(*spec) for name, spec in eval(sys.argv[2]).items()})
try:
    download.ensure_files(Path(sys.argv[1]))
except data.DataError as error:
    sys.exit(str(error))
print(len(data.load_split(Path(sys.argv[1]), train=True).labels))
"""


def run_without_rights(folder: Path) -> subprocess.CompletedProcess[str]:
    specs = {name: tuple(spec) for name, spec in FILES.items()}
    command = [sys.executable, "-c", READ_IN_PLACE, str(folder), repr(specs)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def make_read_only(folder: Path) -> None:
    if os.geteuid() == 0:
        for parent in folder.parents:
            if parent.name.startswith(("pytest-", "popen-")):  # those of pytest and pytest-xdist, closed to others
                parent.chmod(0o755)
        folder.parent.chmod(0o755)
    for path in folder.iterdir():
        path.chmod(0o444)
    folder.chmod(0o555)


posix = pytest.mark.skipif(os.name != "posix", reason="rights of files as POSIX has them")


@posix
def test_a_read_only_folder_is_read_in_place(tiny_dir: Path) -> None:
    make_read_only(tiny_dir)
    before = sorted(tiny_dir.rglob("*"))
    done = run_without_rights(tiny_dir)
    assert done.stdout.strip() == "120", done.stderr
    assert sorted(tiny_dir.rglob("*")) == before


@posix
def test_a_broken_file_in_a_read_only_folder_is_an_error_with_its_cure(tiny_dir: Path) -> None:
    (tiny_dir / IMAGES).write_bytes(b"broken")
    make_read_only(tiny_dir)
    done = run_without_rights(tiny_dir)
    assert done.returncode == 1
    assert "holds 6 bytes" in done.stderr
    assert "can't be written" in done.stderr
    assert "--data_dir" in done.stderr
