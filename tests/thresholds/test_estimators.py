# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from scipy.stats import norm

from anomalib_cdd.thresholds.estimators import METHODS, label_free_threshold


def parts(good: int, bad: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.lognormal(-2, 0.2, good), generator.lognormal(-1.2, 0.2, bad)


def test_mad_by_hand() -> None:
    # logs 0, 1, 2, 3, 10: median 2, deviations 2, 1, 0, 1, 8, their median 1
    threshold = label_free_threshold(np.exp([0.0, 1.0, 2.0, 3.0, 10.0]), 0.1, "mad")
    assert np.log(threshold) == pytest.approx(2 + norm.isf(0.1) * 1.4826, abs=1e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rate", [0.02, 0.1, 0.3])
def test_the_stated_share_of_good_parts_exceeds_it(method: str, rate: float) -> None:
    good, _ = parts(4000, 0)
    assert (good > label_free_threshold(good, rate, method)).mean() == pytest.approx(rate, abs=0.02)


@pytest.mark.parametrize("method", METHODS)
def test_bad_parts_in_the_training_set_hardly_move_it(method: str) -> None:
    good, bad = parts(200, 20)
    clean = label_free_threshold(good, 0.1, method)
    contaminated = label_free_threshold(np.concatenate([good, bad]), 0.1, method)
    assert contaminated == pytest.approx(clean, rel=0.15)
    # a plain quantile of what is there, or the maximum, goes where the bad parts are
    assert np.concatenate([good, bad]).max() > 1.5 * contaminated
    assert (bad > contaminated).mean() > 0.9


@pytest.mark.parametrize("method", METHODS)
def test_it_scales_with_the_scores(method: str) -> None:
    scores = np.concatenate(parts(100, 10))
    assert label_free_threshold(40 * scores, 0.05, method) == pytest.approx(
        40 * label_free_threshold(scores, 0.05, method), rel=1e-3
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scores", [[0.5], [0.3, 0.3, 0.3], [0.0, 0.0, 1.0], list(range(12))])
def test_few_or_equal_scores_have_one_too(method: str, scores: list[float]) -> None:
    threshold = label_free_threshold(np.array(scores), 0.1, method)
    assert np.isfinite(threshold)
    assert threshold >= np.median(scores) * 0.999


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="1 of 2 are not"):
        label_free_threshold(np.array([1.0, np.nan]), 0.1)
    with pytest.raises(ValueError, match="0 of 0"):
        label_free_threshold(np.array([]), 0.1)
    with pytest.raises(ValueError, match=r"false alarm rate is 0\.7"):
        label_free_threshold(np.array([1.0]), 0.7)
