"""The notebook runs from top to bottom, shows what it promises, and is stored with the outputs of its own source."""

import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

from fmnist_lightning.report.tables import LABELS
from tools.notebook import DIGEST, NOTEBOOK, code_cells, execute, keep_outputs, read_notebook, source_digest

PLOT_CELLS = ("images", "curves", "confusion", "roc")
SILENT_CELLS = ("parameters", "imports")


@pytest.fixture
def notebook() -> NotebookNode:
    return read_notebook()


def set_parameters(notebook: NotebookNode, parameters: str) -> None:
    """Insert other parameters after the cell with the tag `parameters`."""
    [place] = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ())]
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(parameters, id="others"))


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


def check_fashion_mnist(notebook: NotebookNode, epochs: int) -> None:
    text = printed(notebook, "stdout")
    assert "train  images (54000, 1, 28, 28)" in text
    assert len(re.findall(rf"^epoch +\d+/{epochs} .*\d\.\d\d%", text, re.MULTILINE)) == epochs
    tens = 8 if epochs == 1 else 9
    assert re.search(rf"^\| accuracy +\| +91\.39 +\| +{tens}\d\.\d\d", text, re.MULTILINE)


def check_kept(notebook: NotebookNode, *silent: str) -> None:
    """Check that each output shows on GitHub, and says nothing about the machine."""
    assert [cell.id for cell in code_cells(notebook) if not cell.outputs] == [*silent]
    assert notebook.metadata.keys() == {"kernelspec", "language_info", DIGEST}
    assert all(cell.metadata.keys() <= {"tags"} for cell in notebook.cells)
    assert not list(outputs(notebook, "display_data"))  # a progress bar
    assert not re.findall(r"(?:^|[ '\"=])/\w.*", printed(notebook, "stdout"), re.MULTILINE)  # a path of the machine


def test_stored_outputs_are_those_of_the_source(notebook: NotebookNode) -> None:
    nbformat.validate(notebook)
    assert NOTEBOOK.stat().st_size < 1e6
    assert notebook.metadata[DIGEST] == source_digest(notebook), "run make outputs"
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)], "run make outputs"
    check_shown(notebook)
    check_kept(notebook, *SILENT_CELLS)
    check_fashion_mnist(notebook, 40)


def test_outputs_of_an_edited_cell_are_noticed(notebook: NotebookNode) -> None:
    before = source_digest(notebook)
    code_cells(notebook)[-1].source += " "
    assert source_digest(notebook) != before


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


def test_notebook_runs_on_drawn_garments(notebook: NotebookNode, tmp_path: Path) -> None:
    folder = tmp_path / "project" / "notebooks"
    folder.mkdir(parents=True)
    parameters = """
from fmnist_lightning.data.sets import drawn

drawn.PER_CLASS.update(train=60, test=20)
EPOCHS, DATASET = 2, "drawn"
"""
    set_parameters(notebook, parameters)
    execute(notebook, folder)
    check_shown(notebook)
    text = printed(notebook, "stdout")
    assert "train  images (540, 1, 28, 28)" in text
    assert "test   images (200, 1, 28, 28)" in text
    assert "DRAWN STAND-IN, not Fashion-MNIST" in text
    assert re.search(r"validation accuracy of one layer: 0\.\d+", text)
    assert re.search(r"accuracy on \d+ pictures: 0\.\d+", text)
    assert [path.name for path in folder.parent.iterdir() if path != folder] == ["lightning_logs"]
    assert not list(folder.iterdir())
    keep_outputs(notebook)
    check_shown(notebook)
    check_kept(notebook, "parameters", "others", "imports")


@pytest.mark.real_data
def test_notebook_runs_on_fashion_mnist(notebook: NotebookNode, real_data_dir: Path, tmp_path: Path) -> None:
    set_parameters(notebook, f"EPOCHS, DATA_DIR = 1, {str(real_data_dir)!r}")
    execute(notebook, tmp_path)
    check_shown(notebook)
    check_fashion_mnist(notebook, 1)
