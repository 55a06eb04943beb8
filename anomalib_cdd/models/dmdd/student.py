# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""DMDD's student: the teacher's network whose features are split into normality and abnormality (Sec. 3.2, Fig. 4).

After each stage a 1 x 1 convolution doubles the channels. Its first half, normality, goes on to the next stage; both
halves go through a pyramid of their own. The splits begin as two copies of the stage's output, so that the pre-trained
network is whole when training begins.
"""

import copy
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomalib_cdd.teachers.backbones import Level, Teacher

Levels = list[Tensor]
Branches = Literal["both", "normality", "abnormality"]


class Split(nn.Module):
    """A 1 x 1 convolution to twice the channels; keeps both halves of what it was last given."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * channels, kernel_size=1)
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(channels).repeat(2, 1)[:, :, None, None])
            self.conv.bias.zero_()  # type: ignore[union-attr]
        self._halves: tuple[Tensor, Tensor] | None = None

    def forward(self, features: Tensor) -> Tensor:
        """Return the normality half of features ``(B, C, h, w)``."""
        self._halves = self.conv(features).chunk(2, dim=1)
        return self._halves[0]

    def take(self) -> tuple[Tensor, Tensor]:
        """Return both halves of the last features and forget them."""
        halves, self._halves = self._halves, None
        return cast("tuple[Tensor, Tensor]", halves)


def _split_input(split: Split, _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return split(inputs[0]), *inputs[1:]


def _split_output(split: Split, _module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return split(output)


class DecoupledStudent(nn.Module):
    """The teacher's network, trainable, with a split after each level and a pyramid for each half.

    Args:
        teacher: The teacher; the student begins as a copy of its network.
        paths: Fusion paths of a pyramid: 0, 1 (inner) or 2 (inner and outer).
        branches: Which has a pyramid; of the other come the plain halves.

    Raises:
        ValueError: If a level is no module of the teacher's network that a split could follow.
    """

    network: Any  # timm's, which is not typed

    def __init__(self, teacher: Teacher, paths: int, branches: Branches = "both") -> None:
        super().__init__()
        self.network = copy.deepcopy(teacher.network).requires_grad_(requires_grad=True).train()
        splits = [Split(level.channels) for level in teacher.levels]
        self.splits = nn.ModuleList(splits)
        modules = dict(self.network.named_modules())
        for split, level in zip(splits, self.network.feature_info.get_dicts(), strict=True):
            # timm flattens the names of some networks' levels: `stages.0` becomes `stages_0`
            module = modules.get(level["module"]) or modules.get(level["module"].replace(".", "_"))
            if module is None:
                msg = f"Level {level['module']!r} of {teacher.backbone!r} is no module of it: DMDD takes another CNN."
                raise ValueError(msg)
            if level.get("hook_type") == "forward_pre":  # the level is what goes into the module
                module.register_forward_pre_hook(partial(_split_input, split))
            else:
                module.register_forward_hook(partial(_split_output, split))
        of_normality, of_abnormality = (0 if branches == other else paths for other in ("abnormality", "normality"))
        self.normality = Pyramid(teacher.levels, top_down_first=True, paths=of_normality)
        self.abnormality = Pyramid(teacher.levels, top_down_first=False, paths=of_abnormality)

    def forward(self, images: Tensor) -> tuple[Levels, Levels]:
        """Map normalised images ``(B, 3, H, W)`` to normality and abnormality levels of the teacher's shapes."""
        self.network(images)
        halves = [split.take() for split in self.splits]  # type: ignore[operator]
        normality, abnormality = (list(levels) for levels in zip(*halves, strict=True))
        return self.normality(normality), self.abnormality(abnormality)


class Pyramid(nn.Module):
    """Fuse levels along one or two paths of opposite directions.

    Args:
        levels: The teacher's levels, shallow to deep.
        top_down_first: Whether the first path leads from deep to shallow, and the second back.
        paths: Number of paths.
    """

    def __init__(self, levels: Sequence[Level], top_down_first: bool, paths: int) -> None:
        super().__init__()
        self.paths = nn.ModuleList(Path(levels, top_down_first == (number % 2 == 0)) for number in range(paths))

    def forward(self, features: Levels) -> Levels:
        """Map levels, each ``(B, C_l, H_l, W_l)``, to levels of the same shapes."""
        for path in self.paths:
            features = path(features)
        return features


class Path(nn.Module):
    """Hand each level on to the next: 1 x 1, resize, add, then 3 x 3, BatchNorm and ReLU.

    Args:
        levels: The teacher's levels. One that takes negative values has no ReLU.
        top_down: Whether from deep to shallow.
    """

    def __init__(self, levels: Sequence[Level], top_down: bool) -> None:
        super().__init__()
        self.top_down = top_down
        order = list(reversed(levels)) if top_down else list(levels)
        self.laterals, self.fusions = nn.ModuleList(), nn.ModuleList()
        for before, level in pairwise(order):
            self.laterals.append(nn.Conv2d(before.channels, level.channels, kernel_size=1))
            fusion: list[nn.Module] = [
                nn.Conv2d(level.channels, level.channels, kernel_size=3, padding=1, bias=False),
                nn.BatchNorm2d(level.channels),
            ]
            self.fusions.append(nn.Sequential(*fusion, *([] if level.signed else [nn.ReLU(inplace=True)])))

    def forward(self, features: Levels) -> Levels:
        """Map levels, each ``(B, C_l, H_l, W_l)``, to levels of the same shapes."""
        order = features[::-1] if self.top_down else features
        fused = [order[0]]
        for lateral, fusion, level in zip(self.laterals, self.fusions, order[1:], strict=True):
            fused.append(fusion(level + resize(lateral(fused[-1]), level.shape[-2:])))
        return fused[::-1] if self.top_down else fused


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize maps ``(B, C, h, w)`` bilinearly."""
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
