# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""DMDD's losses and the score of an image; pure functions (Eq. 1 to 5).

A "levels" argument is a list of L tensors ``(B, C_l, H_l, W_l)``; distances are a list of L maps ``(B, 1, H_l, W_l)``.
Everything is computed in fp32.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from anomalib_cdd.teachers.distances import pixel_cosine

TOP_PIXELS = 100


def distances(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> list[Tensor]:
    """Return the cosine distance per pixel of each level, in [0, 2] (Eq. 1, 4)."""
    return [1 - pixel_cosine(t.float(), s.float()).unsqueeze(1) for t, s in zip(teacher, student, strict=True)]


def guidance(normal: Sequence[Tensor], anomalous: Sequence[Tensor]) -> Tensor:
    """Return L_NGM: the levels' mean of the mean distances to the teacher's features of the *normal* image (Eq. 2).

    Args:
        normal: Distances of the normal images' normality features.
        anomalous: Distances of the anomalous images' normality features.
    """
    return torch.stack([n.mean() + a.mean() for n, a in zip(normal, anomalous, strict=True)]).mean()


def inverse_mimicking(distance: Sequence[Tensor], masks: Tensor) -> Tensor:
    """Return L_AIM: how far distances are from the mask, 0 where the image is normal and 1 where not (Eq. 3).

    Args:
        distance: Distances of the abnormality features to the teacher's of the same images.
        masks: Synthetic anomalies of 0 and 1, shape ``(B, 1, H, W)``.
    """
    return torch.stack([F.l1_loss(d, mask_of_level(masks, d.shape[-2:])) for d in distance]).mean()


def mask_of_level(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Return the share of each place of a level that a mask covers, shape ``(B, 1, *size)``."""
    return F.interpolate(masks.float(), size=tuple(size), mode="area")


def segmentation(anomaly_map: Tensor, masks: Tensor) -> Tensor:
    """Return L_seg: binary cross entropies of the map and of the image's score (Eq. 5).

    Args:
        anomaly_map: Shape ``(B, 1, H, W)``, in [0, 1].
        masks: Shape ``(B, 1, H, W)``, of 0 and 1.
    """
    anomalous = masks.amax(dim=(-3, -2, -1))
    return F.binary_cross_entropy(anomaly_map, masks) + F.binary_cross_entropy(image_score(anomaly_map), anomalous)


def image_score(anomaly_map: Tensor) -> Tensor:
    """Return the mean of the 100 largest values of maps ``(B, 1, H, W)``, shape ``(B,)``."""
    return anomaly_map.flatten(1).topk(TOP_PIXELS, dim=1).values.mean(dim=1)
