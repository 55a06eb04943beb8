# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""MHKD's mathematics against values worked out by hand."""

import pytest
import torch

from anomalib_cdd.models.mhkd.loss import bounded, losses, maps, quantiles, scaled
from anomalib_cdd.models.mhkd.student import StudentFeatures


def constant(*values: float) -> torch.Tensor:
    """One image of one pixel, a channel for each value."""
    return torch.tensor(values).view(1, -1, 1, 1)


TEACHER = constant(1.0, 2.0)
STUDENT = StudentFeatures(shallow=constant(0.0, 1.0), local=constant(1.0, 0.0), whole=constant(3.0, 3.0))


def test_the_three_losses_by_hand() -> None:
    parts = losses(TEACHER, STUDENT)
    assert parts["local"] == (0 + 4) / 2
    assert parts["global"] == (4 + 1) / 2
    assert parts["self"] == (9 + 4) / 2
    assert set(losses(TEACHER, STUDENT, self_distillation=False)) == {"local", "global"}


def test_the_global_decoder_learns_from_the_teacher_alone() -> None:
    student = StudentFeatures(*(level.clone().requires_grad_() for level in STUDENT))
    losses(TEACHER, student)["self"].backward()
    assert student.whole.grad is None
    assert student.shallow.grad is not None
    assert student.shallow.grad.flatten().tolist() == [-3.0, -2.0]


def test_the_two_maps_by_hand() -> None:
    assert maps(TEACHER, STUDENT).flatten().tolist() == [2.0, 6.5]
    assert maps(TEACHER, STUDENT, self_distillation=False).flatten().tolist() == [2.0, 2.5]


def test_quantiles_are_taken_of_each_map_and_mapped_to_0_and_a_tenth() -> None:
    # 0 to 1000 in one map and ten times that in the other
    first = torch.arange(1002.0).clamp_max(1000)
    values = torch.stack([first, 10 * first])
    ends = quantiles(values)
    assert torch.allclose(ends, torch.tensor([[900.9, 995.995], [9009.0, 9959.95]]))
    assert torch.allclose(scaled(ends.T.reshape(2, 2, 1, 1), ends).flatten(), torch.tensor([0.0, 0.0, 0.1, 0.1]))
    both = scaled(torch.tensor([948.4475, 9484.475]).view(1, 2, 1, 1), ends)
    assert torch.allclose(both.flatten(), torch.tensor([0.05, 0.05]), atol=1e-5)


def test_more_values_than_torchs_quantile_takes() -> None:
    assert quantiles(torch.ones(2, 2**24 + 1)).tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_bounding_keeps_the_order_and_has_no_end_to_clip_at() -> None:
    values = torch.tensor([-1e3, -1.0, 0.0, 1.0, 3.0, 100.0, 1e4])
    result = bounded(values)
    assert result[1:5].tolist() == pytest.approx([0.25, 0.5, 0.75, 0.875])
    assert (result.diff() > 0).all()
    assert result.min() > 0
    assert result.max() < 1
