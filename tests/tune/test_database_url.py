"""The password in a database's URL is shown nowhere."""

from pathlib import Path

import pytest

from fmnist_lightning.errors import UserError
from fmnist_lightning.tune.database_url import database_url, masked, scrubbed


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:secret@host:5432/studies", "postgresql://me:***@host:5432/studies"),
        ("postgresql+psycopg://me:se:c@r/et?@host/studies", "postgresql+psycopg://me:***@host/studies"),
        ("mysql://me@host/studies?password=secret", "mysql://me@host/studies?***"),
        ("postgresql://me:$PASSWORD@host/studies", "postgresql://me:$PASSWORD@host/studies"),
        ("postgresql://me:${PASSWORD}@host/studies", "postgresql://me:${PASSWORD}@host/studies"),
        ("postgresql://me:${PASSWORD}secret@host/studies", "postgresql://me:***@host/studies"),
        ("postgresql://me@host:5432/studies", "postgresql://me@host:5432/studies"),
        ("sqlite:////folder/a@b:c.db", "sqlite:////folder/a@b:c.db"),
    ],
)
def test_a_password_in_a_url_is_not_shown(url: str, shown: str) -> None:
    assert masked(url) == shown


def test_a_password_in_a_librarys_message_is_not_shown() -> None:
    url = "postgresql://me:s%40cret@host/studies"
    message = f"no connection to {url} as me with s%40cret, or s@cret"
    assert scrubbed(message, url) == "no connection to postgresql://me:***@host/studies as me with ***, or ***"


@pytest.mark.parametrize(
    ("password", "quoted"), [("s3cr$et9", "s3cr%24et9"), ("p@ss/word", "p%40ss%2Fword"), ("100%", "100%25")]
)
def test_a_password_from_the_environment_may_hold_any_character(
    monkeypatch: pytest.MonkeyPatch, password: str, quoted: str
) -> None:
    monkeypatch.setenv("PGPASS", password)
    url = database_url(Path("study"), "sqlite://me:${PGPASS}@host/studies")
    assert url == f"sqlite://me:{quoted}@host/studies"
    assert password not in scrubbed(f"no connection to {url}, {password}", url)


def test_a_whole_url_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE", "sqlite:////folder/study.db")
    assert database_url(Path("study"), "$STORAGE") == "sqlite:////folder/study.db"


def test_a_variable_that_is_not_set_is_named_and_none_of_the_others_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASS", "s3cret")
    monkeypatch.delenv("PGHOST", raising=False)
    with pytest.raises(UserError, match=r"--storage names \$PGHOST, which the environment lacks") as caught:
        database_url(Path("study"), "sqlite://me:$PGPASS@$PGHOST/studies")
    assert "s3cret" not in str(caught.value)
