"""The password in a database's URL is shown nowhere."""

import pytest

from fmnist_lightning.database_url import masked, scrubbed


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
