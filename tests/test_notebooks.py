"""The notebooks run from the first cell to the last, in this environment, and hold no logic of their own."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def files():
    return {*ROOT.iterdir(), *(ROOT / "notebooks").iterdir()}


@each
def test_notebooks_are_thin(path):
    tree = ast.parse(path.read_text())
    assert not [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda | ast.While)
    ]
    assert len(ast.unparse(tree).splitlines()) < 50


@pytest.mark.notebooks
@each
def test_notebook_runs_in_this_environment_and_leaves_nothing_behind(path, tmp_path, monkeypatch):
    import jupytext
    import nbformat
    from nbclient import NotebookClient

    # The kernel of this environment, whatever kernels are installed for this user; jupyter_client runs it
    # with this interpreter.
    monkeypatch.setenv("JUPYTER_PATH", f"{sys.prefix}/share/jupyter")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    before = files()
    notebook = jupytext.read(path)
    notebook.cells.append(nbformat.v4.new_code_cell("import sys; print(sys.executable)"))
    NotebookClient(
        notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    ).execute()
    assert notebook.cells[-1].outputs[0].text.strip() == sys.executable
    assert (
        any(
            output.get("data", {}).get("image/png")
            for cell in notebook.cells
            for output in cell.get("outputs", ())
        )
        or "own_dataset" in path.stem
    )
    assert files() == before
