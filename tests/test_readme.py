# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""What the README tells people to type is what works."""

import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

import anomalib_cdd
from anomalib_cdd.cli.entries import resolve_model

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def run(code: str, names: dict[str, Any], **instead: str) -> None:
    """Run the README's own code with something small in place of what it names."""
    for told, here in instead.items():
        assert told in code
        code = code.replace(told, here)
    exec(code, names)  # noqa: S102


def test_own_folder_and_again_without_what_is_bad(
    folder_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder_root / "good", tmp_path / "my" / "folder")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    small = 'Cdd(backbone="test_resnet", pre_trained=False, student_width=8, visualizer=False)'
    quiet = 'max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False'
    root = {'root="my/folder"': 'root="my/folder", num_workers=0'}
    run(PYTHON[0], names, **{"Cdd()": small, "max_epochs=200": quiet}, **root)
    results = tmp_path / "results" / "Cdd" / "parts"
    assert next(results.rglob("model.ckpt"))
    scores = pd.read_csv(next(results.rglob("audit/training_scores.csv")))
    assert len(scores) == 12
    assert next(results.rglob("audit/index.html"))
    [batch] = names["engine"].predict(names["model"], data_path=folder_root / "defect" / "000.png")
    assert batch.pred_label.dtype == torch.bool
    scores.head(2)[["image_path"]].to_csv("exclude.csv", index=False)
    run(PYTHON[1], names, **root)
    names["data"].setup()
    assert len(names["data"].train_data) == 10


def test_a_threshold_for_another_model_in_python_and_yaml() -> None:
    names: dict[str, Any] = {}
    small = {"Patchcore(": 'Patchcore(backbone="resnet18", layers=["layer1"], pre_trained=False, '}
    run(PYTHON[2], names, **small)
    assert names["model"].post_processor.false_alarm_rate == 0.05
    [block] = re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
    model, _ = resolve_model("README", yaml.safe_load(block)["model"])
    assert model["init_args"]["post_processor"]["init_args"]["false_alarm_rate"] == 0.05


def test_files_and_names_that_the_readmes_mention_exist() -> None:
    model_readme = Path(anomalib_cdd.models.cdd.__file__).parent / "README.md"
    for name in re.findall(r"`([\w/]+\.(?:yaml|py|ipynb))`", README):
        assert (
            (ROOT / name).exists() or (ROOT / "configs" / name).exists() or (ROOT / "anomalib_cdd" / name).exists()
        ), name
    for name in re.findall(r"`(\w+\.py)`", model_readme.read_text(encoding="utf-8")):
        assert (model_readme.parent / name).exists(), name
    for link in re.findall(r"\]\(((?!http)[^)#]+)", README):
        assert (ROOT / link).exists(), link
