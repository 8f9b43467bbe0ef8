"""Links and file names in the documents lead to something, and their Python examples run."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from fmnist_lightning.models.nets import MODELS
from tests.test_own_parts import OwnNet

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


@pytest.mark.parametrize("document", ["README.md", "docs/own.md"])
@pytest.mark.filterwarnings("ignore:The number of training batches", "ignore:GPU available", "ignore:.*num_workers")
def test_python_examples_run(document: str, tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With small files in place of Fashion-MNIST, and what the text takes for granted."""
    monkeypatch.setenv("FMNIST_DATA_DIR", str(tiny_dir))
    monkeypatch.chdir(tmp_path)
    for name in ("own", "one_layer"):  # so that they are gone after the test
        monkeypatch.setitem(MODELS, name, OwnNet)
    Image.effect_noise((28, 28), 90).save("boot.png")
    generator = torch.Generator().manual_seed(0)
    given = {
        "images": {part: torch.randint(256, (60, 3, 32, 32), generator=generator).byte() for part in ("train", "test")},
        "labels": {part: torch.arange(60) % 2 for part in ("train", "test")},
        "OwnNet": OwnNet,
    }
    examples = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        exec(example, dict(given))  # noqa: S102
