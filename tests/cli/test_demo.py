# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""The demo shows true figures, and everything that it names is there."""

import contextlib
import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from sklearn.metrics import average_precision_score

from anomalib_cdd.cli import demo
from anomalib_cdd.cli.entries import ConfigError, resolve_data, resolve_model

CONFIG = Path(__file__).parents[2] / "configs" / "demo.yaml"
PADIM = {
    "class_path": "anomalib.models.Padim",
    "init_args": {
        "backbone": "resnet18",
        "layers": ["layer1"],
        "n_features": 4,
        "pre_trained": False,
        "pre_processor": {
            "class_path": "anomalib.pre_processing.PreProcessor",
            "init_args": {
                "transform": {"class_path": "torchvision.transforms.v2.Resize", "init_args": {"size": [32, 32]}}
            },
        },
    },
}


@pytest.fixture(scope="module")
def outcomes(mvtec_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("demo")
    config = {
        "output": str(folder / "out"),
        "data": {
            "class_path": "anomalib_cdd.data.MVTecNoisy",
            "init_args": {"root": str(mvtec_root), "clean": {"share": 0.1}},
        },
        "models": {"A": PADIM, "B": PADIM | {"trainer": {"max_epochs": 30}}},
    }
    (folder / "demo.yaml").write_text(yaml.safe_dump(config))
    parsed = demo.get_parser().parse_args(["--config", str(folder / "demo.yaml"), "--smoke"])
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        ran = demo.run(parsed)
    return {"folder": folder / "out", "outcomes": ran, "said": said.getvalue()}


def test_figures_are_those_of_the_ranking(outcomes: dict[str, Any]) -> None:
    written = json.loads((outcomes["folder"] / "measures.json").read_text())
    for name, outcome in outcomes["outcomes"].items():
        assert written[name] == pytest.approx(outcome.measures)
        assert outcome.measures["n_injected"] == 3
        assert outcome.ranking["is_noise"].sum() == 2  # cleaning found one
        ranking = pd.read_csv(outcomes["folder"] / name / "audit" / "training_scores.csv")
        for written_path, path in zip(ranking["image_path"], outcome.ranking["image_path"], strict=True):
            assert path.endswith(written_path)


def test_what_is_named_is_there(outcomes: dict[str, Any]) -> None:
    for outcome in outcomes["outcomes"].values():
        assert Path(outcome.checkpoint).is_file()
        assert Path(outcome.checkpoint).is_absolute()
        assert outcome.audit.read_text(encoding="utf-8").startswith("<!doctype html>")
        # 6 normal images, and the anomalous ones that were not injected
        assert len(list(outcome.heat_maps.rglob("*.png"))) >= 6


def test_the_page_of_the_folder_comes_before_any_training(outcomes: dict[str, Any]) -> None:
    said, folder = outcomes["said"], outcomes["folder"] / "folder"
    assert said.index(str(folder / "index.html")) < said.index("== A") < said.index("== B")
    scores = pd.read_csv(folder / "training_scores.csv")
    assert len(scores) == 15
    assert scores["is_noise"].sum() == 3
    assert f"noise AP {average_precision_score(scores['is_noise'], scores['score']):.3f}" in said
    for row in scores.head(10).itertuples():
        truth = "injected" if row.is_noise else "normal  "
        assert f"{row.rank:4d}  {row.score:.4f}  {truth}  {row.image_path}" in said


def test_models_are_trained_on_what_is_left_and_stand_in_one_table(outcomes: dict[str, Any]) -> None:
    said = outcomes["said"]
    suspicious = pd.read_csv(outcomes["folder"] / "folder" / "training_scores.csv")["image_path"][0]
    for outcome in outcomes["outcomes"].values():
        assert len(outcome.ranking) == 14
        assert not outcome.ranking["image_path"].str.endswith(suspicious).any()
        assert f"{outcome.measures['image_AUROC_overlap']:.3f}" in said
        for path in (outcome.heat_maps, outcome.audit, outcome.checkpoint):
            assert str(path) in said
    assert "12 normal and 3 injected training images" in said
    assert "trained without the 1 most suspicious" in said


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    config = demo.get_parser().parse_args(["--config", str(CONFIG)])
    monkeypatch.setattr(demo, "find_spec", lambda name: None if "elpv" in name else importlib.util.find_spec(name))
    with pytest.raises(ModuleNotFoundError, match=r"pip install elpv[-_]dataset"):
        demo.run(config)


def test_the_seed_is_that_of_a_model_that_has_one(
    outcomes: dict[str, Any], mvtec_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = []

    def stop(data: dict, model: dict, trainer: dict) -> None:
        seeds.append(model["init_args"]["seed"])
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "build", stop)
    monkeypatch.setattr(demo, "_show_folder", lambda *_: None)
    data = {"class_path": "anomalib_cdd.data.MVTecNoisy", "init_args": {"root": str(mvtec_root)}}
    entry = {"class_path": "anomalib_cdd.Cdd", "init_args": {"backbone": "resnet18", "pre_trained": False}}
    options = ["--data", json.dumps(data), "--models", json.dumps({"cdd": entry}), "--seed", "7"]
    with pytest.raises(KeyboardInterrupt):
        demo.run(demo.get_parser().parse_args(options))
    assert seeds == [7]
    clean = {"cdd": entry | {"clean": {"share": 0.1}}}
    with pytest.raises(ConfigError, match=r"models\.cdd: unknown key 'clean'"):
        demo.run(demo.get_parser().parse_args([*options, "--models", json.dumps(clean)]))


def test_the_demo_that_ships_parses() -> None:
    config = demo.get_parser().parse_args(["--config", str(CONFIG)])
    assert resolve_data("data", config.data)["init_args"]["max_normal"] == 100
    teachers = {resolve_model(name, entry)[0]["init_args"]["backbone"] for name, entry in config.models.items()}
    assert teachers == {"efficientnet_lite0_pypi"}


@pytest.mark.slow
def test_the_demo_that_ships_runs(tmp_path: Path) -> None:
    config = demo.get_parser().parse_args(["--config", str(CONFIG), "--output", str(tmp_path), "--smoke"])
    assert set(demo.run(config)) == {"CDD", "CrossPatch", "Patchcore"}
