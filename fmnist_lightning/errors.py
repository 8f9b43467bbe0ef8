"""What a user can mend: one message, no traceback, exit status 1."""


class UserError(Exception):
    """A problem whose message says what was found, what was expected, and the cure."""

    exit_status = 1


class ProcessFailedError(UserError):
    """One of several processes failed: its message, and the status that it ended with."""

    def __init__(self, message: str, exit_status: int) -> None:
        super().__init__(message)
        self.exit_status = exit_status


class ReportedError(Exception):
    """The program ends with this status; another process has said why."""

    def __init__(self, exit_status: int) -> None:
        super().__init__(exit_status)
        self.exit_status = exit_status
