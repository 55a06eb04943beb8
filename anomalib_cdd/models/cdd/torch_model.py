# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Teacher and global student: what inference and every export needs, and nothing else (CDD Eq. 11)."""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from anomalib.data import InferenceBatch
from anomalib.models.components import GaussianBlur2d
from torch import Tensor, nn
from torch.nn import functional as F

from anomalib_cdd.teachers.backbones import Teacher
from anomalib_cdd.teachers.distances import pixel_cosine
from anomalib_cdd.teachers.students import DEFAULT_WIDTH, build_student
from anomalib_cdd.training.precision import full_precision

if TYPE_CHECKING:
    from anomalib.data.utils.tiler import Tiler

BLUR_SIGMA = 4.0
BLUR_KERNEL = 2 * int(4 * BLUR_SIGMA + 0.5) + 1


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
        # a Gaussian is separable: rows, then columns
        self.blur = nn.Sequential(
            GaussianBlur2d(sigma=BLUR_SIGMA, kernel_size=(BLUR_KERNEL, 1)),
            GaussianBlur2d(sigma=BLUR_SIGMA, kernel_size=(1, BLUR_KERNEL)),
        )
        # 1 - cos reaches 1 where both levels are never negative, and 2 elsewhere
        largest = 2 if any(level.signed for level in teacher.levels) else 1
        self.map_scale = 1 / (largest * len(teacher.levels))
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
        # the teacher in full precision, as in training: bf16 there costs up to .004 of AUROC, in the student nothing
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
        if self.tiler is None:
            return self.blur(self.distance_map(teacher, student, size))
        tile_size = (self.tiler.tile_size_h, self.tiler.tile_size_w)
        return self.blur(self.tiler.untile(self.distance_map(teacher, student, tile_size)))

    @torch.no_grad()
    def sample_scores(self, teacher: list[Tensor], student: list[Tensor]) -> Tensor:
        """Score training samples, images or tiles, of which the levels are at hand.

        Args:
            teacher: Levels, each ``(B, C_l, H_l, W_l)``.
            student: Levels of the same shapes, of any student.

        Returns:
            Shape ``(B,)``, in [0, 1]: the maximum of the blurred map.
        """
        height, width = (side * self.teacher.levels[0].stride for side in teacher[0].shape[-2:])
        total = torch.zeros((), device=teacher[0].device)
        with full_precision(teacher[0].device.type):
            for t, s in zip(teacher, student, strict=True):
                distances = 1 - pixel_cosine(t.float(), s.float())
                down, across = spread(t.shape[-2], height, t.device), spread(t.shape[-1], width, t.device)
                total = total + down @ distances @ across.T
        return total.amax(dim=(-2, -1)).clamp_min(0) * self.map_scale

    def distance_map(self, teacher: list[Tensor], student: list[Tensor], size: Sequence[int]) -> Tensor:
        """Return the cosine distance per pixel, summed over the levels and scaled to [0, 1].

        Args:
            teacher: Levels, each ``(B, C_l, H_l, W_l)``.
            student: Levels of the same shapes.
            size: Height and width of the map.

        Returns:
            Shape ``(B, 1, H, W)``, not blurred.
        """
        maps = [
            _stretch(1 - F.cosine_similarity(t.float(), s.float(), dim=1).unsqueeze(1), size)
            for t, s in zip(teacher, student, strict=True)
        ]
        total = torch.stack(maps).sum(dim=0).clamp_min(0) * self.map_scale
        return total.to(next(self.blur.buffers()).dtype)


@lru_cache(maxsize=16)
def spread(side: int, size: int, device: torch.device) -> Tensor:
    """Return what interpolation and blur do to a map along one of its sides: both are linear and separable.

    Args:
        side: Length of a level's side.
        size: That of the anomaly map.
        device: Where the matrix is wanted.

    Returns:
        Shape ``(size, side)``.
    """
    identity = torch.eye(side, device=device)[None, None]
    blur = GaussianBlur2d(sigma=BLUR_SIGMA, kernel_size=(BLUR_KERNEL, 1)).to(device)
    return blur(_stretch(identity, (size, side)))[0, 0]


def _stretch(maps: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=True)
