# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""The tool that sets true rates beside the stated one, on a cell worked out by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from anomalib_cdd.benchmark.scores import save
from benchmarks.thresholds import main, measured


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    record = {"data": "plates", "model": "cdd", "noise_ratio": 0.05, "seed": 0}
    (tmp_path / "0.json").write_text(json.dumps(record), encoding="utf-8")
    arrays = {
        "train_scores": np.array([*range(1, 20), 100], dtype=float),
        "train_is_noise": np.arange(20) == 19,
        # the threshold is 19: the last injected image does not count
        "test_scores": np.array([5, 18, 19, 20, 30, 18, 40, 50], dtype=float),
        "test_labels": np.array([0, 0, 0, 0, 1, 1, 1, 1]),
        "test_injected": np.arange(8) == 7,
        "calibration_pixels": np.tile(np.arange(10.0), (20, 1)),
        "pixel_edges": np.arange(0, 12.0),
        "pixels_normal": np.array([90, 0, 0, 0, 0, 0, 0, 0, 0, 6, 4]),
        "pixels_anomalous": np.array([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5]),
    }
    save(tmp_path / "0.npz", arrays)
    return tmp_path


def test_rates_by_hand(cells: Path) -> None:
    row = measured(cells).iloc[0]
    assert row["false_alarms"] == row["labelled"] == 1 / 4
    assert row["found"] == pytest.approx(2 / 3)
    # the pixels' threshold is 9
    assert row["pixel_false_alarms"] == pytest.approx(10 / 100)


def test_it_prints_a_table(cells: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["thresholds", str(cells)])
    main()
    printed = capsys.readouterr().out
    assert "false_alarms from 0.03 to 0.08: 0 of 1 cells" in printed
    assert "plates" in printed
