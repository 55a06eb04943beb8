# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""``anomalib-cdd fuad``: the comparison grid (``grid.py``), what it keeps of a cell (``scores.py``), its report."""

from .grid import get_parser, run

__all__ = ["get_parser", "run"]
