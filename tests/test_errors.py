"""What reaches a user: messages about paths and writes, and the standard streams."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fmnist_lightning.errors import WriteError, missing

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("data/fashion_mnist", "data/fashion-mnist"),
        ("DATA/fashion-mnist", "data/fashion-mnist"),
        ("dta/fashion-mnist/file", "data/fashion-mnist/file"),
        ("data/other", None),
        ("else/fashion-mnist", None),
    ],
)
def test_missing_names_the_absolute_and_a_similar_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str, meant: str | None
) -> None:
    (tmp_path / "data" / "fashion-mnist").mkdir(parents=True)
    (tmp_path / "data" / "fashion-mnist" / "file").touch()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    hint = f"; did you mean {tmp_path / meant}?" if meant else ""
    assert missing(f"../{typed}") == f"there is no {tmp_path / typed}{hint}"


def test_missing_escapes_a_line_break() -> None:
    assert missing("/no/such\nfolder") == r"there is no /no/such\nfolder"


# A command that prints, then writes a file, then prints so much that the reader of a pipe must have left.
PRINTING = """
import sys
from fmnist_lightning.cli.main import main
from fmnist_lightning.runs.options import JoinOptions
def act(_):
    print("läufe/日本", flush=True)
    print("läufe/日本", flush=True, file=sys.stderr)
    for number in range(20000):
        print("line", number)
    open("written", "w").write("complete")
sys.exit(main(JoinOptions, act, ["--folder", "a", "--file", "b"]))
"""
FULL = "error: cannot write to standard output: No space left on device\n"


@pytest.mark.parametrize(
    ("redirection", "unbuffered", "status", "message"),
    [
        ("2>error | head -1 >/dev/null", "", 0, "läufe/日本\n"),
        ("2>error | head -1 >/dev/null", "1", 0, "läufe/日本\n"),
        ("2>error >&-", "", 0, "läufe/日本\n"),
        ("2>error >/dev/full", "", 1, "läufe/日本\n" + FULL),
        ("2>error >/dev/full", "1", 1, "läufe/日本\n" + FULL),
        (">output 2>/dev/full", "", 0, ""),
        (">&- 2>&- <&-", "1", 0, ""),
        ("2>&1 | head -0", "", 0, ""),
    ],
)
def test_command_goes_on_without_a_reader(
    tmp_path: Path, redirection: str, unbuffered: str, status: int, message: str
) -> None:
    (tmp_path / "error").touch()
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered, "PYTHONIOENCODING": "utf-8", "PYTHONPATH": str(ROOT)}
    words = ["bash", "-c", f'"$0" -c "$1" {redirection}; exit ${{PIPESTATUS[0]}}', sys.executable, PRINTING]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")
    assert (tmp_path / "error").read_text(encoding="utf-8") == message
    assert (tmp_path / "written").read_text() == "complete"  # and nothing that was printed


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["train", "--print_config"]])
def test_help_without_a_reader_is_no_error(tmp_path: Path, arguments: list[str]) -> None:
    words = ["bash", "-c", '"$0" -m fmnist_lightning "$@" | head -0; exit ${PIPESTATUS[0]}', sys.executable, *arguments]
    done = subprocess.run(words, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_any_text_is_printed_in_any_encoding(tmp_path: Path, encoding: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", PRINTING]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, check=False)
    expected = "läufe/日本".encode(encoding, "backslashreplace")
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == done.stderr.rstrip(b"\n") == expected


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EISDIR])
def test_failed_write_names_file_reason_and_cure(code: int) -> None:
    error = OSError(code, os.strerror(code))
    cures = {errno.ENOSPC: "free space", errno.EACCES: "make it writable"}
    for command, hint in (("", "name another"), ("this command", "then run: this command")):
        message = str(WriteError("folder/file", error, command))
        assert message.startswith(f"cannot write folder/file: {os.strerror(code)} (")
        assert cures.get(code, "") in message
        assert (hint if code in cures else "name another") in message


def test_output_waits_for_a_reader_without_blocking() -> None:
    """A write to a full pipe that does not block takes nothing; the rest is not lost."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    code = "from fmnist_lightning.errors import begin\nbegin()\nprint('x' * 1_000_000)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=writer, cwd=ROOT) as process:
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            assert len(pipe.read()) == 1_000_001
    assert process.returncode == 0
