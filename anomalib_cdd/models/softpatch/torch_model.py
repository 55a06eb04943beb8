# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Teacher, patches and the weighted bank of SoftPatch: what inference and every export needs, and nothing else."""

from typing import TYPE_CHECKING

import torch
from anomalib.data import InferenceBatch
from torch import Tensor, nn
from torch.nn import functional as F

from anomalib_cdd.teachers.bank import PatchBank
from anomalib_cdd.teachers.mixing import channel_pooling, in_tiles
from anomalib_cdd.teachers.patches import PatchExtractor
from anomalib_cdd.training.precision import full_precision

if TYPE_CHECKING:
    from anomalib.data.utils.tiler import Tiler

CHANNELS = 1024
BLUR_SIGMA = 4.0


class SoftPatchModel(nn.Module):
    """A frozen teacher beside a bank of weighted patches.

    Args:
        extractor: The teacher's patches.

    Attributes:
        tiler: anomalib's tiler, set by its callback. The teacher then sees tiles; their patch grids are put together
            before anything is compared, so that a patch's place is that in the whole image.
    """

    def __init__(self, extractor: PatchExtractor) -> None:
        super().__init__()
        self.tiler: Tiler | None = None
        self.extractor = extractor
        self.bank = PatchBank(BLUR_SIGMA)
        self.pooling: Tensor
        self.register_buffer("pooling", channel_pooling(extractor.channels, CHANNELS), persistent=False)

    def patches(self, images: Tensor) -> Tensor:
        """Return the patches ``(B, C, h, w)``, C at most 1,024, of normalised images ``(B, 3, H, W)``."""
        return in_tiles(self.tiler, images, self._patches, self.extractor.teacher.levels[self.extractor.first].stride)

    def _patches(self, images: Tensor) -> Tensor:
        with full_precision(images.device.type):
            found = self.extractor(images)
            return found if found.shape[1] <= CHANNELS else F.conv2d(found, self.pooling[:, :, None, None])

    def forward(self, images: Tensor) -> InferenceBatch:
        """Score images: see :class:`~anomalib_cdd.teachers.bank.PatchBank`.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``.

        Returns:
            ``anomaly_map``, shape ``(B, 1, H, W)``, and its maximum ``pred_score``, shape ``(B,)``; both in [0, 1).
        """
        with full_precision(images.device.type), torch.no_grad():
            return self.bank(self.patches(images), images.shape[-2:])
