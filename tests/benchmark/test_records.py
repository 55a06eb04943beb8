# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""A folder with something else in it: what is no cell's record is named, and nothing is written over it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from jsonargparse import Namespace

from anomalib_cdd.benchmark import grid, scores
from anomalib_cdd.cli.entries import ConfigError

GRID = {
    "seeds": [0, 1],
    "noise_ratios": [0.5],
    "data": {"tiles": {"class_path": "anomalib_cdd.data.MVTecNoisy"}},
    "models": {"padim": {"class_path": "anomalib.models.Padim"}},
}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Namespace:
    """A grid of two cells that have run; training is a stand-in."""

    def train(cell: grid.Cell, config: Namespace) -> tuple[dict[str, float | None], float, dict[str, np.ndarray]]:
        return {"image_AUROC": 0.5, "noise_AP": None}, 1.0, {"test_scores": np.zeros(2)}

    monkeypatch.setattr(grid, "_train_and_measure", train)
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(GRID | {"output": str(tmp_path / "out")}))
    config = grid.get_parser().parse_args(["--config", str(path)])
    assert grid.run(config) == 0
    return config


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def change(**fields: Any) -> Callable[[bytes], bytes]:
    return lambda old: json.dumps(json.loads(old) | fields).encode()


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda old: old[: len(old) // 2], "Expecting|Unterminated"),
        (lambda old: b"\xff\xfe\x00", "decode"),
        (lambda old: b"", "Expecting value"),
        (lambda old: b"[1, 2]", "no mapping"),
        (lambda old: b"{}", "status is None"),
        (change(status="running"), "status is 'running'"),
        (change(measures=None), "'measures' is missing or of the wrong kind"),
        (change(measures={"image_AUROC": "good"}), "a measure is not a number"),
        (change(status="failed"), "'error' is missing"),
        (change(wall_seconds="long"), "'wall_seconds'"),
        (change(environment=None), "'environment'"),
        (change(key="0"), "key is '0'"),
    ],
)
def test_what_is_no_record_is_named_and_nothing_is_changed(
    config: Namespace, damage: Callable[[bytes], bytes], named: str
) -> None:
    path = next((config.output / "cells").glob("*.json"))
    path.write_bytes(damage(path.read_bytes()))
    before = contents(config.output)
    with pytest.raises(ConfigError, match=named) as raised:
        grid.run(config)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert contents(config.output) == before


@pytest.mark.parametrize("name", ["", "cells"])
def test_a_file_in_the_place_of_a_folder_is_named(config: Namespace, name: str, tmp_path: Path) -> None:
    config.output = tmp_path / "elsewhere"
    place = config.output / name
    place.parent.mkdir(exist_ok=True)
    place.write_text("mine")
    with pytest.raises(ConfigError, match="is a file where the grid's results need a folder"):
        grid.run(config)
    assert place.read_text() == "mine"


def test_other_files_in_the_folder_are_left_alone(config: Namespace) -> None:
    foreign = [config.output / "notes.txt", config.output / "cells" / "mine.json", config.output / "cells" / "x.npz"]
    for path in foreign:
        path.write_bytes(b"not a cell")
    assert grid.run(config) == 0
    assert all(path.read_bytes() == b"not a cell" for path in foreign)
    assert len(pd.read_csv(config.output / "results.csv")) == 2


def test_damaged_scores_cost_no_result_and_are_named_in_the_report(config: Namespace) -> None:
    for path in (config.output / "cells").glob("*.npz"):
        path.write_bytes(b"not an archive")
    assert grid.run(config) == 0
    assert pd.read_csv(config.output / "results.csv")["image_AUROC"].tolist() == [0.5, 0.5]
    for report in ("report.md", "report.html"):
        text = (config.output / report).read_text(encoding="utf-8")
        assert "0.500 ± 0.000" in text
        assert "npz is damaged" in text


def test_thresholds_are_measured_again_under_another_default(
    config: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "train_scores": rng.lognormal(-2, 0.2, 100),
        "test_scores": np.concatenate([rng.lognormal(-2, 0.2, 50), rng.lognormal(-1.5, 0.3, 50)]),
        "test_labels": np.arange(100) >= 50,
        "test_injected": np.zeros(100, bool),
    }
    measured = []
    for rate in (0.1, 0.3):
        monkeypatch.setattr(scores, "FALSE_ALARM_RATE", rate)
        monkeypatch.setattr(grid, "FALSE_ALARM_RATE", rate)
        for path in (config.output / "cells").glob("*.json"):
            path.write_bytes(change(measures=scores.threshold_measures(arrays))(path.read_bytes()))
            scores.save(path.with_suffix(".npz"), arrays)
        measured.append(scores.threshold_measures(arrays)["F1"])
    monkeypatch.setattr(scores, "FALSE_ALARM_RATE", 0.1)
    monkeypatch.setattr(grid, "FALSE_ALARM_RATE", 0.1)
    assert grid.run(config) == 0
    results = pd.read_csv(config.output / "results.csv")
    assert measured[0] != measured[1]
    assert results["F1"].tolist() == pytest.approx([measured[0]] * 2)
    assert set(results["false_alarm_rate"]) == {0.1}


def test_the_last_line_names_the_page(config: Namespace, capsys: pytest.CaptureFixture) -> None:
    grid.run(config)
    page = Path(capsys.readouterr().out.splitlines()[-1].rpartition(": ")[2])
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
