# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Thresholds from unlabelled scores with unknown anomalies among them.

Each estimator describes the scores of the *good* parts without being led by the anomalous ones, and returns the
threshold that a stated share of good parts exceeds: the false alarm rate. Scores are taken on a log scale, on which
they are nearly symmetric: they are distances, at least 0.
"""

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.stats import CensoredData, genpareto, norm
from sklearn.mixture import GaussianMixture

Method = Literal["mad", "mixture", "tail"]
METHODS: tuple[Method, ...] = get_args(Method)
IMAGE_METHOD: Method = "mixture"
PIXEL_METHOD: Method = "mad"

# a normal distribution's median absolute deviation in standard deviations
MAD_OF_NORMAL = float(norm.ppf(0.75))
# the upper part of the scores that may be anomalous, and where the tail of the good parts begins
TRIMMED, TAIL_BEGINS = 0.15, 0.5
FEWEST_PEAKS = 10
SMALLEST = 1e-12


def label_free_threshold(scores: NDArray[np.floating], false_alarm_rate: float, method: Method = IMAGE_METHOD) -> float:
    """Return the score that a share ``false_alarm_rate`` of the good parts exceeds.

    Args:
        scores: Scores of unlabelled images, shape ``(N,)``, higher is more anomalous, at least 0.
        false_alarm_rate: In (0, 0.5].
        method: ``"mad"``, median and median absolute deviation; ``"mixture"``, the lower of two normal components;
            ``"tail"``, a generalised Pareto tail fitted to the upper half without its highest values.

    Returns:
        The threshold, at least the median of the scores.

    Raises:
        ValueError: If there are no scores, one is not finite, or the rate is out of range.
    """
    scores = np.asarray(scores, dtype=np.float64).ravel()
    if not scores.size or not np.isfinite(scores).all():
        wrong = int(np.sum(~np.isfinite(scores)))
        msg = f"A threshold needs scores that are finite numbers; {wrong} of {scores.size} are not."
        raise ValueError(msg)
    if not 0 < false_alarm_rate <= 0.5:
        msg = f"The false alarm rate is {false_alarm_rate}; it has to be above 0 and at most 0.5."
        raise ValueError(msg)
    logs = np.log(np.maximum(scores, SMALLEST))
    return float(np.exp(max(ESTIMATORS[method](logs, false_alarm_rate), np.median(logs))))


def _mad(values: NDArray[np.float64], rate: float) -> float:
    """Median plus the normal quantile of robust standard deviations."""
    median = np.median(values)
    return float(median + norm.isf(rate) * np.median(np.abs(values - median)) / MAD_OF_NORMAL)


def _mixture(values: NDArray[np.float64], rate: float) -> float:
    """Quantile of the lower of two normal components, or of one where two do not explain more (BIC)."""
    column = values[:, None]
    fits = [GaussianMixture(count, random_state=0, n_init=3).fit(column) for count in (1, 2) if len(values) > 2 * count]
    if not fits:
        return _mad(values, rate)
    best = min(fits, key=lambda fit: fit.bic(column))
    # the good parts are the many
    good = int(best.weights_.argmax())
    return float(best.means_[good, 0] + norm.isf(rate) * np.sqrt(best.covariances_[good, 0, 0]))


def _tail(values: NDArray[np.float64], rate: float) -> float:
    """Peaks over a threshold: a generalised Pareto tail, in which the highest values are censored (Pickands 1975)."""
    begin, end = np.quantile(values, [TAIL_BEGINS, 1 - TRIMMED])
    peaks = values[(values > begin) & (values <= end)] - begin
    if len(peaks) < FEWEST_PEAKS:
        return _mad(values, rate)
    # of the highest it is only known that they are higher: some are not of good parts
    hidden = np.full(int((values > end).sum()), end - begin)
    shape, _, scale = genpareto.fit(CensoredData(uncensored=peaks, right=hidden), floc=0)
    return float(begin + genpareto.isf(min(1.0, rate / (1 - TAIL_BEGINS)), shape, scale=scale))


ESTIMATORS: dict[str, Callable[[NDArray[np.float64], float], float]] = {
    "mad": _mad,
    "mixture": _mixture,
    "tail": _tail,
}
