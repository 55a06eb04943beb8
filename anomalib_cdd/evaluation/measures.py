# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""AUROC, AUPRO and PRO on arrays, whatever the range of the scores.

torchmetrics' AUROC puts a sigmoid over anything outside [0, 1], which makes ties of large scores; here scores are
ranked as they are. AUPRO and PRO are different numbers: one curve over a whole set, and one curve per image.
"""

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from anomalib.metrics import AUPRO
from numpy.typing import NDArray

FPR_LIMIT = 0.3
NAN = float("nan")


def auroc(positive: NDArray[np.floating], negative: NDArray[np.floating]) -> float:
    """Area under the ROC curve: the share of (positive, negative) pairs in the right order, a tie counting half.

    Exact at any range of scores, and fast enough for every pixel of a test set: it sorts numbers, not indices.

    Args:
        positive: Scores of the anomalous, any shape.
        negative: Scores of the normal, any shape.

    Returns:
        A value in [0, 1]; NaN if either is empty.
    """
    if positive.size == 0 or negative.size == 0:
        return NAN
    positive, negative = np.sort(positive, axis=None), np.sort(negative, axis=None)
    below = np.searchsorted(negative, positive, side="left").sum(dtype=np.float64)
    not_above = np.searchsorted(negative, positive, side="right").sum(dtype=np.float64)
    return float((below + not_above) / 2 / positive.size / negative.size)


def aupro(parts: Iterable[tuple[NDArray[np.float32], NDArray[np.bool_]]]) -> float:
    """Anomalib's AUPRO: one curve over all images of all parts, up to a false positive rate of 0.3.

    Args:
        parts: Pairs of maps ``(N, H, W)`` and masks ``(N, H, W)``.

    Returns:
        A value in [0, 1]; NaN without anomalous or without normal pixels.
    """
    # what is measured is whole on every device
    metric = AUPRO(fields=["anomaly_map", "gt_mask"], fpr_limit=FPR_LIMIT)
    metric.sync_on_compute = False
    n_anomalous = n_pixels = 0
    for maps, masks in parts:
        n_anomalous, n_pixels = n_anomalous + int(masks.sum()), n_pixels + masks.size
        if len(maps):
            # all that the metric reads of a batch
            fields: Any = SimpleNamespace(anomaly_map=torch.from_numpy(maps), gt_mask=torch.from_numpy(masks))
            metric.update(fields)
    return NAN if n_anomalous in {0, n_pixels} else float(metric.compute())


def pro_per_image(maps: NDArray[np.float32], masks: NDArray[np.bool_]) -> list[float]:
    """RD4AD's PRO before its mean: the area of each anomalous image's own curve, up to a false positive rate of 0.3.

    RD4AD samples a curve at 200 thresholds; here every value of the map is one.

    Args:
        maps: Anomaly maps ``(N, H, W)``.
        masks: True masks ``(N, H, W)``.

    Returns:
        One value in [0, 1] per image that has both anomalous and normal pixels.
    """
    values = (aupro([(maps[i : i + 1], masks[i : i + 1])]) for i in np.flatnonzero(masks.any(axis=(1, 2))))
    return [value for value in values if not np.isnan(value)]


def f1_curve(
    positive: NDArray[np.floating], negative: NDArray[np.floating]
) -> tuple[NDArray[np.floating], NDArray[np.float64]]:
    """F1 of calling anomalous what exceeds a threshold, at every threshold that matters.

    Args:
        positive: Scores of the anomalous, any shape.
        negative: Scores of the normal, any shape.

    Returns:
        Ascending thresholds, the first below every score, and the F1 at each, in [0, 1].
    """
    positive, negative = np.sort(positive, axis=None), np.sort(negative, axis=None)
    thresholds = np.concatenate([[-np.inf], np.unique(np.concatenate([positive, negative]))])
    found = positive.size - np.searchsorted(positive, thresholds, side="right")
    false = negative.size - np.searchsorted(negative, thresholds, side="right")
    return thresholds, 2 * found / np.maximum(found + false + positive.size, 1)


def f1(positive: NDArray[np.floating], negative: NDArray[np.floating], threshold: float) -> float:
    """F1 of calling anomalous what exceeds the threshold, in [0, 1]; NaN without anomalous scores."""
    if positive.size == 0:
        return NAN
    found, false = int((positive > threshold).sum()), int((negative > threshold).sum())
    return 2 * found / (found + false + positive.size)
