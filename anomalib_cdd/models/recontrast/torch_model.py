# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""ReContrast's two encoders and their student: what inference and every export needs, and nothing else."""

import copy
from typing import TYPE_CHECKING, NamedTuple

import torch
from anomalib.data import InferenceBatch
from torch import Tensor, nn

from anomalib_cdd.teachers.anomaly_map import AnomalyMap
from anomalib_cdd.teachers.backbones import Teacher
from anomalib_cdd.teachers.students import DEFAULT_WIDTH, build_student
from anomalib_cdd.training.precision import full_precision

if TYPE_CHECKING:
    from anomalib.data.utils.tiler import Tiler


class Reconstructions(NamedTuple):
    """Levels of both encoders, and what the student makes of each; every level ``(B, C_l, H_l, W_l)``."""

    frozen: list[Tensor]
    trained: list[Tensor]
    of_trained: list[Tensor]
    of_frozen: list[Tensor]


class ReContrastModel(nn.Module):
    """A frozen encoder, a copy of it that is trained, and one student for both.

    Args:
        teacher: The frozen encoder E0.
        student_width: Channels of the finest map of a student that is not anomalib's ResNet decoder.
        train_batch_norm: Whether BatchNorm of the trained encoder E takes a batch's statistics in training; otherwise
            it keeps those that it came with.

    Attributes:
        tiler: anomalib's tiler, set by its callback. Each tile is then an image of its own; the map is put together.
    """

    def __init__(self, teacher: Teacher, student_width: int = DEFAULT_WIDTH, train_batch_norm: bool = True) -> None:
        super().__init__()
        self.tiler: Tiler | None = None
        self.teacher = teacher
        self.encoder = copy.deepcopy(teacher.network).requires_grad_(requires_grad=True)
        _freeze_unused(self.encoder, 4 * max(level.stride for level in teacher.levels))
        self.student = build_student(teacher, student_width)
        self.train_batch_norm = train_batch_norm
        self.to_map = AnomalyMap.of(teacher.levels * 2)
        self.train()  # the frozen encoder's network is in evaluation mode, and so is the copy until told otherwise

    def train(self, mode: bool = True) -> "ReContrastModel":
        """Set the mode of the student and of the trained encoder, whose BatchNorm may stay as it is."""
        super().train(mode)
        if not self.train_batch_norm:
            for module in self.encoder.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):  # noqa: SLF001  # torch's base of all of them
                    module.eval()
        return self

    def tiles(self, images: Tensor) -> Tensor:
        """Return what the encoders see: the images ``(B, 3, H, W)``, or their tiles."""
        return self.tiler.tile(images) if self.tiler else images

    def reconstruct(self, images: Tensor) -> Reconstructions:
        """Return both encoders' levels of images or tiles, and what the student makes of them.

        In training it sees both in one batch, whose statistics its BatchNorm takes.
        """
        with torch.no_grad(), full_precision(images.device.type):
            frozen = self.teacher(images)
        trained = list(self.encoder(images))
        if not self.training:
            return Reconstructions(frozen, trained, self.student(trained), self.student(frozen))
        both = self.student([torch.cat([t.float(), f]) for t, f in zip(trained, frozen, strict=True)])
        halves = [level.chunk(2) for level in both]
        return Reconstructions(frozen, trained, [half[0] for half in halves], [half[1] for half in halves])

    def forward(self, images: Tensor) -> InferenceBatch:
        """Score images by how far each encoder's reconstruction is from the other encoder.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``.

        Returns:
            ``anomaly_map``, shape ``(B, 1, H, W)``, and its maximum ``pred_score``, shape ``(B,)``; both in [0, 1].
        """
        levels = self.reconstruct(self.tiles(images))
        with full_precision(images.device.type):
            encoders, outputs = levels.frozen + levels.trained, levels.of_trained + levels.of_frozen
            anomaly_map = self.to_map(encoders, outputs, images.shape[-2:], self.tiler)
        return InferenceBatch(pred_score=anomaly_map.amax(dim=(-3, -2, -1)), anomaly_map=anomaly_map)


@torch.enable_grad()
def _freeze_unused(encoder: nn.Module, side: int) -> None:
    """Freeze what no level has a gradient for, such as layers beyond the last: DDP refuses such parameters."""
    parameters = list(encoder.parameters())
    total = torch.stack([level.sum() for level in encoder(torch.zeros(1, 3, side, side))]).sum()
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)
