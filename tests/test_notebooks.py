"""The notebooks run top to bottom on the embedded model; what is committed of the first came from SmolLM2."""

from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"


def _read(path):
    return pytest.importorskip("nbformat").read(path, as_version=4)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_runs(path, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("MEMPLUG_NOTEBOOK", "world")  # SmolLM2 would take minutes
    done = nbclient.NotebookClient(
        _read(path), timeout=300, resources={"metadata": {"path": tmp_path}}
    ).execute()
    code = [cell for cell in done.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    assert _drawn(code), "no figure was drawn"


def test_outputs_that_are_committed():
    """`notebooks/run.py` makes them; the comparison takes too long to keep its own up to date."""
    code = [cell for cell in _read(FOLDER / "quickstart.ipynb").cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run notebooks/run.py"
    outputs = [output for cell in code for output in cell.outputs]
    assert not any(output.get("name") == "stderr" or output.output_type == "error" for output in outputs)
    said = "".join(output.get("text", "") for output in outputs)
    assert "in chat: What is the capital of France?" in said
    assert "not at hand" not in said
    assert _drawn(code)
    assert not any(cell.get("outputs") for cell in _read(FOLDER / "compare.ipynb").cells)


def _drawn(code):
    return any("image/png" in output.get("data", {}) for cell in code for output in cell.outputs)
