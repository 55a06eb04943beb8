# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""DMDD's segmentation head: from the maps of all levels and both branches to one (Sec. 3.4.2, Fig. 6)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .student import resize

# the weights of places are learned at the paper's image size and resized to others
WEIGHTS_SIDE = 256
SPATIAL_KERNEL = 7
# the logit of a map before training: few pixels are anomalous
PRIOR = -4.6


class SegmentationHead(nn.Module):
    """Fuse distance maps.

    Args:
        levels: Number of levels L of a branch.
        normality: Whether there are maps of the normality branch.
        abnormality: Whether there are maps of the abnormality branch.
        pyramid_upsampling: Whether maps of a branch are handed from level to level first, normality's from deep to
            shallow and abnormality's from shallow to deep (Table 5, PU).
        multi_perception: Whether maps are weighted by channel, by place, and by both (Table 5, MM).
    """

    def __init__(
        self, levels: int, normality: bool, abnormality: bool, pyramid_upsampling: bool, multi_perception: bool
    ) -> None:
        super().__init__()
        maps = levels * (normality + abnormality)
        self.top_down = MapPath(levels, top_down=True) if normality and pyramid_upsampling else None
        self.bottom_up = MapPath(levels, top_down=False) if abnormality and pyramid_upsampling else None
        self.perception = MultiPerception(maps) if multi_perception else None
        self.fuse = nn.Conv2d(maps, 1, kernel_size=1)
        # a mean of all maps to begin with: both attentions begin at a half
        nn.init.constant_(self.fuse.weight, (4.0 if multi_perception else 1.0) / maps)
        nn.init.constant_(self.fuse.bias, PRIOR)  # type: ignore[arg-type]

    def forward(self, normality: list[Tensor], abnormality: list[Tensor], size: Sequence[int]) -> Tensor:
        """Return a map in [0, 1].

        Args:
            normality: Distance maps ``(B, 1, H_l, W_l)`` of the normality branch, shallow to deep; may be none.
            abnormality: Of the abnormality branch.
            size: Height and width of the images.

        Returns:
            Shape ``(B, 1, *size)``.
        """
        normality = self.top_down(normality) if self.top_down is not None else normality
        abnormality = self.bottom_up(abnormality) if self.bottom_up is not None else abnormality
        maps = torch.cat([resize(level, size) for level in (*normality, *abnormality)], dim=1)
        if self.perception is not None:
            maps = self.perception(maps)
        return self.fuse(maps).sigmoid()


class MapPath(nn.Module):
    """Add to each map the fused one before it and smooth by a 3 x 3 convolution; to begin with this is their mean.

    Args:
        levels: Number of maps.
        top_down: Whether from deep to shallow.
    """

    def __init__(self, levels: int, top_down: bool) -> None:
        super().__init__()
        self.top_down = top_down
        self.smooth = nn.ModuleList(nn.Conv2d(1, 1, kernel_size=3, padding=1) for _ in range(levels - 1))
        for conv in self.smooth:
            nn.init.dirac_(conv.weight)  # type: ignore[arg-type]
            conv.weight.data.div_(2)  # type: ignore[operator]
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Map ``(B, 1, H_l, W_l)``, shallow to deep, to maps of the same shapes."""
        order = maps[::-1] if self.top_down else maps
        fused = [order[0]]
        for conv, level in zip(self.smooth, order[1:], strict=True):
            fused.append(conv(level + resize(fused[-1], level.shape[-2:])))
        return fused[::-1] if self.top_down else fused


class MultiPerception(nn.Module):
    """Weight maps by channel attention, by spatial attention and by a learned weight per place and map.

    Args:
        maps: Number of maps N.
    """

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.channel = nn.Sequential(nn.Linear(maps, maps), nn.ReLU(), nn.Linear(maps, maps))
        self.spatial = nn.Conv2d(2, 1, SPATIAL_KERNEL, padding=SPATIAL_KERNEL // 2)
        self.weights = nn.Parameter(torch.ones(1, maps, WEIGHTS_SIDE, WEIGHTS_SIDE))
        # attention that is random would turn maps over before it has learned anything
        for last in (self.channel[-1], self.spatial):
            nn.init.zeros_(last.weight)  # type: ignore[arg-type]
            nn.init.zeros_(last.bias)  # type: ignore[arg-type]

    def forward(self, maps: Tensor) -> Tensor:
        """Return weighted maps of the same shape ``(B, N, H, W)``."""
        pooled = self.channel(maps.mean(dim=(-2, -1))) + self.channel(maps.amax(dim=(-2, -1)))
        maps = maps * pooled.sigmoid()[:, :, None, None]
        places = torch.cat([maps.mean(dim=1, keepdim=True), maps.amax(dim=1, keepdim=True)], dim=1)
        maps = maps * self.spatial(places).sigmoid()
        return maps * resize(self.weights, maps.shape[-2:])
