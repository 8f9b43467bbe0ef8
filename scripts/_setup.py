"""Import `run` for a script, or exit with one line that says how to set up.

Every version of Python can read this file.
"""

import sys
from os.path import abspath, dirname

sys.path.append(dirname(dirname(abspath(__file__))))  # noqa: PTH100, PTH120 (Python 2 has no pathlib)

if sys.version_info < (3, 11):  # noqa: UP036
    found = "%d.%d" % (sys.version_info[0], sys.version_info[1])  # noqa: UP031
    hint = "set up first: make train; then: source .venv/bin/activate"
    sys.exit("error: this program needs Python 3.11 or newer: found " + found + " (" + hint + ")")

from fmnist_lightning.__main__ import run

__all__ = ["run"]
