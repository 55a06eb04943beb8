# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""The benchmark's arithmetic, and that rows run; no time is asserted."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks import __main__ as bench
from benchmarks import synthesis
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
