# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""What a grid leaves in its folder: a JSON file a cell, named by its key, and ``results.csv`` with a row a cell.

``curves.csv`` has a row for each measure that was taken in the course of a training.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from anomalib_cdd.training.files import write_text

from .plan import Cell

logger = logging.getLogger(__name__)

Record = dict[str, Any]

CELLS = "cells"
RESULTS, CURVES = "results.csv", "curves.csv"
FIELDS: dict[str, Any] = {
    "key": str,
    "status": str,
    "measures": dict,
    "course": list,
    "fit_seconds": float | int | None,
    "wall_seconds": float | int,
    "environment": dict,
    "config": dict,
}


def record_path(output: Path, cell: Cell) -> Path:
    """Return where a cell's record lies in a grid's folder; its scores lie beside, as ``.npz``."""
    return output / CELLS / f"{cell.key}.json"


def read_record(output: Path, cell: Cell) -> Record | None:
    """Return the record of a cell that has run, or ``None``.

    A file that is not whole is named in a warning and counts as none, so that its cell runs again.
    """
    path = record_path(output, cell)
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        record = None
    whole = isinstance(record, dict) and all(
        name in record and isinstance(record[name], kind) for name, kind in FIELDS.items()
    )
    if not whole or record["key"] != cell.key:
        logger.warning("%s is not the whole record of its cell, which runs again.", path)
        return None
    return record


def save_record(output: Path, cell: Cell, record: Record) -> None:
    """Write a record, whole or not at all."""
    write_text(record_path(output, cell), json.dumps(record, indent=1))


def is_done(record: Record | None) -> bool:
    """Return whether a cell has run and did not fail."""
    return record is not None and record["status"] == "done"


def results_of(cells: Sequence[Cell], records: Sequence[Record | None]) -> pd.DataFrame:
    """Return a row for each cell that has run: its names, status, measures, seconds, environment and configuration."""
    rows = [
        {
            **_names(cell),
            "status": record["status"],
            **record["measures"],
            "fit_seconds": record["fit_seconds"],
            "inference_seconds": record.get("inference_seconds"),
            "wall_seconds": record["wall_seconds"],
            "error": record.get("error"),
            **record["environment"],
            "key": record["key"],
            "config": json.dumps(record["config"], sort_keys=True),
        }
        for cell, record in zip(cells, records, strict=True)
        if record is not None
    ]
    return pd.DataFrame(rows)


def curves_of(cells: Sequence[Cell], records: Sequence[Record | None]) -> pd.DataFrame:
    """Return a row for each measure in the course of a finished cell: its names, ``epoch`` and the measures."""
    rows = [
        _names(cell) | point
        for cell, record in zip(cells, records, strict=True)
        if record is not None and is_done(record)
        for point in record["course"]
    ]
    return pd.DataFrame(rows)


def _names(cell: Cell) -> dict[str, Any]:
    return {"data": cell.data, "noise_ratio": cell.noise_ratio, "model": cell.model, "seed": cell.seed}


def write_tables(output: Path, results: pd.DataFrame, curves: pd.DataFrame) -> None:
    """Write ``results.csv`` and, where anything was measured in the course of a training, ``curves.csv``."""
    write_text(output / RESULTS, results.to_csv(index=False))
    if not curves.empty:
        write_text(output / CURVES, curves.to_csv(index=False))
    else:  # of an earlier grid
        (output / CURVES).unlink(missing_ok=True)
