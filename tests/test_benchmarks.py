# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""The benchmark's arithmetic, and that rows run; no time is asserted."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from anomalib_cdd.data import Cleaning
from benchmarks import __main__ as bench
from benchmarks import cleaning, milliseconds, synthesis
from benchmarks.measuring import Comparison, alternate
from benchmarks.report import to_markdown
from benchmarks.rows import ROWS
from benchmarks.setting import Setting


def test_ratio_is_of_medians_and_spread_of_rounds() -> None:
    comparison = Comparison("a / b", [2.0, 9.0, 4.0], [1.0, 3.0, 4.0])
    assert comparison.ratio == 4 / 3
    assert comparison.spread == (1.0, 3.0)
    assert Comparison("alone", [1.0]).ratio is None


def test_sides_alternate_and_warm_up_does_not_count() -> None:
    calls = []
    ours, rival = alternate(lambda: calls.append("a"), lambda: calls.append("b"), 2)
    assert calls == ["a", "b"] * 3
    assert len(ours) == len(rival) == 2


@pytest.mark.parametrize("name", ["epoch_lite0", "fit_banks", "memory", "overhead"])
def test_a_row_measures_something(name: str, tmp_path: Path) -> None:
    for comparison in ROWS[name](Setting(repeats=1, threads=1, quick=True), tmp_path):
        assert len(comparison.ours) == 1
        assert comparison.ours[0] == comparison.ours[0]  # no NaN
        assert comparison.to_dict()["ratio"] is None or comparison.to_dict()["ratio"] > 0


def test_a_row_that_fails_is_told_and_the_others_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def run_row(options: Any) -> dict[str, Any]:
        if options.row == "memory":
            return {"error": "out of it"}
        return {"comparisons": [Comparison("a / b", [1.0], [2.0], aim=0.9).to_dict()], "environment": {"threads": 2}}

    monkeypatch.setattr(bench, "run_row", run_row)
    assert bench.main(["--rows", "linear", "memory", "--output", str(tmp_path)]) == 1
    assert bench.main(["--rows", "overhead", "--output", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "bench.json").read_text())
    assert list(results) == ["linear", "memory", "overhead"]
    table = (tmp_path / "bench.md").read_text()
    assert table == to_markdown(results)
    assert "| linear | a / b | 1 s | 2 s | 0.500 | 0.500 to 0.500 | <= 0.9 |" in table
    assert "failed: out of it" in table
    assert "failed: out of it" in capsys.readouterr().out


@pytest.fixture
def grid(mvtec_root: Path, tmp_path: Path) -> Path:
    """A configuration of `fuad` with a data set and two models, one class twice."""
    bank = {"backbone": "resnet18", "layers": ["layer1"], "pre_trained": False}
    padim = {"class_path": "anomalib.models.Padim", "init_args": bank | {"n_features": 4}}
    crosspatch = {"class_path": "anomalib_cdd.CrossPatch", "init_args": bank}
    content = {
        "data_root": "nowhere",
        "data": {
            "parts": {
                "class_path": "anomalib_cdd.data.MVTecNoisy",
                "init_args": {"root": "${data_root}", "category": "bottle", "num_workers": 0, "eval_batch_size": 4},
            }
        },
        "models": {"padim": padim, "again": padim, "crosspatch": crosspatch},
    }
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "grid.yaml"


def test_what_a_rule_leaves_is_counted() -> None:
    scores = np.array([1, 2, 3, 4, 9, 8], dtype=np.float32)
    is_noise = np.array([False, False, False, True, True, False])
    row = cleaning.outcome(scores, np.arange(6), is_noise, Cleaning(share=0.34))
    assert row == {"rule": "share 0.34", "kept_normals": 0.75, "noise_left": 1}


def test_rules_are_rows_and_none_is_measured_twice(
    grid: Path, mvtec_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--config", str(grid), "--data_root", str(mvtec_root), "--output", str(tmp_path), "--image_size", "64"]
    assert cleaning.main([*arguments, "--noise_ratios", "0.25", "--seeds", "0"]) == 0
    rows = pd.read_csv(tmp_path / "results.csv")
    assert rows["rule"].tolist() == [rule.rule for rule in cleaning.RULES]
    assert set(rows["images"]) == {15}
    assert set(rows["noise"]) == {3}
    # a tenth of 15 images is one, a fifth three
    by_rule = rows.set_index("rule")
    gone = 3 - by_rule["noise_left"] + (12 * (1 - by_rule["kept_normals"])).round()
    assert gone[["share 0.05", "share 0.1", "share 0.2"]].tolist() == [0, 1, 3]
    monkeypatch.setattr(cleaning, "measure", lambda *_: pytest.fail("measured again"))
    cleaning.main([*arguments, "--noise_ratios", "0.25", "--seeds", "0"])
    assert len(pd.read_csv(tmp_path / "results.csv")) == len(rows)


def test_each_class_of_a_grid_is_timed_once(grid: Path, mvtec_root: Path, tmp_path: Path) -> None:
    arguments = ["--config", str(grid), "--data_root", str(mvtec_root), "--output", str(tmp_path / "ms.csv")]
    assert milliseconds.main([*arguments, "--data", "parts", "--rounds", "1"]) == 0
    rows = pd.read_csv(tmp_path / "ms.csv")
    assert rows["class_path"].tolist() == ["anomalib.models.Padim", "anomalib_cdd.CrossPatch"]
    assert rows["images"].tolist() == [4, 4]
    assert (rows["milliseconds"] > 0).all()


def test_anomalies_on_drawn_parts_keep_to_the_part(tmp_path: Path) -> None:
    assert synthesis.main(["--output", str(tmp_path / "parts.png"), "--size", "96"]) == 0
    image = Image.open(tmp_path / "parts.png")
    assert image.size == (8 * 96, 3 * 96)
    shown = [image.crop((x, y, x + 96, y + 96)) for y in range(0, 288, 96) for x in range(96, 768, 192)]
    # white on a grey part that has a black ground around it
    assert [cell.getpixel((2, 2)) for cell in shown] == [(0, 0, 0)] * 12
    assert sum((255, 255, 255) in set(cell.getdata()) for cell in shown) >= 10
    assert [cell.getpixel((48, 48)) != (0, 0, 0) for cell in shown] == [True] * 12


def test_twelve_synthetic_anomalies_are_drawn(mvtec_root: Path, tmp_path: Path) -> None:
    picture = tmp_path / "new" / "anomalies.png"
    folder = mvtec_root / "bottle" / "train" / "good"
    assert synthesis.main([str(folder), "--output", str(picture), "--size", "48", "--foreground", "none"]) == 0
    image = Image.open(picture)
    assert image.size == (8 * 48, 3 * 48)
    # a mask is white, on a foreground that is everything
    assert {(255, 255, 255), (89, 89, 89)} == set(image.crop((48, 0, 96, 48)).getdata())
    with pytest.raises(SystemExit):
        synthesis.main([str(mvtec_root / "bottle" / "test" / "good"), "--output", str(picture)])
