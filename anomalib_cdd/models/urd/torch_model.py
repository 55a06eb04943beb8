# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""URD's expert, teacher and student; inference and exports need the latter two."""

import copy
from typing import TYPE_CHECKING

import torch
from anomalib.data import InferenceBatch
from torch import Tensor, nn

from anomalib_cdd.teachers.anomaly_map import AnomalyMap
from anomalib_cdd.teachers.backbones import Teacher
from anomalib_cdd.teachers.students import DEFAULT_WIDTH, build_student
from anomalib_cdd.training.precision import full_precision

from .student import InjectedStudent

if TYPE_CHECKING:
    from anomalib.data.utils.tiler import Tiler


class UrdModel(nn.Module):
    """A frozen expert, a teacher that begins as its copy, and the teacher's student.

    Args:
        expert: The frozen network E.
        student_width: Channels of the finest map of a student that is not anomalib's ResNet decoder.
        train_teacher: Whether there is a teacher T of its own; otherwise the expert is the teacher.
        guided_injection: Whether the student's decoder is handed the teacher's detail.

    Attributes:
        tiler: anomalib's tiler, set by its callback. Each tile is then an image of its own; the map is put together.
    """

    def __init__(
        self,
        expert: Teacher,
        student_width: int = DEFAULT_WIDTH,
        train_teacher: bool = True,
        guided_injection: bool = True,
    ) -> None:
        super().__init__()
        self.tiler: Tiler | None = None
        self.expert = expert
        self.teacher = (
            copy.deepcopy(expert.network).requires_grad_(requires_grad=True).train() if train_teacher else None
        )
        self.student = (InjectedStudent if guided_injection else build_student)(expert, student_width)
        self.to_map = AnomalyMap.of(expert.levels)

    @torch.no_grad()
    def expert_features(self, images: Tensor) -> list[Tensor]:
        """Return the expert's levels of images or tiles ``(B, 3, H, W)``, in full precision."""
        with full_precision(images.device.type):
            return self.expert(images)

    @torch.no_grad()
    def teacher_features(self, images: Tensor) -> list[Tensor]:
        """Return the teacher's levels of images or tiles ``(B, 3, H, W)``, in full precision."""
        if self.teacher is None:
            return self.expert_features(images)
        with full_precision(images.device.type):
            return list(self.teacher(images))

    def settled_features(self, images: Tensor) -> list[Tensor]:
        """Return the teacher's levels as it will score, by BatchNorm's running statistics, in a training too."""
        if self.teacher is None or not self.training:
            return self.teacher_features(images)
        self.teacher.eval()
        features = self.teacher_features(images)
        self.teacher.train()
        return features

    def forward(self, images: Tensor) -> InferenceBatch:
        """Score images by how far the student is from the teacher.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``.

        Returns:
            ``anomaly_map``, shape ``(B, 1, H, W)``, and its maximum ``pred_score``, shape ``(B,)``; both in [0, 1].
        """
        features = self.teacher_features(self.tiler.tile(images) if self.tiler else images)
        reconstructed = self.student(features)
        with full_precision(images.device.type):
            anomaly_map = self.to_map(features, reconstructed, images.shape[-2:], self.tiler)
        return InferenceBatch(pred_score=anomaly_map.amax(dim=(-3, -2, -1)), anomaly_map=anomaly_map)
