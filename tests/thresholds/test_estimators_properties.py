# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""A threshold without labels for any scores that are finite."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from anomalib_cdd.thresholds.estimators import label_free_pixel_threshold, label_free_threshold, within_fence

SCORES = st.lists(st.floats(-1e6, 1e6, allow_subnormal=False, width=32), min_size=1, max_size=60)
RATES = st.floats(0.001, 0.5)


@given(scores=SCORES, rate=RATES)
def test_it_lies_within_the_reach_of_the_scores(scores: list[float], rate: float) -> None:
    threshold = label_free_threshold(scores, rate)
    assert min(scores) <= threshold <= max(scores)


@given(pixels=arrays(np.float64, (9, 5), elements=st.floats(-1e6, 1e6)), rate=RATES)
def test_so_do_pixels(pixels: np.ndarray, rate: float) -> None:
    threshold = label_free_pixel_threshold(pixels, pixels.max(axis=1), rate)
    assert pixels.min() <= threshold <= pixels.max()


@given(scores=SCORES)
def test_at_most_a_quarter_stands_out(scores: list[float]) -> None:
    assert within_fence(scores).mean() >= 0.75


@given(scores=SCORES, rates=st.tuples(RATES, RATES))
def test_fewer_false_alarms_take_a_higher_threshold(scores: list[float], rates: tuple[float, float]) -> None:
    few, many = (label_free_threshold(scores, rate) for rate in sorted(rates))
    assert few >= many


@given(scores=SCORES, rate=RATES, power=st.integers(-8, 8))
def test_it_scales_with_the_scores(scores: list[float], rate: float, power: int) -> None:
    # by powers of two, which round nothing
    factor = 2.0**power
    assert label_free_threshold(factor * np.array(scores), rate) == factor * label_free_threshold(scores, rate)


@given(scores=SCORES, rate=RATES, seed=st.integers(0, 1000))
def test_the_order_of_the_scores_is_nothing_to_it(scores: list[float], rate: float, seed: int) -> None:
    shuffled = np.random.default_rng(seed).permutation(scores)
    assert label_free_threshold(shuffled, rate) == label_free_threshold(scores, rate)
