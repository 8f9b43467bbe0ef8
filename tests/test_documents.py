"""Links and file names in the documents lead to something."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(document: Path) -> None:
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text(encoding="utf-8")):
        assert (document.parent / link).exists(), link


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_named_files_exist(document: Path) -> None:
    """Paths in code spans, and the scripts and recipes of commands."""
    text = document.read_text(encoding="utf-8")
    names = re.findall(r"`((?:data|models|training|runs|tests|tools|scripts|recipes)/[\w/.-]*)`", text)
    names += re.findall(r"\b((?:scripts|recipes)/[\w/]+\.(?:py|yaml))", text)
    for name in set(names) - {"recipes/mine.yaml"}:
        assert (ROOT / name).exists() or (ROOT / "fmnist_lightning" / name).exists(), name
