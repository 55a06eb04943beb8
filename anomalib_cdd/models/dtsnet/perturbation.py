# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""DTSNet's noise on the student's features, most where the teacher looks (Sec. II-D, Eq. 3 to 6); pure functions."""

import torch
from torch import Tensor

NOISE = 0.1
TEMPERATURE = 0.5


def attention(teacher: Tensor) -> Tensor:
    """Return the attention mask of a level (Eq. 3, 4).

    Args:
        teacher: Shape ``(B, C, H, W)``. No gradient flows to it.

    Returns:
        Shape ``(B, 1, H, W)``, not negative, with a mean of one over each image's pixels.
    """
    magnitude = teacher.detach().float().abs().mean(dim=1)
    weights = torch.softmax(magnitude.flatten(1) / TEMPERATURE, dim=1).view_as(magnitude)
    return (weights * magnitude[0].numel()).unsqueeze(1)


def perturb(student: Tensor, mask: Tensor) -> Tensor:
    """Return a level with noise of standard deviation .1 times the image's own times the mask (Eq. 5, 6).

    Args:
        student: Shape ``(B, C, H, W)``. Gradients flow as if nothing had been added.
        mask: See :func:`attention`.
    """
    deviation = student.detach().float().std(dim=(1, 2, 3), keepdim=True)
    noise = torch.randn(student.shape, device=student.device) * (NOISE * deviation * mask)
    return student + noise.to(student.dtype)
