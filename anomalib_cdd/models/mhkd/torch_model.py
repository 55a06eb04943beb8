# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""MHKD's teacher and student: what inference and every export needs, and nothing else."""

from typing import TYPE_CHECKING

import torch
from anomalib.data import InferenceBatch
from torch import Tensor, nn
from torch.nn import functional as F

from anomalib_cdd.training.precision import full_precision

from .loss import bounded, maps, scaled
from .student import MhkdStudent, StudentFeatures

if TYPE_CHECKING:
    from anomalib.data.utils.tiler import Tiler


class MhkdModel(nn.Module):
    """A frozen teacher beside the multi-task student.

    Args:
        teacher: Maps images to one map; its ``channels`` says of how many.
        second_encoder: See :class:`MhkdStudent`.
        self_distillation: See :func:`anomalib_cdd.models.mhkd.loss.losses`.

    Attributes:
        tiler: anomalib's tiler, set by its callback. Each tile is then an image of its own to teacher and student.
        mean: Of each of the teacher's channels over the training set, shape ``(C, 1, 1)``.
        std: Likewise.
        quantiles: Of the training images' two maps, shape ``(2, 2)``, see :func:`anomalib_cdd.models.mhkd.loss.scaled`.
    """

    mean: Tensor
    std: Tensor
    quantiles: Tensor

    def __init__(self, teacher: nn.Module, second_encoder: bool = True, self_distillation: bool = True) -> None:
        super().__init__()
        self.tiler: Tiler | None = None
        self.teacher = teacher
        self.self_distillation = self_distillation
        channels: int = teacher.channels  # type: ignore[assignment]
        self.student = MhkdStudent(channels, second_encoder)
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("std", torch.ones(channels, 1, 1))
        self.register_buffer("quantiles", torch.tensor([[0.0, 1.0], [0.0, 1.0]]))

    def tiles(self, images: Tensor) -> Tensor:
        """Return what teacher and student see: the images ``(B, 3, H, W)``, or their tiles."""
        return self.tiler.tile(images) if self.tiler else images

    @torch.no_grad()
    def teacher_features(self, images: Tensor) -> Tensor:
        """Return the teacher's normalised features f_t of images or tiles ``(B, 3, H, W)``, in full precision."""
        with full_precision(images.device.type):
            return (self.teacher(images) - self.mean) / self.std

    def features(self, images: Tensor) -> tuple[Tensor, StudentFeatures]:
        """Return the features of teacher and student, each ``(B, C, H / 4, W / 4)``, of images or tiles."""
        return self.teacher_features(images), self.student(images)

    def maps(self, images: Tensor) -> Tensor:
        """Return the structural and the logical map of images or tiles ``(B, 3, H, W)``, shape ``(B, 2, h, w)``."""
        teacher, student = self.features(images)
        with full_precision(images.device.type):
            single = StudentFeatures(*(level.float() for level in student))
            return maps(teacher.float(), single, self.self_distillation)

    def forward(self, images: Tensor) -> InferenceBatch:
        """Score images (Eq. 9).

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``.

        Returns:
            ``anomaly_map``, shape ``(B, 1, H, W)``, and its maximum ``pred_score``, shape ``(B,)``; both in (0, 1).
        """
        tiles = self.tiles(images)
        values = self.maps(tiles)
        with full_precision(images.device.type):
            parts = scaled(values, self.quantiles.float())
            parts = F.interpolate(parts, size=tuple(tiles.shape[-2:]), mode="bilinear", align_corners=False)
            anomaly_map = parts.sum(dim=1, keepdim=True)
            anomaly_map = bounded(self.tiler.untile(anomaly_map) if self.tiler else anomaly_map)
        return InferenceBatch(pred_score=anomaly_map.amax(dim=(-3, -2, -1)), anomaly_map=anomaly_map)
