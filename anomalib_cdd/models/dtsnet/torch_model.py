# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""DTSNet's teacher, student and reconstruction: what inference and every export needs, and nothing else."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from anomalib.data import InferenceBatch
from torch import Tensor, nn

from anomalib_cdd.teachers.anomaly_map import AnomalyMap
from anomalib_cdd.teachers.backbones import Teacher
from anomalib_cdd.teachers.students import DEFAULT_WIDTH, build_student
from anomalib_cdd.training.precision import full_precision

from .fusion import with_fusion
from .perturbation import attention, perturb

if TYPE_CHECKING:
    from anomalib.data.utils.tiler import Tiler


class DtsnetModel(nn.Module):
    """A frozen teacher beside a student and, after the student, a reconstruction of what noise has hidden.

    Args:
        teacher: The frozen teacher.
        student_width: Channels of the finest map of a student that is not anomalib's ResNet decoder.
        multiscale_fusion: Whether levels are weighted and summed; otherwise the bottleneck is Reverse Distillation's.
        perturbation: Whether the student's levels are perturbed and reconstructed.
        score_layers: Names of the levels whose distances make the map; ``None`` takes all.

    Attributes:
        tiler: anomalib's tiler, set by its callback. Each tile is then an image of its own; the map is put together.

    Raises:
        ValueError: If the teacher has no such levels.
    """

    def __init__(
        self,
        teacher: Teacher,
        student_width: int = DEFAULT_WIDTH,
        multiscale_fusion: bool = True,
        perturbation: bool = True,
        score_layers: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.tiler: Tiler | None = None
        self.teacher = teacher
        student = build_student(teacher, student_width)
        self.student = with_fusion(student, teacher) if multiscale_fusion else student
        self.reconstruction = (
            nn.ModuleList(_reconstruction(level.channels) for level in teacher.levels) if perturbation else None
        )
        self.scored = _places([level.name for level in teacher.levels], score_layers)
        # the reconstruction ends in a convolution, whatever the teacher's signs
        signed = perturbation or any(level.signed for level in teacher.levels)
        self.to_map = AnomalyMap(signed, len(self.scored))

    @torch.no_grad()
    def teacher_features(self, images: Tensor) -> list[Tensor]:
        """Return the teacher's levels of images or tiles ``(B, 3, H, W)``, in full precision."""
        with full_precision(images.device.type):
            return self.teacher(images)

    def reconstruct(self, features: list[Tensor], noisy: bool) -> list[Tensor]:
        """Return what student and reconstruction make of the teacher's levels, of the same shapes (Eq. 6, 7).

        Args:
            features: Levels, each ``(B, C_l, H_l, W_l)``.
            noisy: Whether the student's levels are perturbed on their way.
        """
        levels = self.student(features)
        if self.reconstruction is None:
            return levels
        if noisy:
            levels = [perturb(level, attention(f)) for level, f in zip(levels, features, strict=True)]
        return [block(level) for block, level in zip(self.reconstruction, levels, strict=True)]

    def forward(self, images: Tensor) -> InferenceBatch:
        """Score images (Eq. 9).

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``.

        Returns:
            ``anomaly_map``, shape ``(B, 1, H, W)``, and its maximum ``pred_score``, shape ``(B,)``; both in [0, 1].
        """
        features = self.teacher_features(self.tiler.tile(images) if self.tiler else images)
        reconstructed = self.reconstruct(features, noisy=False)
        with full_precision(images.device.type):
            pairs = ([levels[i] for i in self.scored] for levels in (features, reconstructed))
            anomaly_map = self.to_map(*pairs, images.shape[-2:], self.tiler)
        return InferenceBatch(pred_score=anomaly_map.amax(dim=(-3, -2, -1)), anomaly_map=anomaly_map)


def _reconstruction(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, channels, 3, padding=1),
    )


def _places(names: list[str], chosen: Sequence[str] | None) -> list[int]:
    if chosen is None:
        return list(range(len(names)))
    unknown = [name for name in chosen if name not in names]
    if unknown or not chosen:
        msg = f"score_layers is {list(chosen)}; it has to name one or more of the teacher's levels {names}."
        raise ValueError(msg)
    return sorted(names.index(name) for name in chosen)
