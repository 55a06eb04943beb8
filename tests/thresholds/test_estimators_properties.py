# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""A threshold without labels for any scores that are finite and at least 0."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from anomalib_cdd.thresholds.estimators import METHODS, label_free_threshold

SCORES = st.lists(st.floats(0, 1e6, allow_subnormal=False), min_size=1, max_size=60)
RATES = st.floats(0.001, 0.5)


@given(scores=SCORES, rate=RATES, method=st.sampled_from(METHODS))
def test_it_is_a_number_at_or_above_the_median(scores: list[float], rate: float, method: str) -> None:
    threshold = label_free_threshold(np.array(scores), rate, method)
    assert np.isfinite(threshold)
    # in logs, where the median of an even number lies between two
    median = np.exp(np.median(np.log(np.maximum(scores, 1e-12))))
    assert threshold >= median * (1 - 1e-9)


@given(scores=SCORES, rates=st.tuples(RATES, RATES), method=st.sampled_from(METHODS))
def test_fewer_false_alarms_take_a_higher_threshold(scores: list[float], rates: tuple, method: str) -> None:
    few, many = (label_free_threshold(np.array(scores), rate, method) for rate in sorted(rates))
    assert few >= many * (1 - 1e-9)


@given(scores=SCORES, rate=RATES, seed=st.integers(0, 1000))
def test_the_order_of_the_scores_is_nothing_to_it(scores: list[float], rate: float, seed: int) -> None:
    shuffled = np.random.default_rng(seed).permutation(scores)
    for method in ("mad", "tail"):
        first, second = (label_free_threshold(np.array(values), rate, method) for values in (scores, shuffled))
        np.testing.assert_allclose(first, second, rtol=1e-6)
