# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""The notebook runs from its first cell to its last, offline, and shows what it promises.

It is executed as it is committed, but for a cell after its parameters that makes the run small.
"""

import math
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "contaminated_folder.ipynb"
FIGURES = ["peek", "curves", "suspicious", "test-heat-maps", "confidence", "scores"]
NORMAL, HIDDEN = 10, 2


def read() -> NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def texts(cell: NotebookNode) -> str:
    return "".join(output.get("text", "") for output in cell.outputs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notebook")


@pytest.fixture(scope="module")
def executed(folder: Path) -> dict[str, NotebookNode]:
    """Code cells of the executed notebook by their id; ``values`` prints the table's."""
    notebook = read()
    place = next(i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    small = f"NORMAL, NOISE_RATIO, EPOCHS, IMAGE_SIZE, OUTPUT = {NORMAL}, {HIDDEN / NORMAL}, 2, 64, Path('results')"
    notebook.cells.insert(place + 1, new_code_cell(small, id="small"))
    notebook.cells.append(new_code_cell("for value in table['value']: print(value)", id="values"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("IPYTHONDIR", str(folder / "ipython"))
        patch.delenv("MPLBACKEND", raising=False)  # a backend without inline figures would show none
        client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}})
        client.execute()
    return {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}


def test_every_code_cell_ran(executed: dict[str, NotebookNode]) -> None:
    assert [cell.execution_count for cell in executed.values()] == list(range(1, len(executed) + 1))
    assert not [output for cell in executed.values() for output in cell.outputs if output.output_type == "error"]


def test_figures_are_shown_where_they_belong(executed: dict[str, NotebookNode]) -> None:
    shown = [id_ for id_, cell in executed.items() for output in cell.outputs if "image/png" in output.get("data", {})]
    assert shown == FIGURES


def test_table_has_no_holes(executed: dict[str, NotebookNode]) -> None:
    values = [float(value) for value in texts(executed["values"]).split()]
    assert len(values) == 4
    assert all(math.isfinite(value) and 0 <= value <= 1 for value in values)
    assert any("text/html" in output.get("data", {}) for output in executed["measures"].outputs)


@pytest.mark.usefixtures("executed")
def test_the_folder_holds_images_and_no_truth(folder: Path) -> None:
    images = folder / "results" / "solar_cells"
    files = [path for path in images.rglob("*") if path.is_file()]
    assert len(files) == NORMAL + HIDDEN
    assert {path.parent for path in files} == {images / "train"}
    assert {path.suffix for path in files} == {".png"}


def test_committed_without_outputs_and_without_anyones_machine() -> None:
    notebook = read()
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags"}
        if cell.cell_type == "code":
            assert cell.execution_count is None
            assert cell.outputs == []
