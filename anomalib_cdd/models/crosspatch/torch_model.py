# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Teacher and memory bank: patches are compared image by image, and the k-th nearest image decides."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from anomalib.data import InferenceBatch
from anomalib.models.components import DynamicBufferMixin, GaussianBlur2d
from torch import Tensor, nn
from torch.nn import functional as F

from anomalib_cdd.teachers.mixing import in_tiles
from anomalib_cdd.teachers.patches import DIMENSIONS, PatchExtractor, nearest_distances, random_projection
from anomalib_cdd.training.precision import full_precision

if TYPE_CHECKING:
    from anomalib.data.utils.tiler import Tiler

BLUR_SIGMA = 4.0
BLUR_KERNEL = 2 * int(4 * BLUR_SIGMA + 0.5) + 1


class CrossPatchModel(DynamicBufferMixin, nn.Module):
    """A frozen teacher and the patches of M training images.

    Args:
        extractor: The teacher's patches.
        agreeing_images: In how many images of the bank a patch has to be found, k.

    Attributes:
        tiler: anomalib's tiler, set by its callback. Patches are taken from each tile and put together to an image.
        memory_bank: Shape ``(M, Q, d)``.
        scale: The median distance of training patches to the other images; the score of that distance is 0.5.
    """

    memory_bank: Tensor
    scale: Tensor
    projection: Tensor

    def __init__(self, extractor: PatchExtractor, agreeing_images: int) -> None:
        super().__init__()
        self.tiler: Tiler | None = None
        self.extractor = extractor
        self.agreeing_images = agreeing_images
        self.blur = GaussianBlur2d(sigma=BLUR_SIGMA, kernel_size=(BLUR_KERNEL, BLUR_KERNEL), channels=1)
        self.register_buffer("projection", random_projection(extractor.channels, DIMENSIONS))
        self.register_buffer("memory_bank", torch.empty(0))
        self.register_buffer("scale", torch.ones(()))

    def patches(self, images: Tensor) -> Tensor:
        """Return projected patches of normalised images ``(B, 3, H, W)``, shape ``(B, d, h, w)``."""
        return in_tiles(self.tiler, images, self._patches, self.extractor.teacher.levels[self.extractor.first].stride)

    def _patches(self, images: Tensor) -> Tensor:
        # distances are differences of large numbers: not in half precision
        with full_precision(images.device.type):
            return (self.extractor(images).permute(0, 2, 3, 1) @ self.projection).permute(0, 3, 1, 2)

    def distances(self, patches: Tensor, bank: Tensor) -> Tensor:
        """Return each patch's distance to its nearest patch in the k-th nearest image.

        Args:
            patches: Shape ``(R, d)``.
            bank: Patches of M images, shape ``(M, Q, d)``; of fewer than k the last decides.

        Returns:
            Shape ``(R,)``.
        """
        nearest = nearest_distances(patches, bank)
        return nearest.topk(min(self.agreeing_images, len(bank)), dim=1, largest=False, sorted=True).values[:, -1]

    def anomaly_map(self, distances: Tensor, size: Sequence[int]) -> Tensor:
        """Stretch distances to the size of the images, blur them and scale them to [0, 1).

        Args:
            distances: Shape ``(B, h, w)``.
            size: Height and width of the images.

        Returns:
            d / (d + scale), which keeps the order; shape ``(B, 1, H, W)``.
        """
        stretched = self.blur(F.interpolate(distances[:, None], size=tuple(size), mode="bilinear"))
        return stretched / (stretched + self.scale)

    def forward(self, images: Tensor) -> InferenceBatch:
        """Score images.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``.

        Returns:
            ``anomaly_map``, shape ``(B, 1, H, W)``, and its maximum ``pred_score``, shape ``(B,)``; both in [0, 1).

        Raises:
            RuntimeError: If the bank is empty.
        """
        if not len(self.memory_bank):
            msg = "CrossPatch has no memory bank: fit it, or load a checkpoint, before it scores images."
            raise RuntimeError(msg)
        with full_precision(images.device.type):
            patches = self.patches(images.to(self.memory_bank.dtype))
            rows = patches.permute(0, 2, 3, 1).flatten(0, 2)
            found = self.distances(rows, self.memory_bank).view(-1, *patches.shape[-2:])
            anomaly_map = self.anomaly_map(found, images.shape[-2:])
        return InferenceBatch(pred_score=anomaly_map.amax(dim=(-3, -2, -1)), anomaly_map=anomaly_map)
