# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""From levels to an anomaly map (RD4AD; CDD Eq. 11): the cosine distance per pixel, summed over levels and blurred."""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from anomalib.models.components import GaussianBlur2d
from torch import Tensor, nn
from torch.nn import functional as F

from .backbones import Level
from .distances import Levels, pixel_cosine

if TYPE_CHECKING:
    from anomalib.data.utils.tiler import Tiler

BLUR_SIGMA = 4.0
BLUR_KERNEL = 2 * int(4 * BLUR_SIGMA + 0.5) + 1
# half of the blur's kernel
SMALLEST_SIDE = 16


class AnomalyMap(nn.Module):
    """Sum of the levels' cosine distances, stretched to the images' size, blurred and scaled to [0, 1].

    Args:
        signed: Whether a level may take negative values: 1 - cos reaches 1 where none does, and 2 elsewhere.
        count: Number of levels that are summed.
    """

    def __init__(self, signed: bool, count: int) -> None:
        super().__init__()
        # a Gaussian is separable: rows, then columns
        self.blur = nn.Sequential(
            GaussianBlur2d(sigma=BLUR_SIGMA, kernel_size=(BLUR_KERNEL, 1)),
            GaussianBlur2d(sigma=BLUR_SIGMA, kernel_size=(1, BLUR_KERNEL)),
        )
        self.scale = 1 / ((2 if signed else 1) * count)

    @classmethod
    def of(cls, levels: Sequence[Level]) -> "AnomalyMap":
        """Return the map of a teacher's levels and their imitation by layers that end as the teacher's do."""
        return cls(any(level.signed for level in levels), len(levels))

    def forward(self, first: Levels, second: Levels, size: Sequence[int], tiler: "Tiler | None" = None) -> Tensor:
        """Return the blurred map of images of ``size``, put together from tiles where there is a tiler.

        Args:
            first: Levels of images or tiles, each ``(B, C_l, H_l, W_l)``.
            second: Levels of the same shapes.
            size: Height and width of the images.
            tiler: anomalib's tiler, if the levels are of its tiles.

        Returns:
            Shape ``(B, 1, H, W)``, in [0, 1].
        """
        if tiler is None:
            return self.blur(self._distances(first, second, size))
        return self.blur(tiler.untile(self._distances(first, second, (tiler.tile_size_h, tiler.tile_size_w))))

    def _distances(self, first: Levels, second: Levels, size: Sequence[int]) -> Tensor:
        maps = [
            _stretch(1 - F.cosine_similarity(a.float(), b.float(), dim=1).unsqueeze(1), size)
            for a, b in zip(first, second, strict=True)
        ]
        total = torch.stack(maps).sum(dim=0).clamp_min(0) * self.scale
        return total.to(next(self.blur.buffers()).dtype)

    @torch.no_grad()
    def largest(self, first: Levels, second: Levels, size: Sequence[int]) -> Tensor:
        """Return the maxima of the maps without making them, shape ``(B,)``: of training samples and their levels."""
        total = torch.zeros((), device=first[0].device)
        for a, b in zip(first, second, strict=True):
            distances = 1 - pixel_cosine(a.float(), b.float())
            down, across = (spread(*sides, a.device) for sides in zip(a.shape[-2:], size, strict=True))
            total = total + down @ distances @ across.T
        return total.amax(dim=(-2, -1)).clamp_min(0) * self.scale


@lru_cache(maxsize=16)
def spread(side: int, size: int, device: torch.device) -> Tensor:
    """Return what interpolation and blur do to a map along one of its sides: both are linear and separable.

    Args:
        side: Length of a level's side.
        size: That of the anomaly map.
        device: Where the matrix is wanted.

    Returns:
        Shape ``(size, side)``.
    """
    identity = torch.eye(side, device=device)[None, None]
    blur = GaussianBlur2d(sigma=BLUR_SIGMA, kernel_size=(BLUR_KERNEL, 1)).to(device)
    return blur(_stretch(identity, (size, side)))[0, 0]


def _stretch(maps: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=True)


def check_sides(height: int, width: int) -> None:
    """Refuse images that are smaller than what the anomaly map's blur mirrors at its edges.

    Args:
        height: Of what the teacher sees: an image after the pre-processor, or a tile.
        width: The same.

    Raises:
        ValueError: Naming the size and the smallest that can be.
    """
    if min(height, width) <= SMALLEST_SIDE:
        msg = (
            f"The pre-processor leaves images, or tiles, of {height} x {width} pixels: the anomaly map's blur takes "
            f"more than {SMALLEST_SIDE} a side. Set a larger Resize."
        )
        raise ValueError(msg)
