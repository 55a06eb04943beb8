# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""DMDD's teacher, student and segmentation head: what inference and every export needs, and nothing else."""

from typing import TYPE_CHECKING

import torch
from anomalib.data import InferenceBatch
from torch import Tensor, nn

from anomalib_cdd.teachers.backbones import Teacher
from anomalib_cdd.training.precision import full_precision

from .loss import distances, image_score
from .segmentation import SegmentationHead
from .student import Branches, DecoupledStudent, Levels, resize

if TYPE_CHECKING:
    from anomalib.data.utils.tiler import Tiler

# of 1 - cos
LARGEST_DISTANCE = 2.0


class DmddModel(nn.Module):
    """A frozen teacher beside its decoupled student and the head that fuses their distances.

    Args:
        teacher: The frozen teacher.
        branches: Whose distances are used (Table 4).
        pyramid_paths: See :class:`DecoupledStudent`.
        segmentation: Whether a head is learned; otherwise the map is the plain mean of all distances (Table 5, MSN).
        pyramid_upsampling: See :class:`SegmentationHead`.
        multi_perception: See :class:`SegmentationHead`.

    Attributes:
        tiler: anomalib's tiler, set by its callback. Each tile is then an image of its own; the map is put together.
    """

    def __init__(
        self,
        teacher: Teacher,
        branches: Branches = "both",
        pyramid_paths: int = 2,
        segmentation: bool = True,
        pyramid_upsampling: bool = True,
        multi_perception: bool = True,
    ) -> None:
        super().__init__()
        self.tiler: Tiler | None = None
        self.teacher = teacher
        self.student = DecoupledStudent(teacher, pyramid_paths, branches)
        self.uses_normality, self.uses_abnormality = branches != "abnormality", branches != "normality"
        self.head = (
            SegmentationHead(
                len(teacher.levels), self.uses_normality, self.uses_abnormality, pyramid_upsampling, multi_perception
            )
            if segmentation
            else None
        )

    def tiles(self, images: Tensor) -> Tensor:
        """Return what teacher and student see: the images ``(B, 3, H, W)``, or their tiles."""
        return self.tiler.tile(images) if self.tiler else images

    @torch.no_grad()
    def teacher_features(self, images: Tensor) -> Levels:
        """Return the teacher's levels of images or tiles ``(B, 3, H, W)``, in full precision."""
        with full_precision(images.device.type):
            return self.teacher(images)

    def distances(self, teacher: Levels, images: Tensor) -> tuple[Levels, Levels]:
        """Return the distance maps ``(B, 1, H_l, W_l)`` of both branches; none of one that is not used.

        Args:
            teacher: The teacher's levels of the images.
            images: Images or tiles, shape ``(B, 3, H, W)``.
        """
        normality, abnormality = self.student(images)
        with full_precision(images.device.type):
            return (
                distances(teacher, normality) if self.uses_normality else [],
                distances(teacher, abnormality) if self.uses_abnormality else [],
            )

    @torch.no_grad()
    def settled_distances(self, teacher: Levels, images: Tensor) -> tuple[Levels, Levels]:
        """Return the distance maps as the student will score, by BatchNorm's running statistics, in a training too."""
        training = self.student.training
        self.student.eval()
        maps = self.distances(teacher, images)
        self.student.train(training)
        return maps

    def forward(self, images: Tensor) -> InferenceBatch:
        """Score images.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``, of 100 pixels or more.

        Returns:
            ``anomaly_map``, shape ``(B, 1, H, W)``, and ``pred_score``, the mean of its 100 largest values, shape
            ``(B,)``; both in [0, 1].
        """
        tiles = self.tiles(images)
        normality, abnormality = self.distances(self.teacher_features(tiles), tiles)
        with full_precision(images.device.type):
            anomaly_map = self.anomaly_map(normality, abnormality, tiles)
            anomaly_map = self.tiler.untile(anomaly_map) if self.tiler else anomaly_map
            return InferenceBatch(pred_score=image_score(anomaly_map), anomaly_map=anomaly_map)

    def anomaly_map(self, normality: Levels, abnormality: Levels, images: Tensor) -> Tensor:
        """Fuse distance maps to one of the images' size, shape ``(B, 1, H, W)``, in [0, 1]."""
        size = images.shape[-2:]
        if self.head is not None:
            return self.head(normality, abnormality, size)
        maps = torch.cat([resize(level, size) for level in (*normality, *abnormality)], dim=1)
        return (maps.mean(dim=1, keepdim=True) / LARGEST_DISTANCE).clamp(0, 1)
