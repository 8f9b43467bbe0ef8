"""What reaches a user as one message: errors and interruptions by a signal."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class UserError(Exception):
    """A problem that a user can solve; the message is `cannot VERB OBJECT: reason (hint)`.

    The exit status is that of a rank that failed, above 128 if a signal ended it; else 1.
    """

    def __init__(self, message: str, exit_status: int = 1) -> None:
        super().__init__(message)
        self.exit_status = exit_status


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


def raise_interrupted(signum: int, _frame: FrameType | None) -> NoReturn:
    """Handle a signal while there is nothing to save."""
    raise Interrupted(signum)


def printable(text: str) -> str:
    """Escape line breaks, control characters, and all that could trick a terminal."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )
