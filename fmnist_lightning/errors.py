"""What a user can mend: one message, no traceback, exit status 1."""


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
