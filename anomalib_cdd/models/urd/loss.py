# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""URD's losses of teacher and student, and the mix of its injection; pure functions.

A "levels" argument is a list of L tensors ``(B, C_l, H_l, W_l)``: of normal images n, or of the same with a synthetic
anomaly, a.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from anomalib_cdd.teachers.distances import Levels, distance, pixel_cosine


def teacher_loss(
    expert_normal: Levels, expert_anomalous: Levels, normal: Levels, anomalous: Levels, masks: Tensor
) -> Tensor:
    """Return the loss of a teacher that stays the expert but where an anomaly is, there it turns away from normality.

    The sum over levels of the mean distance per pixel of T(n) to E(n), of the mean absolute difference of the mask and
    the distance per pixel of T(a) to E(n), and of the distance of T(a), flattened, to E(a).

    Args:
        expert_normal: E(n); no gradient flows to it.
        expert_anomalous: E(a); no gradient flows to it.
        normal: T(n).
        anomalous: T(a).
        masks: Anomalies of 0 and 1, shape ``(B, 1, H, W)``. A level's is the share of each place that is anomalous.
    """
    loss = distance(expert_anomalous, anomalous)
    for e, n, a in zip(expert_normal, normal, anomalous, strict=True):
        mask = F.interpolate(masks.float(), size=tuple(e.shape[-2:]), mode="area")[:, 0]
        loss = loss + (1 - pixel_cosine(n.float(), e.float())).mean()
        loss = loss + F.l1_loss(1 - pixel_cosine(a.float(), e.float()), mask)
    return loss


def student_loss(expert_normal: Levels, teacher_normal: Levels, normal: Levels, anomalous: Levels) -> Tensor:
    """Return the distances of S(n) and S(a), flattened, to E(n) and to T(n): normality, whatever is seen."""
    distances = [
        distance(target, output) for target in (expert_normal, teacher_normal) for output in (normal, anomalous)
    ]
    return torch.stack(distances).sum()


def mix_by_similarity(guidance: Tensor, student: Tensor, teacher: Tensor) -> Tensor:
    """Return the guidance where the student agrees with the teacher, the student where it does not.

    Args:
        guidance: What the teacher has to say, shape ``(B, C, H, W)``.
        student: A level of the student.
        teacher: The same level of the teacher. The cosine per pixel of both, without gradient, is the weight of the
            guidance.

    Returns:
        Shape ``(B, C, H, W)``.
    """
    similarity = pixel_cosine(student.detach().float(), teacher.detach().float()).unsqueeze(1).to(student.dtype)
    return guidance * similarity + student * (1 - similarity)
