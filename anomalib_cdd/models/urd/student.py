# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""URD's student: bottleneck and decoder of Reverse Distillation, with the teacher's detail injected between levels."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from anomalib_cdd.teachers.backbones import Level, Teacher
from anomalib_cdd.teachers.students import PyramidDecoder, build_student, conv_block, fit_size, shrink

from .loss import mix_by_similarity


class GuidedInjection(nn.Module):
    """Hand detail of the teacher to the decoder where the student agrees with the teacher.

    Args:
        deep: The level that the decoder has just made.
        shallow: The one that comes next.
        channels: Of what the decoder's next stage takes.
    """

    def __init__(self, deep: Level, shallow: Level, channels: int) -> None:
        super().__init__()
        self.shrink = shrink(shallow, deep, deep.channels)
        self.guide = conv_block(deep.channels, deep.channels, kernel=1)
        self.mix = conv_block(deep.channels, deep.channels, kernel=1)
        self.join = conv_block(2 * deep.channels, channels, kernel=1)

    def forward(self, student: Tensor, deep: Tensor, shallow: Tensor) -> Tensor:
        """Return the input ``(B, channels, H, W)`` of the decoder's next stage.

        Args:
            student: The student's deep level, shape ``(B, C, H, W)``.
            deep: The teacher's.
            shallow: The teacher's shallow level.
        """
        guidance = self.guide(deep + fit_size(self.shrink(shallow), deep.shape[-2:]))
        return self.join(torch.cat([student, self.mix(mix_by_similarity(guidance, student, deep))], dim=1))


class InjectedStudent(nn.Module):
    """The student that fits a teacher, see :func:`build_student`, with an injection before each level but the deepest.

    Args:
        teacher: A teacher, whose levels the student returns.
        width: Channels of the finest map of a built decoder.
    """

    def __init__(self, teacher: Teacher, width: int) -> None:
        super().__init__()
        plain = build_student(teacher, width)
        deep_first = teacher.levels[::-1]
        self.bottleneck = plain.bottleneck
        self.stages, self.heads, widths = _parts(plain.decoder, deep_first)
        self.injections = nn.ModuleList(
            GuidedInjection(deep, shallow, channels)
            for (deep, shallow), channels in zip(pairwise(deep_first), widths[:-1], strict=True)
        )

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Reconstruct the teacher's levels, each ``(B, C_l, H_l, W_l)``, shallow to deep."""
        device = features[0].device.type
        if torch.is_autocast_enabled(device):
            features = [feature.to(torch.get_autocast_dtype(device)) for feature in features]
        hidden, levels, deep_first = self.bottleneck(features), [], features[::-1]
        for i, (stage, head) in enumerate(zip(self.stages, self.heads, strict=True)):
            level = fit_size(head(stage(hidden)), deep_first[i].shape[-2:])
            levels.append(level)
            if i < len(self.injections):
                hidden = self.injections[i](level, deep_first[i], deep_first[i + 1])
        return levels[::-1]


def _parts(decoder: nn.Module, deep_first: Sequence[Level]) -> tuple[nn.ModuleList, nn.ModuleList, list[int]]:
    """Return a decoder's stages, what makes a level of each one's output, and the channels of these outputs."""
    if isinstance(decoder, PyramidDecoder):
        stages: list = list(decoder.stages)
        return decoder.stages, decoder.heads, [stage[-1][0].out_channels for stage in stages]
    # anomalib's, whose stages put out the levels themselves
    stages = [decoder.layer1, decoder.layer2, decoder.layer3]
    heads = nn.ModuleList(nn.Identity() for _ in stages)
    return nn.ModuleList(stages), heads, [level.channels for level in deep_first]
