# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Teacher, patches of many levels and the bank of InReaCh: what inference and every export needs, and nothing else."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from anomalib.data import InferenceBatch
from anomalib.models.components import DynamicBufferMixin
from torch import Tensor, nn

from anomalib_cdd.teachers.backbones import Teacher
from anomalib_cdd.teachers.bank import PatchBank
from anomalib_cdd.teachers.mixing import channel_pooling, in_tiles, mixed_patches
from anomalib_cdd.teachers.patches import DIMENSIONS, random_projection
from anomalib_cdd.training.precision import full_precision

if TYPE_CHECKING:
    from anomalib.data.utils.tiler import Tiler

CHANNELS = 1024
STRIDE = 4
# pixels of the map's blur for each pixel of the image's side: 13 at 224
BLUR_SHARE = 13 / 224
POSITION_RANGE = 5.0
RESNET_STAGES = ("layer1", "layer2", "layer3", "layer4")


class BlockTeacher(nn.Module):
    """A teacher with many levels: of a ResNet every block of layer1 to layer3 and the first of layer4.

    Any other teacher, and a ResNet of which levels are named, gives the levels that timm names.

    Args:
        backbone: timm name.
        layers: Names of levels; ``None`` takes all.
        pre_trained: Whether to load weights.
        weights: A local weight file.

    Raises:
        ValueError: If no level has stride 4.
    """

    def __init__(self, backbone: str, layers: Sequence[str] | None, pre_trained: bool, weights: str | None) -> None:
        super().__init__()
        known = [level["module"] for level in Teacher(backbone, pre_trained=False).network.feature_info.info]  # type: ignore[union-attr]
        self.by_block = layers is None and set(RESNET_STAGES) <= set(known)
        taken = RESNET_STAGES if self.by_block else layers or known
        self.teacher = Teacher(backbone, taken, pre_trained, weights)
        strides = {level.name: level.stride for level in self.teacher.levels}
        if STRIDE not in strides.values():
            msg = (
                f"Backbone {backbone!r} has levels {strides}, none of stride {STRIDE}: InReaCh needs the one on whose "
                "grid its patches lie. Name it in `layers`, or choose another backbone."
            )
            raise ValueError(msg)
        with torch.no_grad():
            self.channels = [level.shape[1] for level in self(torch.zeros(1, 3, 64, 64))]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the levels, each ``(B, C_l, H_l, W_l)``, shallow to deep."""
        if not self.by_block:
            return self.teacher(images)
        levels = []
        for name, stage in self.teacher.network.items():  # type: ignore[operator]  # timm's FeatureListNet, a ModuleDict
            if name not in RESNET_STAGES:
                images = stage(images)
                continue
            for block in list(stage)[: 1 if name == RESNET_STAGES[-1] else None]:
                images = block(images)
                levels.append(images)
        return levels


class InReachModel(DynamicBufferMixin, nn.Module):
    """A frozen teacher beside a bank of patches that were found again in other images.

    Args:
        teacher: The frozen teacher.

    Attributes:
        mixing: Shape ``(C, channels of all levels)``: the pooling to 1,024 channels and, for a large training set, a
            random projection to 192.
        position_range: Largest value of the row and of the column that are appended to each patch; 0 for none.
        tiler: anomalib's tiler, set by its callback. The teacher then sees tiles; their patch grids are put together
            before anything is compared.
    """

    def __init__(self, teacher: BlockTeacher) -> None:
        super().__init__()
        self.tiler: Tiler | None = None
        self.teacher = teacher
        self.bank = PatchBank(sigma=BLUR_SHARE * 224)
        self.mixing: Tensor
        self.position_range: Tensor
        self.register_buffer("mixing", channel_pooling(sum(teacher.channels), CHANNELS))
        self.register_buffer("position_range", torch.zeros(()))

    def mix(self, projected: bool) -> None:
        """Pool the channels of all levels and, if ``projected``, project them at random."""
        mixing = channel_pooling(sum(self.teacher.channels), CHANNELS)
        if projected:
            mixing = random_projection(len(mixing), DIMENSIONS).T @ mixing
        self.mixing = mixing.to(self.mixing.device)

    def patches(self, images: Tensor) -> Tensor:
        """Return the patches ``(B, C, H / 4, W / 4)`` of normalised images ``(B, 3, H, W)``, without positions."""
        return in_tiles(self.tiler, images, self._patches, STRIDE)

    def _patches(self, images: Tensor) -> Tensor:
        with full_precision(images.device.type):
            size = [-(-side // STRIDE) for side in images.shape[-2:]]
            return mixed_patches(self.teacher(images), self.mixing, size)

    def positions(self, height: int, width: int) -> Tensor:
        """Return row and column of each patch of a grid, from 0 to ``position_range``, shape ``(2, h, w)``."""
        rows = torch.arange(height, device=self.mixing.device) * (self.position_range / (height - 1))
        columns = torch.arange(width, device=self.mixing.device) * (self.position_range / (width - 1))
        return torch.stack([rows[:, None].expand(height, width), columns[None].expand(height, width)])

    def forward(self, images: Tensor) -> InferenceBatch:
        """Score images: see :class:`~anomalib_cdd.teachers.bank.PatchBank`.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``.

        Returns:
            ``anomaly_map``, shape ``(B, 1, H, W)``, and its maximum ``pred_score``, shape ``(B,)``; both in [0, 1).
        """
        with full_precision(images.device.type), torch.no_grad():
            patches = self.patches(images)
            # `len` would be a constant of an exported graph
            positions = self.positions(*patches.shape[-2:]).expand(patches.shape[0], -1, -1, -1)
            return self.bank(torch.cat([patches, positions], dim=1), images.shape[-2:])
