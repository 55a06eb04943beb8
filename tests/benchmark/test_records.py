# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""A folder with something else in it: what is no whole record of a cell is named and its cell runs again."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from jsonargparse import Namespace

from anomalib_cdd.benchmark import run as grid
from anomalib_cdd.benchmark.plan import Cell
from anomalib_cdd.cli import fuad
from anomalib_cdd.cli.entries import ConfigError

GRID = {
    "seeds": [0, 1],
    "noise_ratios": [0.5],
    "data": {"tiles": {"class_path": "anomalib_cdd.data.MVTecNoisy"}},
    "models": {"padim": {"class_path": "anomalib.models.Padim"}},
}


@pytest.fixture
def trained() -> list[str]:
    return []


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: list[str]) -> Namespace:
    """A grid of two cells that have run; training is a stand-in."""

    def train(cell: Cell, *args: Any) -> Any:
        trained.append(str(cell))
        empty = {"course": [], "fit_seconds": 1.0, "wall_seconds": 1.0, "environment": {}}
        record = {"status": "done", "measures": {"image_AUROC": 0.5, "noise_AP": None}, "config": cell.config}
        return record | empty | {"key": cell.key}, {"test_scores": np.zeros(2)}

    monkeypatch.setattr(grid, "run_cell", train)
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(GRID | {"output": str(tmp_path / "out")}))
    config = fuad.get_parser().parse_args(["--config", str(path)])
    assert fuad.run(config) == 0
    trained.clear()
    return config


def without(*names: str) -> Callable[[bytes], bytes]:
    return lambda old: json.dumps({k: v for k, v in json.loads(old).items() if k not in names}).encode()


@pytest.mark.parametrize(
    "damage",
    [
        lambda old: old[: len(old) // 2],
        lambda old: b"\xff\xfe\x00",
        lambda old: b"",
        lambda old: b"[1, 2]",
        without("measures"),
        without("status", "config"),
        lambda old: old.replace(b'"key": "', b'"key": "0'),
    ],
)
def test_a_record_that_is_not_whole_is_named_and_its_cell_runs_again(
    config: Namespace, trained: list[str], damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    path = next((config.output / "cells").glob("*.json"))
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    with caplog.at_level(logging.WARNING, "anomalib_cdd"):
        assert fuad.run(config) == 0
    assert len(trained) == 1
    assert f"{path} is not the whole record of its cell" in caplog.text
    assert path.read_bytes() == whole


@pytest.mark.parametrize("name", ["", "cells"])
def test_a_file_in_the_place_of_a_folder_is_named(config: Namespace, name: str, tmp_path: Path) -> None:
    config.output = tmp_path / "elsewhere"
    place = config.output / name
    place.parent.mkdir(exist_ok=True)
    place.write_text("mine")
    with pytest.raises(ConfigError, match="cannot be a folder of results"):
        fuad.run(config)
    assert place.read_text() == "mine"


def test_other_files_in_the_folder_are_left_alone(config: Namespace) -> None:
    foreign = [config.output / "notes.txt", config.output / "cells" / "mine.json", config.output / "cells" / "x.npz"]
    for path in foreign:
        path.write_bytes(b"not a cell")
    assert fuad.run(config) == 0
    assert all(path.read_bytes() == b"not a cell" for path in foreign)
    assert len(pd.read_csv(config.output / "results.csv")) == 2


def test_damaged_scores_cost_no_result_and_are_named_in_the_report(config: Namespace) -> None:
    for path in (config.output / "cells").glob("*.npz"):
        path.write_bytes(b"not an archive")
    assert fuad.run(config) == 0
    assert pd.read_csv(config.output / "results.csv")["image_AUROC"].tolist() == [0.5, 0.5]
    for report in ("report.md", "report.html"):
        text = (config.output / report).read_text(encoding="utf-8")
        assert "0.500 ± 0.000" in text
        assert "npz is damaged" in text


def test_the_last_line_names_the_page(config: Namespace, capsys: pytest.CaptureFixture) -> None:
    fuad.run(config)
    page = Path(capsys.readouterr().out.splitlines()[-1].rpartition(": ")[2])
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
