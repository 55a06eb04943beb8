# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""MHKD's student: two encoders in a row, then a decoder for structure and one for the whole (Sec. III-B, Fig. 3).

The paper gives the number of layers, the sizes between the parts and the widths at their ends. The rest is a choice:
the first encoder's widths rise in thirds, convolutions are of 3 x 3 with a ReLU, and nothing is normalised, as in
EfficientAD.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

BOTTLENECK_SIDE = 16
BOTTLENECK_CHANNELS = 64
GLOBAL_SIDES = (2, 4, 8, 16, 32)
DROPOUT = 0.2


class StudentFeatures(NamedTuple):
    """What the student makes of images, each of shape ``(B, C, h, w)``, the teacher's."""

    shallow: Tensor
    """f_l, of the first encoder."""
    local: Tensor
    """f_s, of the decoder without a bottleneck."""
    whole: Tensor
    """f_g, of the decoder behind a bottleneck of one place."""


def _conv(in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    padding = 1 if kernel > 1 else 0
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, kernel, stride, padding), nn.ReLU(inplace=True))


class MhkdStudent(nn.Module):
    """Encoders and decoders of the multi-task student.

    Args:
        channels: Channels C of the teacher's map.
        second_encoder: Whether there is a second encoder (Table IV, SEncoder2). Without it both decoders start from
            the first one's map.
    """

    def __init__(self, channels: int, second_encoder: bool = True) -> None:
        super().__init__()
        third = max(channels // 3, 1)
        self.shallow = nn.Sequential(
            _conv(3, third),
            nn.MaxPool2d(2, ceil_mode=True),
            _conv(third, 2 * third),
            nn.MaxPool2d(2, ceil_mode=True),
            _conv(2 * third, 2 * third),
            _conv(2 * third, channels),
            _conv(channels, channels),
            nn.Conv2d(channels, channels, kernel_size=1),
        )
        self.deep = (
            nn.Sequential(_conv(channels, channels, kernel=4, stride=2), _conv(channels, channels, kernel=4, stride=2))
            if second_encoder
            else nn.Identity()
        )
        self.local = LocalDecoder(channels, growth=2 if second_encoder else 1)
        self.whole = GlobalDecoder(channels)

    def forward(self, images: Tensor) -> StudentFeatures:
        """Map images ``(B, 3, H, W)`` to features at a quarter of their size."""
        shallow = self.shallow(images)
        deep, size = self.deep(shallow), shallow.shape[-2:]
        return StudentFeatures(shallow, self.local(deep, size), self.whole(deep, size))


class LocalDecoder(nn.Module):
    """Grow a map back to the teacher's size: two up-samplings with a convolution each, no bottleneck.

    Args:
        channels: Channels C.
        growth: Factor of the first up-sampling; the second ends at the teacher's size.
    """

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.growth = growth
        self.steps = nn.ModuleList(nn.Sequential(_conv(channels, channels), nn.Dropout(DROPOUT)) for _ in range(2))
        self.head = nn.Conv2d(channels, channels, kernel_size=3, padding=1)

    def forward(self, deep: Tensor, size: Sequence[int]) -> Tensor:
        """Map ``(B, C, h, w)`` to ``(B, C, *size)``."""
        first, second = self.steps
        grown = first(_resize(deep, [side * self.growth for side in deep.shape[-2:]]))
        return self.head(second(_resize(grown, size)))


class GlobalDecoder(nn.Module):
    """Press a map into one place of 64 channels, then make a map of the teacher's size of it.

    Args:
        channels: Channels C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        width = BOTTLENECK_CHANNELS
        self.bottleneck = nn.Conv2d(channels, width, kernel_size=BOTTLENECK_SIDE)
        self.steps = nn.ModuleList(nn.Sequential(_conv(width, width), nn.Dropout(DROPOUT)) for _ in GLOBAL_SIDES)
        self.head = nn.Sequential(_conv(width, width), nn.Conv2d(width, channels, kernel_size=3, padding=1))

    def forward(self, deep: Tensor, size: Sequence[int]) -> Tensor:
        """Map ``(B, C, h, w)`` to ``(B, C, *size)``; h and w are 16 at 256 pixels, else brought to that."""
        grown = self.bottleneck(_resize(deep, (BOTTLENECK_SIDE, BOTTLENECK_SIDE)))
        for side, step in zip(GLOBAL_SIDES, self.steps, strict=True):
            grown = step(_resize(grown, (side, side)))
        return self.head(_resize(grown, size))


def _resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
