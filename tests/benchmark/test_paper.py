# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""The paper's numbers are as printed and stand beside what was measured in its setting, and beside nothing else."""

import json
from typing import Any

import pandas as pd
import pytest

from anomalib_cdd.benchmark.paper import paper_results, paper_tables

NUMBERS = ["image_AUROC", "image_AUROC_overlap", "pixel_AUROC", "pixel_AUROC_overlap", "PRO", "PRO_overlap"]
# the last rows of Tables A3 to A8 of the paper
AVERAGES = {
    ("MVTec AD", "RD"): (0.972, 0.708, 0.957, 0.818, 0.916, 0.901),
    ("MVTec AD", "ReContrast"): (0.988, 0.761, 0.969, 0.887, 0.928, 0.920),
    ("MVTec AD", "URD"): (0.973, 0.696, 0.962, 0.792, 0.929, 0.909),
    ("MVTec AD", "SoftPatch"): (0.985, 0.984, 0.975, 0.957, 0.930, 0.915),
    ("MVTec AD", "InReaCh"): (0.917, 0.879, 0.971, 0.943, 0.877, 0.861),
    ("MVTec AD", "FUN-AD"): (0.975, 0.976, 0.980, 0.977, 0.869, 0.870),
    ("MVTec AD", "CDD"): (0.984, 0.971, 0.981, 0.973, 0.930, 0.921),
    ("VisA", "RD"): (0.945, 0.656, 0.979, 0.909, 0.897, 0.892),
    ("VisA", "SoftPatch"): (0.927, 0.924, 0.985, 0.954, 0.904, 0.883),
    ("VisA", "InReaCh"): (0.827, 0.725, 0.974, 0.914, 0.793, 0.721),
    ("VisA", "FUN-AD"): (0.924, 0.934, 0.984, 0.982, 0.797, 0.793),
    ("VisA", "CDD"): (0.954, 0.936, 0.982, 0.977, 0.911, 0.911),
}


def cells(category: str, noise_ratio: float = 0.1, backbone: str = "wide_resnet50_2.tv_in1k", **data: Any) -> Any:
    """Return finished cells of two models on a category of MVTec AD."""
    class_path = data.pop("class_path", "anomalib_cdd.data.MVTecNoisy")
    config = {
        "data": {"class_path": class_path, "init_args": {"category": category, "max_normal": None} | data},
        "model": {"class_path": "anomalib_cdd.Cdd", "init_args": {"backbone": backbone}},
    }
    rows = [
        {"data": category, "model": model, "noise_ratio": noise_ratio, "seed": 0, "image_AUROC": value}
        for model, value in (("cdd", 0.9), ("rd", 0.8))
    ]
    return pd.DataFrame(rows).assign(config=json.dumps(config))


@pytest.mark.parametrize(("data", "method"), AVERAGES)
def test_the_categories_average_to_what_the_paper_prints(data: str, method: str) -> None:
    rows = paper_results().query("data == @data and method == @method").set_index("category")
    assert tuple(rows.loc["Average", NUMBERS]) == AVERAGES[data, method]
    means = rows.drop("Average")[NUMBERS].mean()
    assert (means - rows.loc["Average", NUMBERS]).abs().max() < 0.00055  # the categories are rounded too
    assert len(rows) == {"MVTec AD": 16, "VisA": 13}[data]


def test_a_table_by_hand() -> None:
    (table,) = paper_tables(pd.concat([cells("bottle"), cells("cable")], ignore_index=True))
    assert table.title == "MVTec AD, Image AUROC, no overlap"
    methods = ["RD", "ReContrast", "URD", "SoftPatch", "InReaCh", "FUN-AD", "CDD"]
    assert table.columns == ("data", "cdd", "rd", *(f"paper: {method}" for method in methods))
    texts = [[value.text for cell in row for value in cell] for row in table.rows]
    assert texts == [
        ["bottle", "0.900", "0.800", "0.997", "0.994", "0.992", "1.000", "1.000", "1.000", "1.000"],
        ["cable", "0.900", "0.800", "0.931", "0.977", "0.955", "0.996", "0.958", "0.952", "0.981"],
        ["mean of 2", "0.900", "0.800", "0.964", "0.986", "0.974", "0.998", "0.979", "0.976", "0.990"],
    ]
    assert [cell[0].rank for cell in table.rows[0]] == [0, 1, 2, *[0] * 7]  # the paper's are not in the race
    assert "Table A3" in table.notes[0]


def test_the_mean_is_over_categories_that_every_model_has() -> None:
    frame = pd.concat([cells("bottle"), cells("cable"), cells("grid").head(1)], ignore_index=True)
    (table,) = paper_tables(frame)
    assert [row[0][0].text for row in table.rows] == ["bottle", "cable", "grid", "mean of 2"]
    assert table.rows[2][2][0].text == "-"
    assert "grid" not in "".join(table.notes)  # one model on its seeds, nothing to compare


@pytest.mark.parametrize(
    "frame",
    [
        cells("bottle", noise_ratio=0.2),
        cells("bottle", backbone="efficientnet_lite0_pypi"),
        cells("bottle", max_normal=100),
        cells("bottle", clean={"share": 0.1}),
        cells("bottle", exclude="bad.txt"),
        cells("my_parts"),
        cells("bottle", class_path="anomalib_cdd.data.FolderNoisy"),
        cells("bottle").drop(columns="config"),
    ],
)
def test_nothing_else_stands_beside_the_paper(frame: pd.DataFrame) -> None:
    assert paper_tables(frame) == []
