"""The URL of the database that holds a study, whose password nobody gets to see."""

import os
import re
from pathlib import Path
from urllib.parse import quote, unquote

from fmnist_lightning.errors import UserError

DATABASE = "study.db"
VARIABLE = re.compile(r"\$(?:(?P<name>\w+)|\{(?P<braced>\w+)\})")
# Between `//USER:` and the last `@`, and all behind `?`, where some databases take a password too.
SECRETS = re.compile(r"(?<=://)(?P<user>[^:/@]*):(?P<password>.+)@|\?(?P<query>.+)$")


def database_url(folder: Path, storage: str | None) -> str:
    """That of the folder's own database, or `storage` with the environment's values for `$NAME`.

    Raises UserError where one is not set, where it is no URL, or where a package for such a database is missing.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    if storage is None:
        return f"sqlite:///{(folder / DATABASE).resolve()}"
    url = VARIABLE.sub(lambda match: value_of(match, whole=match[0] == storage), storage)
    try:
        make_url(url).get_dialect().import_dbapi()
    except ImportError as error:
        raise UserError(
            f"--storage {masked(storage)} needs a package that is not here ({error}): install it"
        ) from error
    except (ArgumentError, ValueError):
        raise UserError(
            f"--storage {masked(storage)} is no database's URL; expected DIALECT://USER:PASSWORD@HOST/DATABASE, with "
            "%40 for an @ in the password, and so on"
        ) from None
    return url


def value_of(match: re.Match[str], *, whole: bool) -> str:
    """What the environment has for a `$NAME`: a whole URL as it is, of a part special characters quoted."""
    name = match["name"] or match["braced"]
    if name not in os.environ:
        raise UserError(f"--storage names ${name}, which the environment lacks: set it, or write %24 for a plain $")
    return os.environ[name] if whole else quote(os.environ[name], safe="")


def masked(url: str) -> str:
    """The URL as it may be shown: with *** for a password, unless `$NAME` stands for it, and for its query."""

    def mask(match: re.Match[str]) -> str:
        if match["query"]:
            return "?***"
        named = re.fullmatch(r"\$(\w+|\{\w+\})", match["password"])
        return f"{match['user']}:{match['password'] if named else '***'}@"

    return SECRETS.sub(mask, url)


def scrubbed(text: str, url: str) -> str:
    """A library's message without the URL's secrets."""
    text = text.replace(url, masked(url))
    for match in SECRETS.finditer(url):
        secret = match["password"] or match["query"]
        for form in (secret, unquote(secret)):
            text = text.replace(form, "***")
    return text
