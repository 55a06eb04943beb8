# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""What a threshold without labels is worth, by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.models import Padim
from anomalib.pre_processing import PreProcessor
from torchvision.transforms.v2 import Compose, Resize

from anomalib_cdd import MVTecNoisy
from anomalib_cdd.benchmark.cell import QUIET, Engine
from anomalib_cdd.benchmark.scores import cell_scores, load, save, threshold_measures
from anomalib_cdd.evaluation import evaluate
from anomalib_cdd.evaluation.measures import f1, f1_curve
from anomalib_cdd.thresholds import LabelFreePostProcessor


def test_measures_of_thresholds_by_hand(mvtec_root: Path, tmp_path: Path) -> None:
    data = MVTecNoisy(root=mvtec_root, noise_ratio=0.25, val_split_mode="none", num_workers=0)
    resize = PreProcessor(Compose([Resize((64, 64), antialias=True)]))
    common = {"backbone": "resnet18", "layers": ["layer1"], "n_features": 8, "pre_trained": False}
    model = Padim(**common, pre_processor=resize, post_processor=False, evaluator=False, visualizer=False)
    Engine(**QUIET, logger=False, accelerator="cpu", default_root_dir=tmp_path).fit(model, datamodule=data)
    evaluation = evaluate(model, data, progress=False, keep_maps=True)
    evaluation.clean.maps[0, 0, 0] = 1e4 * evaluation.clean.maps.max()  # one pixel far above all others
    measures = threshold_measures(evaluation, model, data, torch.device("cpu"))

    post = LabelFreePostProcessor()
    post.calibrate(model, data.train_data, progress=False)
    cut, test = float(post.image_threshold), evaluation.clean
    good, bad = test.scores[test.labels == 0], test.scores[test.labels == 1]
    best = max(f1(bad, good, threshold) for threshold in [-np.inf, *test.scores])
    assert measures["F1_best"] == pytest.approx(best)
    assert measures["F1_ratio"] == pytest.approx(f1(bad, good, cut) / best)
    assert measures["false_alarms"] == np.mean(good > cut)
    assert measures["false_alarm_rate"] == post.false_alarm_rate
    cut = float(post.pixel_threshold)
    assert measures["pixel_false_alarms"] == np.mean(test.maps[test.labels == 0] > cut)
    assert measures["pixel_F1"] == pytest.approx(f1(test.maps[test.masks], test.maps[~test.masks], cut))
    best = f1_curve(test.maps[test.masks], test.maps[~test.masks])[1].max()
    assert measures["pixel_F1_best"] == pytest.approx(best)

    kept = cell_scores(evaluation, model, data, examples=True)
    save(tmp_path / "cell.npz", kept)
    read = load(tmp_path / "cell.npz")
    assert read.keys() == kept.keys()
    assert len(read["train_scores"]) == 15
    assert not read["train_out_of_sample"].any()
    assert read["test_injected"].sum() == 3
    assert load(tmp_path / "none.npz") is None
