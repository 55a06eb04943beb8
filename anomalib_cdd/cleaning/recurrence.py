# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Recurrence: what comes back in other images is normal, what does not is suspicious.

Pure functions, after MuSc (Li et al., ICLR 2024) and InReaCh (McIntosh and Albu, ICCV 2023): a normal patch is near to
something in many images, a defect in few.
"""

from anomalib.models.components import GaussianBlur2d
from torch import Tensor
from torch.nn import functional as F

LOWEST_SHARE = 0.1
BLUR_SIGMA = 4.0
BLUR_KERNEL = 2 * int(4 * BLUR_SIGMA + 0.5) + 1


def suspicion(nearest: Tensor, known: Tensor | None = None) -> Tensor:
    """Return the mean of the lowest tenth of each patch's distances to other images.

    Args:
        nearest: Distances d_ij(p), shape ``(R, M)``.
        known: Which of the M images may vouch, shape ``(M,)``; all of them by default.

    Returns:
        Shape ``(R,)``; zeros where no image may vouch.
    """
    if known is not None:
        nearest = nearest[:, known]
    count = nearest.shape[1]
    if not count:
        return nearest.new_zeros(len(nearest))
    return nearest.topk(max(1, round(LOWEST_SHARE * count)), dim=1, largest=False).values.mean(dim=1)


def image_scores(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the maximum of each map once it is stretched to the size of the images and blurred.

    Args:
        maps: Suspicion per patch, shape ``(B, h, w)``.
        size: Height and width of the images.

    Returns:
        Shape ``(B,)``.
    """
    blur = GaussianBlur2d(sigma=BLUR_SIGMA, kernel_size=(BLUR_KERNEL, BLUR_KERNEL)).to(maps.device)
    return blur(F.interpolate(maps[:, None], size=size, mode="bilinear")).amax(dim=(1, 2, 3))
