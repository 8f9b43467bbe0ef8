"""The notebook runs from top to bottom, shows what it promises, and is stored without outputs."""

import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode

from fmnist_lightning.report.tables import LABELS

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "fashion_mnist_cnn_with_dropout.ipynb"
PLOT_CELLS = ("images", "curves", "confusion", "roc")


@pytest.fixture
def notebook() -> NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture
def own_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncKernelManager:
    """A kernel of this interpreter that writes nothing into the user's home."""
    for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable.lower()))
    return AsyncKernelManager(kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))


def executed(notebook: NotebookNode, kernel: AsyncKernelManager, parameters: str, folder: Path) -> NotebookNode:
    """Run the notebook in `folder`, with other parameters after the cell with the tag `parameters`."""
    [place] = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ())]
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(parameters))
    client = NotebookClient(notebook, km=kernel, timeout=240, resources={"metadata": {"path": str(folder)}})
    return client.execute(cleanup_kc=True)


def outputs(notebook: NotebookNode, kind: str) -> Iterator[tuple[str, NotebookNode]]:
    """The outputs of a kind with the ids of their cells."""
    for cell in notebook.cells:
        yield from ((cell.id, output) for output in cell.get("outputs", ()) if output.output_type == kind)


def printed(notebook: NotebookNode, stream: str) -> str:
    return "".join(output.text for _, output in outputs(notebook, "stream") if output.name == stream)


def check_shown(notebook: NotebookNode) -> None:
    """Check what each run must show, on any data."""
    assert not list(outputs(notebook, "error"))
    assert "Warning" not in printed(notebook, "stderr")
    text = printed(notebook, "stdout")
    for label in LABELS.values():
        assert re.search(rf"^\| {label} .*\d\d\.\d\d", text, re.MULTILINE), label
    assert "225,034 parameters" in text
    plots = {name for name, output in outputs(notebook, "execute_result") if "image/png" in output.data}
    assert plots == set(PLOT_CELLS)


def test_notebook_is_stored_without_outputs(notebook: NotebookNode) -> None:
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs"), cell.id
        assert cell.get("execution_count") is None, cell.id


def test_cells_have_readable_ids(notebook: NotebookNode) -> None:
    names = [cell.id for cell in notebook.cells]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch("[a-z-]+", name) for name in names)  # a generated id has digits
    assert notebook.metadata.kernelspec.name == "python3"


def test_text_explains_each_callback(notebook: NotebookNode) -> None:
    sources = {cell.id: cell.source for cell in notebook.cells}
    given = sources["training"].partition("callbacks=[\n")[2].partition("\n    ],")[0]
    callbacks = re.findall(r"^ {8}(\w+)", given, re.MULTILINE)
    explained = re.findall(r"\(`(\w+)`", sources["training-text"])
    assert [name.lower() for name in explained] == [name.lower() for name in callbacks]  # history is a History


def test_notebook_links_lead_to_files(notebook: NotebookNode) -> None:
    text = "".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", text)
    assert links
    assert all((NOTEBOOK.parent / link).is_file() for link in links)


def test_notebook_runs_on_drawn_garments(
    notebook: NotebookNode, own_kernel: AsyncKernelManager, tmp_path: Path
) -> None:
    folder = tmp_path / "project" / "notebooks"
    folder.mkdir(parents=True)
    parameters = """
from fmnist_lightning.data.sets import drawn

drawn.PER_CLASS.update(train=60, test=20)
EPOCHS, DATASET = 2, "drawn"
"""
    result = executed(notebook, own_kernel, parameters, folder)
    check_shown(result)
    text = printed(result, "stdout")
    assert "train  images (540, 1, 28, 28)" in text
    assert "test   images (200, 1, 28, 28)" in text
    assert "DRAWN STAND-IN, not Fashion-MNIST" in text
    assert re.search(r"validation accuracy of one layer: 0\.\d+", text)
    assert re.search(r"accuracy on \d+ pictures: 0\.\d+", text)
    assert [path.name for path in folder.parent.iterdir() if path != folder] == ["lightning_logs"]
    assert not list(folder.iterdir())


@pytest.mark.real_data
def test_notebook_runs_on_fashion_mnist(
    notebook: NotebookNode, own_kernel: AsyncKernelManager, real_data_dir: Path, tmp_path: Path
) -> None:
    result = executed(notebook, own_kernel, f"EPOCHS, DATA_DIR = 1, {str(real_data_dir)!r}", tmp_path)
    check_shown(result)
    text = printed(result, "stdout")
    assert "train  images (54000, 1, 28, 28)" in text
    assert re.search(r"^\| accuracy +\| 91\.39 +\| 8\d\.\d\d", text, re.MULTILINE)
