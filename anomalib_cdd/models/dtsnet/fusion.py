# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""DTSNet's bottleneck, the multi-scale fusion: levels weighted by coordinate attention and summed (Sec. II-C)."""

from collections.abc import Sequence

import torch
import torchvision
from torch import Tensor, nn

from anomalib_cdd.teachers.backbones import Level, Teacher
from anomalib_cdd.teachers.students import PyramidBottleneck, Student, conv_block, shrink

REDUCTION = 32
FEWEST_CHANNELS = 8


class CoordinateAttention(nn.Module):
    """Weight a level by row and by column (Hou et al., CVPR 2021).

    Args:
        channels: Of the level.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        reduced = max(FEWEST_CHANNELS, channels // REDUCTION)
        self.reduce = nn.Sequential(nn.Conv2d(channels, reduced, 1), nn.BatchNorm2d(reduced), nn.Hardswish())
        self.rows = nn.Conv2d(reduced, channels, 1)
        self.columns = nn.Conv2d(reduced, channels, 1)

    def forward(self, level: Tensor) -> Tensor:
        """Return the level ``(B, C, H, W)``, weighted."""
        height = level.shape[-2]
        rows, columns = level.mean(dim=3, keepdim=True), level.mean(dim=2, keepdim=True).transpose(2, 3)
        reduced = self.reduce(torch.cat([rows, columns], dim=2))
        of_rows, of_columns = reduced[:, :, :height], reduced[:, :, height:].transpose(2, 3)
        return level * self.rows(of_rows).sigmoid() * self.columns(of_columns).sigmoid()


class MultiScaleFusion(nn.Module):
    """Weight the levels, bring them to the deepest one's size, sum and compress them.

    Args:
        levels: The teacher's levels, shallow to deep.
        channels: Of the sum.
        compress: Halves the sum's sides.
    """

    def __init__(self, levels: Sequence[Level], channels: int, compress: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList()
        for level in levels:
            self.branches.append(
                nn.Sequential(CoordinateAttention(level.channels), shrink(level, levels[-1], channels))
            )
        self.compress = compress

    def forward(self, features: list[Tensor]) -> Tensor:
        """Map the levels, each ``(B, C_l, H_l, W_l)``, to an embedding at half the deepest resolution."""
        aligned = [branch(feature) for branch, feature in zip(self.branches, features, strict=True)]
        height, width = aligned[-1].shape[-2:]
        return self.compress(torch.stack([level[..., :height, :width] for level in aligned]).sum(dim=0))


def with_fusion(student: Student, teacher: Teacher) -> Student:
    """Return the student with a fusion of the teacher's levels in place of its bottleneck.

    The sum is compressed by a ResNet's fourth block where the decoder is a ResNet's, and as before elsewhere.

    Raises:
        ValueError: If all the teacher's levels have one stride, as a transformer's.
    """
    levels = teacher.levels
    if isinstance(student.bottleneck, PyramidBottleneck):
        compress = student.bottleneck.squeeze
        channels = compress[-1][0].out_channels  # type: ignore[index]
        compress[0] = conv_block(channels, channels, stride=2)
    elif len({level.stride for level in levels}) == 1:
        msg = (
            f"Levels {[level.name for level in levels]} of {teacher.backbone!r} have one stride: there is nothing to "
            "fuse over scales. Choose a CNN, or set multiscale_fusion: false."
        )
        raise ValueError(msg)
    else:
        channels = levels[-1].channels
        compress = getattr(torchvision.models, teacher.backbone.split(".", 1)[0])().layer4
    return Student(MultiScaleFusion(levels, channels, compress), student.decoder)
