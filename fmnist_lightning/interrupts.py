"""Ctrl-C and SIGTERM end a program at a point where nothing is lost, with the status that a shell expects."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """The user or the system asked the program to stop. `advice` says what was saved and how to go on.

    No Exception, as KeyboardInterrupt is none: what handles errors must not take it for one.
    """

    def __init__(self, signum: int, advice: str = "") -> None:
        self.signum = signum
        self.advice = advice
        super().__init__(f"stopped by {signal.Signals(signum).name}" + (f"\n{advice}" if advice else ""))
        self.exit_status = 128 + signum  # as shells do: 130 after Ctrl-C, 143 after SIGTERM


@contextlib.contextmanager
def advising(advice: str) -> Iterator[None]:
    """Say what was saved, and how to go on, where the block is interrupted without saying it."""
    try:
        yield
    except Interrupted as interruption:
        raise Interrupted(interruption.signum, interruption.advice or advice) from None


def raise_interrupted(signum: int, _frame: FrameType | None) -> NoReturn:
    """A signal handler for where there is nothing to save."""
    raise Interrupted(signum)
