"""Run the notebook on Fashion-MNIST and store its outputs in it: python -m tools.notebook"""

import hashlib
import os
import sysconfig
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode

from fmnist_lightning.cli.types import default_data_dir
from fmnist_lightning.data.sets.download import ensure_files
from fmnist_lightning.runs.files import write_text
from tools.observe import ROOT

NOTEBOOK = ROOT / "notebooks" / "fashion_mnist_cnn_with_dropout.ipynb"
DIGEST = "outputs_of_source_sha256"  # in the notebook's metadata
JUPYTER_FOLDERS = ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR")
TIMEOUT = 3600  # seconds for a cell


def read_notebook() -> NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def source_digest(notebook: NotebookNode) -> str:
    """The SHA-256 of all code, by which outputs of other code are noticed."""
    return hashlib.sha256("\n\n".join(cell.source for cell in code_cells(notebook)).encode()).hexdigest()


def execute(notebook: NotebookNode, folder: Path) -> None:
    """Run the cells in `folder`, by this interpreter in its environment, without a file in the user's home.

    Raises nbclient's CellExecutionError if a cell fails.
    """
    kernel = AsyncKernelManager(kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    with TemporaryDirectory() as own, patch.dict(os.environ, {name: str(Path(own) / name) for name in JUPYTER_FOLDERS}):
        for name in JUPYTER_FOLDERS:
            (Path(own) / name).mkdir()
        # As in an activated environment, so that printed commands have no path of this machine.
        os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
        client = NotebookClient(notebook, km=kernel, timeout=TIMEOUT, resources={"metadata": {"path": str(folder)}})
        client.execute(cleanup_kc=True)


def keep_outputs(notebook: NotebookNode) -> None:
    """Keep what GitHub shows and what the next run repeats: printed text and pictures.

    Progress bars are widgets, and standard error has the libraries' notices.
    """
    for cell in code_cells(notebook):
        cell.metadata.pop("execution", None)  # the times
        printed = "".join(one.text for one in cell.outputs if one.get("name") == "stdout")
        pictures = [one for one in cell.outputs if "image/png" in one.get("data", {})]
        cell.outputs = [*([nbformat.v4.new_output("stream", text=printed)] if printed else []), *pictures]
    notebook.metadata = {
        "kernelspec": notebook.metadata.kernelspec,
        "language_info": {"name": "python"},
        DIGEST: source_digest(notebook),
    }


def store_outputs() -> None:
    """Run the notebook, which takes minutes, and write it with its outputs. An error leaves the file as it was."""
    data_dir = Path(default_data_dir()).absolute()
    ensure_files(data_dir)
    notebook = read_notebook()
    with TemporaryDirectory() as folder, patch.dict(os.environ, {"FMNIST_DATA_DIR": str(data_dir)}):
        (Path(folder) / "notebooks").mkdir()
        execute(notebook, Path(folder) / "notebooks")
    keep_outputs(notebook)
    write_text(NOTEBOOK, nbformat.writes(notebook) + "\n")


if __name__ == "__main__":
    store_outputs()
