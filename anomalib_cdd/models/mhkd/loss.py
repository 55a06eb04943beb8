# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""MHKD's losses, its two maps and their common scale; pure functions of features ``(B, C, h, w)``."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .student import StudentFeatures

# EfficientAD's: the lower is mapped to 0, the upper to 0.1
QUANTILES = (0.9, 0.995)
UPPER = 0.1


def losses(teacher: Tensor, student: StudentFeatures, self_distillation: bool = True) -> dict[str, Tensor]:
    """Return the mean squared errors of Eq. 4, 6 and 7 by name; the loss is their sum (Eq. 8, with weights of 1).

    Args:
        teacher: The teacher's normalised features f_t, which get no gradient.
        student: The student's.
        self_distillation: Whether the first encoder learns f_g, which gets no gradient from that.
    """
    parts = {
        "local": F.mse_loss(student.local, teacher.detach()),
        "global": F.mse_loss(student.whole, teacher.detach()),
    }
    if self_distillation:
        parts["self"] = F.mse_loss(student.shallow, student.whole.detach())
    return parts


def maps(teacher: Tensor, student: StudentFeatures, self_distillation: bool = True) -> Tensor:
    """Return the structural and the logical map, shape ``(B, 2, h, w)``: squared differences, averaged over channels.

    Args:
        teacher: The teacher's normalised features f_t.
        student: The student's.
        self_distillation: Whether the first encoder has learned f_g. If not, the logical map has f_t in its place.
    """
    structural = (teacher - student.local).square().mean(dim=1)
    logical = ((student.shallow if self_distillation else teacher) - student.whole).square().mean(dim=1)
    return torch.stack([structural, logical], dim=1)


def quantiles(values: Tensor) -> Tensor:
    """Return the .9 and .995 quantiles of each of two maps.

    Args:
        values: All their values, shape ``(2, K)``.

    Returns:
        Shape ``(2, 2)``: a row for each map.
    """
    # torch's takes no more than 2^24 values
    found = np.quantile(values.cpu().numpy(), QUANTILES, axis=1)
    return torch.from_numpy(found.T).to(values)


def scaled(values: Tensor, ends: Tensor) -> Tensor:
    """Map each map's lower quantile to 0 and its upper to 0.1.

    Args:
        values: Maps ``(B, 2, h, w)``.
        ends: Their quantiles, shape ``(2, 2)``.

    Returns:
        Shape ``(B, 2, h, w)``.
    """
    low, high = ends[:, 0].view(-1, 1, 1), ends[:, 1].view(-1, 1, 1)
    return UPPER * (values - low) / (high - low).clamp_min(torch.finfo(values.dtype).tiny)


def bounded(values: Tensor) -> Tensor:
    """Map numbers to (0, 1) and keep their order: ``z / (1 + |z|)``, moved and halved, has no end to clip at."""
    return 0.5 + 0.5 * values / (1 + values.abs())
