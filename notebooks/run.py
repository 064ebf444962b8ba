"""Run a notebook and keep its outputs: python notebooks/run.py quickstart"""

import sys
import tempfile
from pathlib import Path

import nbclient
import nbformat


def run(name: str) -> None:
    path = Path(__file__).parent / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": folder}}).execute()
    nbformat.write(tidied(notebook), path)


def tidied(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without times, and without bars and warnings of other packages."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
    return notebook


if __name__ == "__main__":
    run(sys.argv[1])
