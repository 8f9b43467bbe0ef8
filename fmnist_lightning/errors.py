"""What reaches a user as one message: errors, and interruptions by a signal."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class UserError(Exception):
    """A problem whose message says what was found, what was expected, and the cure."""

    exit_status = 1


class ProcessFailedError(UserError):
    """One of several processes failed: its message, and the status that it ended with."""

    def __init__(self, message: str, exit_status: int) -> None:
        super().__init__(message)
        self.exit_status = exit_status

    @property
    def by_signal(self) -> bool:
        """Whether it was killed or stopped, and may end well another time."""
        return self.exit_status > 128

    def advised(self, cure: str) -> "ProcessFailedError":
        """The same with a cure, where its own message has none."""
        return ProcessFailedError(f"{self}; {cure}", self.exit_status) if self.by_signal else self


class ReportedError(Exception):
    """The program ends with this status; another process has said why."""

    def __init__(self, exit_status: int) -> None:
        super().__init__(exit_status)
        self.exit_status = exit_status


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
