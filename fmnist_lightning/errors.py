"""What a user can mend: one message, no traceback, exit status 1."""


class UserError(Exception):
    """A problem whose message says what was found, what was expected, and the cure."""
