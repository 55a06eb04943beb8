# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""The student: a one-class bottleneck embedding (OCBE) and a decoder (RD4AD; CDD Sec. 3.1).

For the ResNet family both are anomalib's own. For every other teacher they are built from the channels and strides
of its levels after the same plan: fuse the levels at the deepest stride, squeeze them to half of that, and decode
back level by level. Where all levels have one stride, as a vision transformer's, nothing is squeezed: noise takes the
place of a narrower map.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from anomalib.models.components.backbone import get_decoder
from anomalib.models.image.reverse_distillation.components import get_bottleneck_layer
from torch import Tensor, nn
from torch.nn import functional as F

from anomalib_cdd.teachers.backbones import Level, Teacher

RESNET_FAMILY = frozenset(
    {
        "resnet18",
        "resnet34",
        "resnet50",
        "resnet101",
        "resnet152",
        "resnext50_32x4d",
        "resnext101_32x8d",
        "wide_resnet50_2",
        "wide_resnet101_2",
    }
)
RESNET_LEVELS = ("layer1", "layer2", "layer3")

# Channels of the pyramid's finest map; each coarser one has twice as many, up to the bottleneck's.
DEFAULT_WIDTH = 48
MAX_WIDENING = 4
# of the bottleneck that squeezes nothing: without it the student would pass its input on
BOTTLENECK_DROPOUT = 0.2


class Student(nn.Module):
    """A bottleneck and a decoder that return the teacher's levels.

    Args:
        bottleneck: Maps the teacher's levels to one embedding.
        decoder: Maps the embedding back to the levels, shallow to deep.
    """

    def __init__(self, bottleneck: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.bottleneck = bottleneck
        self.decoder = decoder

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Reconstruct the teacher's levels.

        Args:
            features: Teacher levels, each ``(B, C_l, H_l, W_l)``, shallow to deep.

        Returns:
            Levels of the same shapes.
        """
        device = features[0].device.type
        if torch.is_autocast_enabled(device):
            # here, and not in each layer: autocast does not join levels of fp16 and bf16
            features = [feature.to(torch.get_autocast_dtype(device)) for feature in features]
        levels = self.decoder(self.bottleneck(features))
        return [fit_size(level, feature.shape[-2:]) for level, feature in zip(levels, features, strict=True)]

    def reseed(self, seed: int) -> None:
        """Let what is random in it draw as it does after this seed, 0 or more, whatever was drawn before."""
        for module in self.modules():
            if isinstance(module, SeededDropout):
                module.reseed(seed)


def fit_size(level: Tensor, size: torch.Size) -> Tensor:
    """Resize a level whose side the strides do not divide: it comes back a little too long or too short."""
    if level.shape[-2:] == size:
        return level
    return F.interpolate(level, size=size, mode="bilinear", align_corners=False)


def build_student(teacher: Teacher, width: int = DEFAULT_WIDTH) -> Student:
    """Build the student that fits a teacher.

    Args:
        teacher: The frozen teacher, whose levels the student returns.
        width: Channels of the finest map of a built decoder. anomalib's own ResNet decoders have theirs fixed.

    Returns:
        anomalib's OCBE and decoder for a ResNet's ``layer1`` to ``layer3``, a student without up-sampling for levels of
        one stride, a pyramid for anything else.

    Raises:
        ValueError: If the levels' strides are neither all the same nor each a power of two times the one before.
    """
    architecture = teacher.backbone.split(".", 1)[0]
    names = tuple(level.name for level in teacher.levels)
    if architecture in RESNET_FAMILY and names == RESNET_LEVELS:
        bottleneck = get_bottleneck_layer(architecture)
        for unused in (bottleneck.conv4, bottleneck.bn4):  # on several devices no gradient may be missing
            unused.requires_grad_(requires_grad=False)
        return Student(bottleneck, get_decoder(architecture))
    strides = [level.stride for level in teacher.levels]
    if len(strides) > 1 and len(set(strides)) == 1:
        widths = [width * MAX_WIDENING] * len(strides)  # as wide as the pyramid at such strides
        embedding = DropoutBottleneck(teacher.levels, widths[-1])
        return Student(embedding, PyramidDecoder(teacher.levels, widths, strides[-1]))
    _check_strides(strides)
    widths = [min(width * level.stride // teacher.levels[0].stride, width * MAX_WIDENING) for level in teacher.levels]
    embedding_stride = strides[-1] * 2
    return Student(PyramidBottleneck(teacher.levels, widths), PyramidDecoder(teacher.levels, widths, embedding_stride))


def _check_strides(strides: list[int]) -> None:
    for shallow, deep in pairwise(strides):
        ratio, rest = divmod(deep, shallow)
        if rest or ratio < 2 or ratio & (ratio - 1):
            msg = f"Levels at strides {strides}: each has to be 2, 4, 8, ... times the one before, or all the same."
            raise ValueError(msg)


def conv_block(in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Return a convolution, BatchNorm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def _halvings(ratio: int) -> int:
    return ratio.bit_length() - 1


def shrink(level: Level, deep: Level, channels: int) -> nn.Sequential:
    """Return 3 x 3 convolutions that bring a level to a deeper one's size: of stride 2, or a single one of stride 1.

    Their channels double from one to the next, as in Reverse Distillation's bottleneck, and end at ``channels``.
    """
    steps = _halvings(deep.stride // level.stride)
    widths = [level.channels, *(min(level.channels * 2**i, channels) for i in range(1, steps)), channels]
    return nn.Sequential(*(conv_block(*pair, stride=2 if steps else 1) for pair in pairwise(widths)))


class PyramidBottleneck(nn.Module):
    """Fuse the levels at the deepest stride and squeeze them to twice that stride.

    Args:
        levels: The teacher's levels, shallow to deep.
        widths: Channels that each level is brought to, and of the embedding (the last).
    """

    def __init__(self, levels: Sequence[Level], widths: Sequence[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList()
        for level, width in zip(levels, widths, strict=True):
            steps = _halvings(levels[-1].stride // level.stride)
            convs = [conv_block(level.channels, width, kernel=3 if steps else 1, stride=2 if steps else 1)]
            convs += [conv_block(width, width, stride=2) for _ in range(1, steps)]
            self.branches.append(nn.Sequential(*convs))
        self.squeeze = nn.Sequential(conv_block(sum(widths), widths[-1], stride=2), conv_block(widths[-1], widths[-1]))

    def forward(self, features: list[Tensor]) -> Tensor:
        """Map the levels, each ``(B, C_l, H_l, W_l)``, to an embedding at half the deepest resolution."""
        fused = [branch(feature) for branch, feature in zip(self.branches, features, strict=True)]
        height, width = fused[-1].shape[-2:]
        return self.squeeze(torch.cat([level[..., :height, :width] for level in fused], dim=1))


class DropoutBottleneck(nn.Module):
    """Fuse levels of one stride, drop values of theirs at random and mix what is left.

    A patch's values are made out from what is left of them and of its neighbours': to pass each on as it is, an
    anomalous one too, does not do.

    Args:
        levels: The teacher's levels, all of one stride.
        width: Channels of the embedding.
    """

    def __init__(self, levels: Sequence[Level], width: int) -> None:
        super().__init__()
        self.fuse = conv_block(sum(level.channels for level in levels), width, kernel=1)
        self.drop = SeededDropout(BOTTLENECK_DROPOUT)
        self.mix = conv_block(width, width)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Map the levels, each ``(B, C_l, H, W)``, to an embedding ``(B, width, H, W)``."""
        return self.mix(self.drop(self.fuse(torch.cat(features, dim=1))))


class SeededDropout(nn.Module):
    """Dropout that draws by a seed of its own, so that a resumed training draws as an uninterrupted one.

    Args:
        share: Of the values that become 0 in training.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.seed = self.drawn = 0

    def reseed(self, seed: int) -> None:
        """Draw as after this seed, 0 or more, whatever was drawn before."""
        # neighbouring seeds are further apart than draws are many
        self.seed, self.drawn = (seed << 32) % 2**63, 0

    def forward(self, values: Tensor) -> Tensor:
        """Drop values in training, and scale the others up to keep the mean."""
        if not self.training:
            return values
        generator = torch.Generator().manual_seed(self.seed + self.drawn)
        self.drawn += 1
        kept = torch.rand(values.shape, generator=generator) >= self.share
        return values * kept.to(values.device) / (1 - self.share)


class PyramidDecoder(nn.Module):
    """Decode the embedding level by level, deep to shallow, with one head per level.

    Args:
        levels: The teacher's levels, shallow to deep. The head of a signed level is linear; that of a level that is
            never negative ends in a ReLU.
        widths: Channels of the decoder at each level.
        stride: The embedding's.
    """

    def __init__(self, levels: Sequence[Level], widths: Sequence[int], stride: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        self.heads = nn.ModuleList()
        channels = widths[-1]
        for level, width in zip(reversed(levels), reversed(widths), strict=True):
            convs: list[nn.Module] = []
            for _ in range(_halvings(stride // level.stride)):
                convs.append(_double(channels, width))
                channels = width
            self.stages.append(nn.Sequential(*convs, conv_block(width, width)))
            head = nn.Conv2d(width, level.channels, kernel_size=1)
            self.heads.append(head if level.signed else nn.Sequential(head, nn.ReLU()))
            stride = level.stride

    def forward(self, embedding: Tensor) -> list[Tensor]:
        """Map the embedding to the levels, shallow to deep."""
        levels = []
        for stage, head in zip(self.stages, self.heads, strict=True):
            embedding = stage(embedding)
            levels.append(head(embedding))
        return levels[::-1]


def _double(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(in_channels, out_channels, kernel_size=2, stride=2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )
