"""Run a function as a program: exit statuses by the project's contract."""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fmnist_lightning.cli.launchers import ERROR_FILE, end_with_launcher, forget_other_launchers, is_rank_zero
from fmnist_lightning.cli.parser import parse
from fmnist_lightning.cli.shell import named
from fmnist_lightning.errors import Interrupted, UserError, begin, complete_output, interruptible


def main(
    options: type[Any],
    function: str | Callable[[Any], object],
    arguments: Sequence[str] | None = None,
    prog: str | None = None,
) -> int:
    """Parse `arguments`, by default the command line, call `function` with the options, and return the exit status.

    `function` is "package.module:function", which is imported once the options are right, or the function itself.
    `prog` is what the user typed before the arguments. 0 done; 1 a problem that the printed message explains; 130 and
    143 after Ctrl-C and SIGTERM. Raises SystemExit with 2 for wrong options.
    """

    def act() -> None:
        parsed = options.parse(given, prog) if hasattr(options, "parse") else parse(options, given, prog)
        call = named(function) if isinstance(function, str) else function
        with interruptible():
            call(parsed)

    given = sys.argv[1:] if arguments is None else arguments
    return exit_status(act)


def exit_status(act: Callable[[], object]) -> int:
    """Call `act` as a program, and return its exit status; print why it is not 0."""
    begin()
    try:
        with complete_output():
            forget_other_launchers()
            if ERROR_FILE in os.environ:
                threading.Thread(target=end_with_launcher, args=(os.getppid(),), daemon=True).start()
            act()
    except Interrupted as interruption:
        # Torch's elastic agent says itself why it ended its ranks.
        if is_rank_zero() and (interruption.advice or ERROR_FILE not in os.environ):
            print(f"\n{interruption}", file=sys.stderr)
        return interruption.exit_status
    except UserError as error:
        report(str(error))
        return error.exit_status
    except OSError as error:
        report(f"cannot read or write {error.filename}: {error.strerror}" if error.filename else str(error))
        return 1
    return 0


def report(message: str) -> None:
    """Print an error, or hand it to torch's elastic agent, which prints that of the rank that failed first."""
    if path := os.environ.get(ERROR_FILE):
        Path(path).write_text(json.dumps({"message": message, "timestamp": int(time.time())}), encoding="utf-8")
    else:
        print(f"error: {message}", file=sys.stderr)
