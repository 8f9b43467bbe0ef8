"""What reaches a user: errors as one message each, signals, and the standard streams."""

import contextlib
import errno
import io
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

# A terminal that closes sends SIGHUP, a job scheduler one of the others before a time limit; Windows lacks all three.
# nohup ignores SIGHUP, and so do the programs that it starts.
MORE = [getattr(signal, name) for name in ("SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)]
SIGNALS = (signal.SIGINT, signal.SIGTERM, *(one for one in MORE if signal.getsignal(one) != signal.SIG_IGN))
SETUP = "set up first: make train; then: source .venv/bin/activate"
# One wish to stop can come twice: make, shells and schedulers pass on a signal that the whole process group received.
ECHO_SECONDS = 1.0
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)
UNSUITED = (errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)


class UserError(Exception):
    """A problem that a user can solve; the message is `cannot VERB OBJECT: reason (hint)`.

    The exit status is that of a rank that failed, above 128 if a signal ended it; else 1.
    """

    def __init__(self, message: str, exit_status: int = 1) -> None:
        super().__init__(message)
        self.exit_status = exit_status


class WriteError(UserError):
    """A file that can't be written. The hint says what to run once it can, or to name another file.

    `reason` replaces the system's.
    """

    def __init__(self, path: str | Path, error: OSError, command: str = "", reason: str = "") -> None:
        self.path, self.error, self.command, self.reason = path, error, command, reason or error.strerror or str(error)
        cure = "free space, " if error.errno in FULL else "make it writable, " if error.errno in CLOSED else ""
        hint = f"{cure}or name another".removeprefix("or ")
        if command and error.errno not in UNSUITED:
            hint = f"{cure or 'restore it, '}then run: {command}"
        super().__init__(f"cannot write {path}: {self.reason} ({hint})")


class Interrupted(BaseException):
    """The user or the system asked the program to stop. `advice` says what was saved and how to resume.

    Like KeyboardInterrupt, it is not an Exception, so that no handler of errors catches it.
    """

    def __init__(self, signum: int, advice: str = "") -> None:
        self.signum = signum
        self.advice = advice
        super().__init__(f"stopped by {signal.Signals(signum).name}" + (f"\n{advice}" if advice else ""))
        self.exit_status = 128 + signum  # as shells do: 130 after Ctrl-C, 143 after SIGTERM


@contextlib.contextmanager
def advising(advice: str) -> Iterator[None]:
    """Give an Interrupted that leaves the block `advice`, unless it has its own."""
    try:
        yield
    except Interrupted as interruption:
        raise Interrupted(interruption.signum, interruption.advice or advice) from None


class Signals:
    """How the program answers signals, and when it received the first one."""

    received: float | None = None

    @staticmethod
    def answer(first: Callable[[int], object]) -> None:
        """Call `first` at the first signal. After ECHO_SECONDS, another one ends the program at once."""

        def handle(signum: int, _frame: FrameType | None) -> None:
            now = time.monotonic()
            if Signals.received is None:
                Signals.received = now
                first(signum)
            elif now - Signals.received > ECHO_SECONDS:
                end_at_once(signum)

        for number in SIGNALS:
            signal.signal(number, handle)


def end_at_once(signum: int) -> NoReturn:
    """Answer a signal while there is nothing to clean up, or the user does not want to wait."""
    os._exit(128 + signum)


def raise_interrupted(signum: int) -> NoReturn:
    """Answer a signal while there is nothing to save."""
    raise Interrupted(signum)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Raise Interrupted in the block at a signal."""
    Signals.answer(raise_interrupted)
    try:
        yield
    finally:
        Signals.answer(end_at_once)


class Output(io.RawIOBase):
    """A standard stream that drops the rest once it can't be written: its reader left, as `head` does, or it is full.

    What a command was asked to do goes on, and `complete_output` reports the fault.
    """

    def __init__(self, raw: Any) -> None:
        self.raw = raw
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return int(self.raw.fileno())

    def isatty(self) -> bool:
        return bool(self.raw.isatty())

    def write(self, data: Any) -> int:
        left = memoryview(data)
        while left and self.error is None:
            try:
                written = self.raw.write(left)
                if written is None:  # tmux and ssh may make a stream non-blocking
                    select.select([], [self.raw], [])
            except OSError as error:
                self.error = error
            else:
                left = left[written or 0 :]
        return len(data)


def begin() -> None:
    """Prepare this process, before the imports that take long: until they are done, a signal ends it in silence."""
    Signals.received = None
    Signals.answer(end_at_once)
    if None in (sys.stdin, sys.stdout, sys.stderr):
        # Else the next files that are opened would take the places of closed streams.
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
            os.set_inheritable(descriptor, True)
        os.close(descriptor)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            stream = os.fdopen(descriptor, "w", encoding="utf-8")
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
        if getattr(sys, name) is getattr(sys, f"__{name}__"):
            setattr(sys, name, prepared(getattr(sys, name)))
        elif isinstance(getattr(sys, name), io.TextIOWrapper):  # a caller's own, or prepared before
            getattr(sys, name).reconfigure(errors="backslashreplace")


def prepared(stream: Any) -> io.TextIOWrapper:
    """A standard stream that takes any text in any encoding, and loses its reader without an error."""
    raw: Any = Output(getattr(stream.buffer, "raw", stream.buffer))
    return io.TextIOWrapper(
        raw if stream.write_through else io.BufferedWriter(raw),
        stream.encoding,
        "backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def output_fault() -> OSError | None:
    """What keeps standard output from being written, if it can't be."""
    buffer: Any = getattr(sys.stdout, "buffer", None)
    raw = buffer if isinstance(buffer, Output) else getattr(buffer, "raw", None)
    return raw.error if isinstance(raw, Output) else None


@contextlib.contextmanager
def complete_output() -> Iterator[None]:
    """Raise UserError after a block, or as it exits, if standard output did not take all that was printed.

    A reader that left, or a terminal that was closed (EIO), wanted no more; Windows reports EINVAL then.
    """
    leaving = None
    try:
        yield
    except SystemExit as exiting:
        leaving = exiting
    sys.stdout.flush()
    error = output_fault()
    if error and error.errno not in (errno.EPIPE, errno.EIO, errno.EINVAL):
        raise UserError(f"cannot write to standard output: {error.strerror or error}")
    if leaving:
        raise leaving


def printable(text: str) -> str:
    """Escape line breaks, control characters, and all that could trick a terminal."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def full_path(path: str | Path) -> str:
    """The absolute path, for a message: a relative one hides that the working folder is another than expected."""
    return printable(os.path.abspath(path))  # noqa: PTH100 (pathlib's keeps `..`)


def missing(path: str | Path) -> str:
    """Say that a path does not exist, with its absolute form, and name a similar one that exists."""
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 (pathlib's keeps `..`)
    if absolute.is_symlink():
        return f"{printable(str(absolute))} is a link to nothing"
    # pathlib's raises PermissionError.
    known = next(parent for parent in (absolute, *absolute.parents) if os.path.exists(parent))  # noqa: PTH110
    meant = known
    for part in absolute.relative_to(known).parts:
        readable = os.access(meant, os.R_OK | os.X_OK) and meant.is_dir()
        names = {one.name.lower(): one.name for one in meant.iterdir()} if readable else {}
        close = get_close_matches(part.lower(), names, 1, 0.75)
        if not close:
            return f"there is no {printable(str(absolute))}"
        meant /= names[close[0]]
    return f"there is no {printable(str(absolute))}; did you mean {printable(str(meant))}?"
