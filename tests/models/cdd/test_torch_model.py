# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Scores of training samples are those of the anomaly map."""

import pytest
import torch

from anomalib_cdd import Cdd


@pytest.mark.parametrize("size", [(64, 64), (64, 96)])
@pytest.mark.parametrize("autocast", [False, True])
def test_sample_scores_are_the_maxima_of_the_anomaly_map(size: tuple[int, int], autocast: bool) -> None:
    torch.manual_seed(0)
    model = Cdd(backbone="test_resnet", pre_trained=False, audit=False).model.eval()
    images = torch.randn(3, 3, *size)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        teacher = model.teacher_features(images)
        student = model.student(teacher)
        # a spot at an edge, where the blur reflects, in one image only
        student[0][1, :, 0, :2] *= -1
        scores = model.sample_scores(teacher, student)
    maps = model.anomaly_map(teacher, student, size)
    assert len(set(scores.tolist())) == 3
    torch.testing.assert_close(scores, maps.amax(dim=(-3, -2, -1)), atol=1e-6, rtol=1e-5)
