# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""What the comparison grid's report says: an overview, the paper's figures where they compare, and each data set.

It is plain data; ``pages.py`` writes it as Markdown and as one HTML page.
"""

from dataclasses import dataclass

import pandas as pd

from .figures import Drawn, Picture, file_name
from .paper import paper_tables
from .tables import Table, finished, overview, setting_tables

TITLE = "Comparison on training data that is not clean"
READING = {
    "Numbers": (
        "Mean ± standard deviation over the seeds. The best of a column is bold, the second best underlined, where "
        "more is better."
    ),
    "No overlap, overlap": (
        "Without overlap the images injected into the training set are not in the test set; with overlap they are. One "
        "trained model answers both."
    ),
    "Noise ratio": "Injected images per normal training image; all normal images stay.",
    "AUPRO, PRO": (
        "AUPRO is anomalib's, one curve over the whole test set. PRO is RD4AD's and the paper's, the mean of one curve "
        "per anomalous image. Both are up to a false positive rate of 0.3."
    ),
    "injected_AUROC": "Injected images against normal test images.",
    "noise_AP, noise_precision": (
        "How well the ranking of the training images by suspicion finds the injected ones: its average precision, and "
        "the share of injected images among the first n, where n were injected. A ranking by a model's own scores of "
        "images that it has learned from is marked as in-sample and not compared with the others. Of a training set "
        "that was cleaned it is the cleaning's ranking."
    ),
    "kept_normals, noise_left": "Of normal training images the share that cleaning kept, of injected ones the number.",
    "F1_ratio": (
        "F1 of the test images, without overlap, at the default threshold of LabelFreePostProcessor, which comes from "
        "the unlabelled training images, over the best F1 that any threshold reaches (F1_best)."
    ),
    "false_alarms, false_alarm_rate": (
        "The share of good test images above that threshold, and the share that it states. Of pixels: in good images."
    ),
    "steps, fit_seconds, inference_seconds": (
        "Optimiser steps that the trainer counted; seconds of the fit, without those of measuring in its course; "
        "seconds an image of a batch that the trained model scores, the least of 20 in fp32, without reading files."
    ),
    "Exact configurations": "In results.csv, one row per cell.",
}
OVERVIEW_NOTE = (
    "Image AUROC without overlap / image AUROC with overlap / noise AP; the best of each in a row is bold, the second "
    "best underlined."
)


@dataclass(frozen=True)
class Block:
    """The tables of one data set at one noise ratio."""

    title: str
    ratio: str
    anchor: str
    tables: list[Table]


@dataclass(frozen=True)
class Section:
    """A data set: what was measured at each noise ratio, and its figures."""

    title: str
    anchor: str
    blocks: list[Block]
    pictures: list[Picture]


@dataclass(frozen=True)
class Report:
    """What both forms of the report say."""

    state: str
    measured_with: str
    overview: list[Table]
    paper: list[Table]
    sections: list[Section]
    failed: list[tuple[str, str]]
    """The cell and its error."""
    problems: list[str]
    """What could not be read or drawn."""
    are_drawn: bool


def make_report(results: pd.DataFrame, n_cells: int, drawn: Drawn | None = None) -> Report:
    """Gather what the report says.

    Args:
        results: One row per cell that has run: ``data``, ``noise_ratio``, ``model``, ``seed``, ``status``, ``error``,
            ``config`` and the measures.
        n_cells: How many cells the grid has.
        drawn: The figures, or ``None`` where they are not drawn yet.
    """
    if results.empty:
        results = pd.DataFrame(columns=["data", "noise_ratio", "model", "seed", "status", "error"])
    done, failed = finished(results), results[results["status"] == "failed"]
    pictures, problems = drawn or Drawn()
    return Report(
        state=f"{len(done)} of {n_cells} cells finished, {len(failed)} failed, {n_cells - len(results)} not run yet.",
        measured_with=_measured_with(done),
        overview=[overview(group, f"Noise ratio {ratio:g}") for ratio, group in done.groupby("noise_ratio")],
        paper=paper_tables(done),
        sections=[
            _section(str(data), group, [picture for picture in pictures if picture.data == data])
            for data, group in done.groupby("data", sort=False)
        ],
        failed=[(_cell_name(row), str(row["error"]).splitlines()[0]) for row in failed.to_dict("records")],
        problems=list(problems),
        are_drawn=drawn is not None,
    )


def _section(data: str, done: pd.DataFrame, pictures: list[Picture]) -> Section:
    anchor = f"data-{file_name(data)}"
    blocks = [
        Block(f"{data}, noise ratio {ratio:g}", f"{ratio:g}", f"{anchor}-{ratio:g}", setting_tables(group))
        for ratio, group in done.groupby("noise_ratio")
    ]
    return Section(data, anchor, blocks, pictures)


def _cell_name(row: dict) -> str:
    return f"{row['data']}, noise ratio {row['noise_ratio']:g}, {row['model']}, seed {row['seed']}"


def _measured_with(done: pd.DataFrame) -> str:
    """Return versions and devices, all of them where cells differ."""
    if done.empty:
        return ""
    known = ("anomalib_cdd", "commit", "anomalib", "torch", "python", "device", "precision")
    names = [name for name in known if name in done]
    return ", ".join(f"{name} {' and '.join(sorted(set(done[name].astype(str))))}" for name in names)
