# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""The mathematics of recurrence, of rules and of near-duplicates, against values worked out by hand."""

import time

import numpy as np
import pytest
import torch

from anomalib_cdd.cleaning.recurrence import image_scores, suspicion
from anomalib_cdd.cleaning.rules import deviations, share
from anomalib_cdd.teachers.duplicates import centre, near_duplicates


def test_suspicion_is_the_mean_of_the_lowest_tenth() -> None:
    # of 20 images the two nearest: (1 + 2) / 2
    nearest = torch.arange(20, 0, -1).float()[None]
    assert suspicion(nearest).tolist() == [1.5]
    # of one to fourteen images the nearest
    assert suspicion(torch.tensor([[5.0, 3.0, 4.0]])).tolist() == [3.0]


def test_only_images_that_may_vouch_are_asked() -> None:
    nearest = torch.tensor([[0.0, 3.0, 4.0], [0.0, 6.0, 5.0]])
    assert suspicion(nearest, torch.tensor([False, True, True])).tolist() == [3.0, 5.0]
    assert suspicion(nearest, torch.tensor([False, False, False])).tolist() == [0.0, 0.0]


def test_an_image_score_is_the_maximum_of_the_blurred_map() -> None:
    flat = torch.full((1, 4, 4), 2.5)
    assert image_scores(flat, (64, 64)).item() == pytest.approx(2.5, abs=1e-4)
    peak = torch.zeros(1, 8, 8)
    peak[0, 4, 4] = 1
    # a patch of 8 x 8 pixels stretches to a pyramid, which a blur of 4 pixels flattens: some peak is left
    score = image_scores(peak, (64, 64)).item()
    assert 0.3 < score < 0.7


def test_share_picks_the_top_rounded_down() -> None:
    scores = np.array([1, 9, 3, 8, 2, 4, 5, 6, 7, 0], dtype=np.float32)
    assert share(scores, 0.25).nonzero()[0].tolist() == [1, 3]
    assert share(scores, 0.3).sum() == 3
    assert share(scores, 0.0).sum() == 0
    # near-duplicates count as one, with the highest score, and go together
    part = np.arange(len(scores))
    part[3] = part[0] = 0
    together = share(scores, 0.3, part)
    assert together.nonzero()[0].tolist() == [0, 1, 3]  # .3 of the nine that are left, rounded down: two
    with pytest.raises(ValueError, match=r"share has to be at least 0 and below 1, found 1\.5"):
        share(scores, 1.5)


def test_deviations_picks_what_is_far_above_the_median() -> None:
    # median 3, MAD 1: the limit is 3 + 2 x 1.4826 = 5.9652
    scores = np.array([1, 2, 3, 4, 100], dtype=np.float32)
    assert deviations(scores, 2).tolist() == [False, False, False, False, True]
    assert deviations(np.array([1, 2, 3, 4, 5.97], dtype=np.float32), 2).tolist()[-1]
    assert not deviations(np.array([1, 2, 3, 4, 5.96], dtype=np.float32), 2).any()
    with pytest.raises(ValueError, match="deviations has to be above 0, found 0"):
        deviations(scores, 0)


def test_photographs_of_one_part_are_no_spread() -> None:
    # twelve photographs of one part, and ten parts about as usual as it is
    scores = np.array([3.0] * 12 + [1, 2, 2.5, 3, 3.5, 4, 4.2, 4.4, 5, 100], dtype=np.float32)
    part = np.array([0] * 12 + list(range(12, 22)))
    assert deviations(scores, 2, part).nonzero()[0].tolist() == [21]
    # nothing says what is far where half are the same
    assert not deviations(scores, 2).any()


def test_near_duplicates_are_groups_around_their_first_and_no_chains() -> None:
    angles = np.deg2rad([0, 9, 17.5, 90, 140, 180, 230, 270])  # cos 9 = .988, cos 8.5 = .989, cos 17.5 = .954
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert near_duplicates(features) == [[0, 1]]
    assert near_duplicates(features[[0, 2, 3, 4, 5]]) == []


@pytest.mark.parametrize("kinds", [2, 3, 5])
def test_images_of_one_kind_are_no_duplicates_where_a_folder_shows_several(kinds: int) -> None:
    rng = np.random.default_rng(0)
    of_a_kind = 10 * rng.normal(size=(kinds, 64)).repeat(12, axis=0)
    features = of_a_kind + rng.normal(size=of_a_kind.shape)
    features[1] = features[0] + 0.1 * rng.normal(size=64)  # a second photograph
    assert near_duplicates(centre(features.astype(np.float32))) == [[0, 1]]


def test_noisy_photographs_of_a_part_that_is_unlike_the_others_are_a_group() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(25, 64))
    features[20:] = 4 * rng.normal(size=64) + 0.4 * rng.normal(size=(5, 64))  # two fifths of what lies between others
    assert near_duplicates(centre(features.astype(np.float32))) == [[20, 21, 22, 23, 24]]


def test_thousands_of_copies_take_seconds() -> None:
    start = time.perf_counter()
    assert len(near_duplicates(np.zeros((8000, 2), dtype=np.float32))) == 1
    assert time.perf_counter() - start < 12  # pair by pair it takes minutes


def test_copies_are_groups_however_many_there_are() -> None:
    parts = np.random.default_rng(0).normal(size=(10, 512)).astype(np.float32)
    found = near_duplicates(centre(parts.repeat(9, axis=0)))
    assert found == [list(range(start, start + 9)) for start in range(0, 90, 9)]
    assert len(near_duplicates(centre(parts[:3].repeat(2, axis=0)))) == 3


def test_images_that_are_all_the_same_are_one_group() -> None:
    same = centre(np.ones((5, 3), dtype=np.float32))
    assert near_duplicates(same) == [[0, 1, 2, 3, 4]]
