# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Thresholds from unlabelled scores with unknown anomalies among them.

Images beyond a fence after Tukey, two interquartile ranges above the upper quartile, are taken for anomalous. A
threshold is a quantile of what is left, so that it never lies outside what scores or pixels reach.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

# in interquartile ranges; Tukey's "outside" is 1.5, his "far out" 3 (docs/thresholds.md compares them)
FENCE = 2.0


def within_fence(scores: ArrayLike) -> NDArray[np.bool_]:
    """Return which images do not stand out by their scores.

    Args:
        scores: Scores of unlabelled images, shape ``(N,)``, higher is more anomalous; any range.

    Returns:
        Shape ``(N,)``; true for at least three quarters of them.

    Raises:
        ValueError: If there are no scores or one is not finite.
    """
    scores = _finite(scores).ravel()
    lower, upper = np.quantile(scores, [0.25, 0.75])
    return scores <= upper + FENCE * (upper - lower)


def label_free_threshold(scores: ArrayLike, false_alarm_rate: float) -> float:
    """Return the score that a share ``false_alarm_rate`` of good images exceeds.

    Args:
        scores: Scores of unlabelled images, shape ``(N,)``, higher is more anomalous; any range.
        false_alarm_rate: In (0, 0.5].

    Returns:
        The threshold: the quantile that a *new* image of the same kind exceeds with this probability, rank
        ``(1 - rate) (n + 1)`` of the n images within the fence, at most the highest of them.

    Raises:
        ValueError: If there are no scores, one is not finite, or the rate is out of range.
    """
    scores = _finite(scores).ravel()
    return _upper_quantile(scores[within_fence(scores)], false_alarm_rate)


def label_free_pixel_threshold(pixels: ArrayLike, scores: ArrayLike, false_alarm_rate: float) -> float:
    """Return the value that a share ``false_alarm_rate`` of the pixels of good images exceeds.

    Args:
        pixels: Values of the anomaly maps, shape ``(N, P)``; a sample of P pixels of each map will do.
        scores: Scores of the same images, shape ``(N,)``: pixels of images beyond the fence do not count.
        false_alarm_rate: In (0, 0.5].

    Returns:
        The threshold, at most the highest of the pixels that count.

    Raises:
        ValueError: If there is nothing, a value is not finite, or the rate is out of range.
    """
    return _upper_quantile(_finite(pixels)[within_fence(scores)].ravel(), false_alarm_rate)


def _upper_quantile(values: NDArray[np.float64], rate: float) -> float:
    if not 0 < rate <= 0.5:
        msg = f"The false alarm rate is {rate}; it has to be above 0 and at most 0.5."
        raise ValueError(msg)
    return float(np.quantile(values, 1 - rate, method="weibull"))  # ranks over n + 1


def _finite(values: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(values, dtype=np.float64)
    if not values.size or not np.isfinite(values).all():
        wrong = int(np.sum(~np.isfinite(values)))
        msg = f"A threshold needs scores that are finite numbers; {wrong} of {values.size} are not."
        raise ValueError(msg)
    return values
