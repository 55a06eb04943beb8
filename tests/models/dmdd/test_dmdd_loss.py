# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""DMDD's mathematics against values worked out by hand."""

import math

import pytest
import torch

from anomalib_cdd.models.dmdd.loss import (
    distances,
    guidance,
    image_score,
    inverse_mimicking,
    mask_of_level,
    segmentation,
)


def test_distances_per_pixel() -> None:
    teacher = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]).T.reshape(1, 2, 1, 3)
    student = torch.tensor([[2.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]).T.reshape(1, 2, 1, 3)
    assert distances([teacher], [student])[0].flatten().tolist() == pytest.approx([0.0, 1.0, 2.0])


def test_guidance_is_the_levels_mean_of_both_images_means() -> None:
    normal = [torch.full((1, 1, 4, 4), 0.1), torch.full((1, 1, 2, 2), 0.3)]
    anomalous = [torch.full((1, 1, 4, 4), 0.2), torch.tensor([0.0, 0.0, 0.0, 2.0]).view(1, 1, 2, 2)]
    assert guidance(normal, anomalous).item() == pytest.approx(((0.1 + 0.2) + (0.3 + 0.5)) / 2)


def test_a_levels_mask_is_the_share_that_is_covered() -> None:
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., :2, :2] = 1
    mask[..., 3, 3] = 1
    assert mask_of_level(mask, (2, 2)).flatten().tolist() == [1.0, 0.0, 0.0, 0.25]


def test_inverse_mimicking_wants_no_distance_where_it_is_normal_and_one_where_it_is_not() -> None:
    masks = torch.zeros(2, 1, 2, 2)
    masks[1, 0, 0, 0] = 1
    wanted = masks.clone()
    assert inverse_mimicking([wanted], masks).item() == 0
    # the normal image everywhere at .5, the anomalous one as if it were normal
    distance = torch.zeros(2, 1, 2, 2)
    distance[0] = 0.5
    assert inverse_mimicking([distance], masks).item() == pytest.approx((4 * 0.5 + 1) / 8)
    # opposite features are as far from the target as equal ones
    assert inverse_mimicking([2 * masks], masks).item() == inverse_mimicking([0 * masks], masks).item()


def test_the_score_is_the_mean_of_the_hundred_largest() -> None:
    values = torch.arange(400.0).view(1, 1, 20, 20) / 400
    assert image_score(values).item() == pytest.approx(sum(range(300, 400)) / 100 / 400)


def test_segmentation_is_two_cross_entropies() -> None:
    masks = torch.zeros(2, 1, 20, 20)
    masks[1, 0, :, :10] = 1
    anomaly_map = torch.full((2, 1, 20, 20), 0.2)
    pixels = -(200 * math.log(0.2) + 600 * math.log(0.8)) / 800
    images = -(math.log(0.8) + math.log(0.2)) / 2
    assert segmentation(anomaly_map, masks).item() == pytest.approx(pixels + images, rel=1e-5)
