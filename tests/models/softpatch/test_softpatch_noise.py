# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Noise scores of patches, worked out by hand and against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import LocalOutlierFactor

from anomalib_cdd.models.softpatch import noise
from anomalib_cdd.models.softpatch.noise import NOISE_SCORES, kept_patches, noise_scores, patch_weights


def on_a_line(*places: list[float]) -> torch.Tensor:
    return torch.tensor(places)[:, :, None]


def test_the_local_outlier_factor_of_three_points() -> None:
    # nearest others: 0 to 1, 1 to 0, 3 to 1; reachability 1, 1, 2; densities 1, 1, 1/2
    assert noise_scores(on_a_line([0.0, 1.0, 3.0]), "lof", neighbours=1).tolist() == [pytest.approx([1, 1, 2])]


@pytest.mark.parametrize("values", [noise.CHUNK_VALUES, 7 * 40])
def test_the_local_outlier_factor_is_scikit_learns(monkeypatch: pytest.MonkeyPatch, values: int) -> None:
    """With little work space too: seven images of a place at a time."""
    monkeypatch.setattr(noise, "CHUNK_VALUES", values)
    points = torch.randn(3, 40, 6, generator=torch.Generator().manual_seed(0))
    scores = noise_scores(points, "lof", neighbours=5)
    for place, found in zip(points.numpy(), scores.numpy(), strict=True):
        expected = -LocalOutlierFactor(n_neighbors=5).fit(place).negative_outlier_factor_
        assert np.allclose(found, expected, rtol=1e-4)


def test_fewer_images_than_neighbours_compare_with_all_others() -> None:
    points = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(noise_scores(points, "lof", neighbours=5), noise_scores(points, "lof", neighbours=2))


def test_duplicates_do_not_make_factors_explode() -> None:
    # a place where all are alike, one where one differs by a hair, one where one differs by much, and a usual one
    points = on_a_line([0.0] * 8, [*[0.0] * 7, 1e-3], [*[0.0] * 7, 2.0], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    scores = noise_scores(points, "lof", neighbours=2)
    assert torch.allclose(scores[:2], torch.ones(2, 8))
    assert 2 < scores[2, -1] < 100
    assert scores[2, -1] == scores.max()


def test_the_distance_to_the_nearest_other() -> None:
    assert noise_scores(on_a_line([0.0, 1.0, 3.0]), "nearest", 5).tolist() == [pytest.approx([1, 1, 2])]


def test_mahalanobis_distances_have_a_hundredth_on_the_diagonal() -> None:
    # variance 1
    assert noise_scores(on_a_line([-1.0, 0.0, 1.0]), "gaussian", 5)[0].tolist() == pytest.approx(
        [1.01**-0.5, 0, 1.01**-0.5]
    )


@pytest.mark.parametrize("kind", NOISE_SCORES)
def test_an_outlier_has_the_highest_score_of_every_kind(kind: str) -> None:
    points = torch.randn(2, 30, 4, generator=torch.Generator().manual_seed(0))
    points[1, 7] += 20
    assert noise_scores(points, kind, neighbours=5).argmax() == 30 + 7


def test_the_share_with_the_highest_scores_leaves() -> None:
    scores = torch.arange(20.0).roll(3).view(4, 5)
    kept = kept_patches(scores, threshold=0.15)
    assert scores[~kept].tolist() == [17, 18, 19]
    assert kept_patches(scores, threshold=0.0).all()


def test_weights_are_scores_in_units_of_their_mean_and_never_0() -> None:
    assert patch_weights(torch.tensor([0.0, 1.0, 2.0])).tolist() == pytest.approx([0.1, 1, 2])
    assert patch_weights(torch.zeros(2)).tolist() == [1, 1]


@pytest.mark.parametrize("images", [6, 20])
def test_images_that_are_all_the_same_are_all_as_usual(images: int) -> None:
    scores = noise_scores(torch.ones(4, images, 128), "lof", 5)
    assert torch.equal(scores, torch.ones_like(scores))
