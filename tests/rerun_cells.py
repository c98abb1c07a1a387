"""Run every code cell twice in a row, from an empty folder: `make again`, or `python tests/rerun_cells.py [NOTEBOOK…]`.

A reader who runs a cell once more, or opens a notebook from elsewhere, must not meet an error; nor may a notebook leave
files behind. Exit status 1 if one does. All notebooks take about half an hour.
"""

import copy
import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parent.parent


def doubled(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook with each code cell followed by a copy of itself."""
    cells = []
    for cell in notebook.cells:
        cells.append(cell)
        if cell.cell_type == "code":
            cells.append(copy.deepcopy(cell))
            cells[-1]["id"] = f"{cell['id'][:58]}-again"
    notebook.cells = cells
    return notebook


def trouble(path: Path) -> str:
    """What went wrong in this notebook; nothing, if all went well."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            notebook = doubled(nbformat.read(path, as_version=4))
            NotebookClient(notebook, timeout=600, resources={"metadata": {"path": folder}}).execute()
        except CellExecutionError as error:
            return str(error)
        return "\n".join(f"left behind: {name}" for name in os.listdir(folder))


def main() -> int:
    os.environ["TQDM_DISABLE"] = "1"
    failed = 0
    for path in map(Path, sys.argv[1:] or sorted((ROOT / "notebooks").glob("*.ipynb"))):
        begin, said = time.perf_counter(), trouble(path)
        print(f"{path.stem}: {said or 'ok'} ({time.perf_counter() - begin:.0f} s)", flush=True)
        failed += bool(said)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
