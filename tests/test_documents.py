"""README and docs lead to what is there, and name each file of the package."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(document: Path) -> None:
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text(encoding="utf-8")):
        assert (document.parent / link).exists(), link


def test_every_module_is_described_and_every_described_one_is_there() -> None:
    described = set(re.findall(r"\b(\w+\.py)\b", (ROOT / "docs" / "code.md").read_text(encoding="utf-8")))
    modules = {path.name for path in (ROOT / "fmnist_lightning").glob("*.py")} - {"__init__.py"}
    assert described == modules


def test_every_script_is_listed() -> None:
    [listed] = re.findall(r"short mains: (.+)", (ROOT / "docs" / "code.md").read_text(encoding="utf-8"))
    assert set(listed.split(", ")) == {path.stem for path in (ROOT / "scripts").glob("*.py")}
