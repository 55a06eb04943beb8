# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Teacher and global student: what inference and every export needs, and nothing else (CDD Eq. 11)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from anomalib.data import InferenceBatch
from torch import Tensor, nn

from anomalib_cdd.teachers.anomaly_map import AnomalyMap
from anomalib_cdd.teachers.backbones import Teacher
from anomalib_cdd.teachers.students import DEFAULT_WIDTH, build_student
from anomalib_cdd.training.precision import full_precision

if TYPE_CHECKING:
    from anomalib.data.utils.tiler import Tiler


class CddModel(nn.Module):
    """A frozen teacher beside the global student.

    Args:
        teacher: The frozen teacher.
        student_width: Channels of the finest map of a student that is not anomalib's ResNet decoder.

    Attributes:
        tiler: anomalib's tiler, set by its callback. Each tile is then an image of its own to teacher and student,
            in training and in inference; the anomaly map is put together from the tiles' maps.
    """

    def __init__(
        self,
        teacher: Teacher,
        student_width: int = DEFAULT_WIDTH,
    ) -> None:
        super().__init__()
        self.tiler: Tiler | None = None
        self.teacher = teacher
        self.student = build_student(teacher, student_width)
        self.to_map = AnomalyMap.of(teacher.levels)
        # a processor's convolutions, depthwise ones above all, are faster so; whatever they put out follows
        self.to(memory_format=torch.channels_last)

    def teacher_features(self, images: Tensor) -> list[Tensor]:
        """Return the teacher's levels of normalised images ``(B, 3, H, W)``, of each tile where there is a tiler."""
        return self.teacher(self.tiler.tile(images) if self.tiler else images)

    def forward(self, images: Tensor) -> InferenceBatch:
        """Score images (Eq. 11).

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``.

        Returns:
            ``anomaly_map``, shape ``(B, 1, H, W)``, and its maximum ``pred_score``, shape ``(B,)``; both in [0, 1].
        """
        # the teacher in full precision, as in training
        with full_precision(images.device.type):
            features = self.teacher_features(images)
        reconstructed = self.student(features)
        # in full precision: bf16 has 256 values between 0.5 and 1, and scores would tie
        with full_precision(images.device.type):
            anomaly_map = self.anomaly_map(features, reconstructed, images.shape[-2:])
        return InferenceBatch(pred_score=anomaly_map.amax(dim=(-3, -2, -1)), anomaly_map=anomaly_map)

    def anomaly_map(self, teacher: list[Tensor], student: list[Tensor], size: Sequence[int]) -> Tensor:
        """Return the blurred map of images of ``size``, put together from tiles where there is a tiler.

        Args:
            teacher: Levels, each ``(B, C_l, H_l, W_l)``.
            student: Levels of the same shapes.
            size: Height and width of the images.

        Returns:
            Shape ``(B, 1, H, W)``, in [0, 1].
        """
        return self.to_map(teacher, student, size, self.tiler)

    @torch.no_grad()
    def sample_scores(self, teacher: list[Tensor], student: list[Tensor]) -> Tensor:
        """Score training samples, images or tiles, of which the levels are at hand.

        Args:
            teacher: Levels, each ``(B, C_l, H_l, W_l)``.
            student: Levels of the same shapes, of any student.

        Returns:
            Shape ``(B,)``, in [0, 1]: the maximum of the blurred map.
        """
        size = [side * self.teacher.levels[0].stride for side in teacher[0].shape[-2:]]
        with full_precision(teacher[0].device.type):
            return self.to_map.largest(teacher, student, size)
