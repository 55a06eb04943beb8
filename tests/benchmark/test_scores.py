# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""What a threshold without labels is worth, by hand."""

from pathlib import Path

import numpy as np
import pytest

from anomalib_cdd.benchmark.scores import load, threshold_measures
from anomalib_cdd.evaluation.measures import f1
from anomalib_cdd.thresholds.estimators import label_free_pixel_threshold, label_free_threshold
from anomalib_cdd.thresholds.post_processing import FALSE_ALARM_RATE, PIXEL_FALSE_ALARM_RATE


def test_measures_of_thresholds_by_hand() -> None:
    rng = np.random.default_rng(0)
    train = rng.lognormal(-2, 0.2, 100)
    normal, anomalous, injected = rng.lognormal(-2, 0.2, 50), rng.lognormal(-1.5, 0.3, 30), rng.lognormal(-1.5, 0.3, 10)
    edges = np.linspace(0, 1, 401)
    pixels = {"normal": rng.lognormal(-2, 0.2, 5000), "anomalous": rng.lognormal(-1.5, 0.2, 500)}
    measures = threshold_measures(
        {
            "train_scores": train,
            "test_scores": np.concatenate([normal, anomalous, injected]),
            "test_labels": np.array([0] * 50 + [1] * 40),
            "test_injected": np.array([False] * 80 + [True] * 10),
            "calibration_pixels": pixels["normal"].reshape(100, 50),
            "pixel_edges": edges,
            "pixels_normal": np.histogram(pixels["normal"], edges)[0],
            "pixels_anomalous": np.histogram(pixels["anomalous"], edges)[0],
        }
    )
    best = max(f1(anomalous, normal, cut) for cut in [0, *normal, *anomalous])
    cut = label_free_threshold(train, FALSE_ALARM_RATE)
    assert measures["F1_best"] == pytest.approx(best)
    assert measures["F1_ratio"] == pytest.approx(f1(anomalous, normal, cut) / best)
    assert measures["F1_ratio_anomalib"] == pytest.approx(f1(anomalous, normal, train.max()) / best)
    assert measures["false_alarms"] == np.mean(normal > cut)
    assert measures["false_alarm_rate"] == FALSE_ALARM_RATE
    cut = label_free_pixel_threshold(pixels["normal"].reshape(100, 50), train, PIXEL_FALSE_ALARM_RATE)
    best = max(f1(pixels["anomalous"], pixels["normal"], edge) for edge in edges)
    # a histogram knows thresholds to a bin
    assert measures["pixel_F1_ratio"] == pytest.approx(f1(pixels["anomalous"], pixels["normal"], cut) / best, abs=0.05)
    assert threshold_measures({"test_scores": normal}) == {}


def test_every_published_cell_can_still_be_read() -> None:
    paths = list((Path(__file__).parents[2] / "experiments").rglob("cells/*.npz"))
    assert paths
    assert all(load(path) for path in paths)
