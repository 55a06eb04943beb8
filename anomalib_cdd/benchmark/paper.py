# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""What the CDD paper (arXiv 2508.18007) reports, beside what a grid measured in the same setting.

``paper.csv`` has Tables A3 to A5 (MVTec AD, noise 0.1) and A6 to A8 (VisA, noise 0.05), every method, as printed. The
paper's Tables 1 to 3 agree with them but for SoftPatch's pixel AUROC, which Table 1 has otherwise in twelve categories
(on average .977, Table A4 .975). Its split is unknown and so is the epoch it reports.
"""

import json
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import pandas as pd

from .tables import Table, Value, mean_text, plain, ranks, seed_notes

MEASURES = {"image_AUROC": "Image AUROC", "pixel_AUROC": "Pixel AUROC", "PRO": "PRO"}
BACKBONE = "wide_resnet50_2"
NOWHERE = ("", "")
NOTE = (
    "Means over the seeds. The paper's columns are its Table {table}; their mean is over the same rows as the models'. "
    "Its split is unknown, and it does not say which epoch it reports; here it is the last."
)


class Setting(NamedTuple):
    """Where the paper measured."""

    name: str
    noise_ratio: float


SETTINGS = {"MVTecNoisy": Setting("MVTec AD", 0.1), "VisaNoisy": Setting("VisA", 0.05)}


@cache
def paper_results() -> pd.DataFrame:
    """Return the paper's numbers: ``data``, ``category``, ``method``, the measures of both settings, ``tables``."""
    with files(__package__).joinpath("paper.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file)


def paper_tables(done: pd.DataFrame) -> list[Table]:
    """Return a table per data set, measure and setting that the paper has too; none where nothing is comparable.

    Comparable is a cell on all normal images of a category of MVTec AD or VisA, none of them left out by a list or by
    cleaning, at the paper's noise ratio, with a WRN50 as teacher.

    Args:
        done: Finished cells: ``noise_ratio``, ``model``, ``seed``, ``config`` and the measures.
    """
    if "config" not in done:
        return []
    places = [_place(json.loads(row["config"]), row["noise_ratio"]) for row in done.to_dict("records")]
    done = done.assign(setting=[place[0] for place in places], category=[place[1] for place in places])
    tables = []
    for name, group in done[done["setting"] != ""].groupby("setting", sort=False):
        paper = paper_results().query("data == @name").set_index(["category", "method"])
        for measure, column in _measured(group):
            tables.append(_paper_table(group, paper, str(name), measure, column))
    return tables


def _place(config: dict[str, Any], noise_ratio: float) -> tuple[str, str]:
    """Return the paper's data set and category that a cell stands beside; empty if there is none."""
    data, model = config["data"], config["model"].get("init_args", {})
    setting = SETTINGS.get(data["class_path"].rpartition(".")[2])
    arguments = data.get("init_args", {})
    if setting is None or noise_ratio != setting.noise_ratio:
        return NOWHERE
    if any(arguments.get(name) is not None for name in ("max_normal", "exclude", "clean")):
        return NOWHERE
    if not str(model.get("backbone")).startswith(BACKBONE):
        return NOWHERE
    category = arguments.get("category")
    known = paper_results().query("data == @setting.name")["category"]
    return (setting.name, category) if category in set(known) else NOWHERE


def _measured(group: pd.DataFrame) -> Iterator[tuple[str, str]]:
    for suffix in ("", "_overlap"):
        for measure in MEASURES:
            if measure + suffix in group and group[measure + suffix].notna().any():
                yield measure, measure + suffix


def _paper_table(group: pd.DataFrame, paper: pd.DataFrame, name: str, measure: str, column: str) -> Table:
    """Return one measure in one setting: a row per data set and their mean, our models and the paper's methods."""
    ours = group.pivot_table(index="data", columns="model", values=column, sort=False)
    ours = ours.reindex(columns=group["model"].unique())
    categories = group.groupby("data")["category"].first().loc[ours.index]
    methods = paper.index.unique("method")
    theirs = pd.DataFrame({method: paper[column].xs(method, level="method").loc[categories] for method in methods})
    theirs.index, whole = ours.index, ours.dropna()
    frame = pd.concat([ours, theirs.rename(columns="paper: {}".format)], axis=1)
    if len(whole) > 1:
        frame.loc[f"mean of {len(whole)}"] = frame.loc[whole.index].mean()
    marks = [ranks(row[ours.columns]) + [0] * len(methods) for _, row in frame.iterrows()]
    rows = tuple(
        (plain(data), *((Value(mean_text(value), mark),) for value, mark in zip(row, marked, strict=True)))
        for (data, row), marked in zip(frame.iterrows(), marks, strict=True)
    )
    table = paper["tables"].iloc[0].split()[list(MEASURES).index(measure)]
    setting = "overlap" if column.endswith("_overlap") else "no overlap"
    title = f"{name}, {MEASURES[measure]}, {setting}"
    notes = [
        f"{data}: {note}" for data, part in group.groupby("data", sort=False) for note in seed_notes(part, short=True)
    ]
    return Table(title, ("data", *frame.columns), rows, (NOTE.format(table=table), *notes))
