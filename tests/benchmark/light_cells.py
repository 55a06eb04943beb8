# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Cells that train nothing, so that a worker starts in a second: it imports this file and not the package.

``python tests/benchmark/light_cells.py FOLDER`` is a driver of its own, to be killed.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any


@dataclass(frozen=True)
class LightCell:
    """As much of a cell as the grid looks at; its model's name says what becomes of its worker."""

    folder: Path
    model: str
    seed: int = 0
    data: str = "tiles"
    noise_ratio: float = 0.0
    config: dict[str, Any] = field(
        default_factory=lambda: {
            "data": {"class_path": "any.Data", "init_args": {}},
            "model": {"class_path": "any.Model", "init_args": {}},
            "trainer": {"accelerator": "cpu"},
        }
    )

    @property
    def key(self) -> str:
        return f"{self.model}{self.seed}"

    def __str__(self) -> str:
        return f"{self.model} seed {self.seed}"


def work(cell: LightCell, build: Any, threads: int, examples: bool, keep_run: bool) -> SimpleNamespace:
    """Stand in for a worker's task; each attempt leaves its own process and Ray's in a file."""
    tried = cell.folder / f"{cell.key}.tried"
    with tried.open("a") as file:
        file.write(f"{os.getpid()} {os.getppid()}\n")
    attempts = len(tried.read_text().splitlines())
    if cell.model == "dies" or (cell.model == "dies_once" and attempts == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    while cell.model == "waits" and not (cell.folder / "go").exists():
        time.sleep(0.1)
    record = {"status": "done", "measures": {"image_AUROC": 0.5}, "key": cell.key, "config": cell.config}
    record |= {
        "course": [],
        "fit_seconds": 1.0,
        "wall_seconds": 1.0,
        "environment": {"anomalib_cdd": "0", "commit": "0"},
    }
    return SimpleNamespace(record=record, arrays=None, printed=f"printed by {cell}", run=None)


def run(cells: list[LightCell], output: Path, workers: int) -> int:
    """Run a grid of them."""
    from anomalib_cdd.benchmark import run as grid
    from anomalib_cdd.benchmark import workers as by_ray

    (output / "cells").mkdir(parents=True, exist_ok=True)
    by_ray._work = work
    return grid.run(cells, None, output, workers=workers)


def cells_of_driver(folder: Path) -> list[LightCell]:
    """Return what the driver that is killed runs: one cell that ends and one that does not."""
    return [LightCell(folder, "quick"), LightCell(folder, "waits")]


if __name__ == "__main__":
    sys.modules["light_cells"] = sys.modules["__main__"]
    LightCell.__module__ = work.__module__ = "light_cells"  # what the workers import
    run(cells_of_driver(Path(sys.argv[1])), Path(sys.argv[1]) / "out", workers=2)
