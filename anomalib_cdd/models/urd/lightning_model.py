# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""URD: unlocking the potential of Reverse Distillation (Liu et al., AAAI 2025).

Each batch is a step of the teacher, which learns to stand out where an anomaly is, and one of the student, which learns
to reconstruct normality from it. Anomalies are synthetic.
"""

from collections.abc import Sequence

import torch
from anomalib.data import Batch
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from torch import Tensor
from torch.optim import Adam, Optimizer

from anomalib_cdd.teachers.backbones import Teacher
from anomalib_cdd.teachers.foreground import Foreground
from anomalib_cdd.teachers.students import DEFAULT_WIDTH
from anomalib_cdd.teachers.synthesis import AnomalySynthesis
from anomalib_cdd.training.defaults import LabelFreeDefaults
from anomalib_cdd.training.epochs import TakesSteps
from anomalib_cdd.training.precision import full_precision

from .loss import student_loss, teacher_loss
from .torch_model import UrdModel

IMAGE_SIZE = (256, 256)
ADAM_BETAS = (0.5, 0.999)
TEACHER_LEARNING_RATE = 1e-4
# the image's weight in the blend with a texture
BETA = (0.0, 0.8)


class Urd(TakesSteps, LabelFreeDefaults, AnomalibModule):  # type: ignore[misc]  # as anomalib's own
    """Unlocked Reverse Distillation (URD).

    The defaults are the paper's, as far as its description goes (see the README), but for textures: the paper has
    DTD's, here ``anomaly_source_path`` says where there are some.

    Args:
        backbone: timm name of the expert. The teacher begins as the same network.
        layers: Names of the expert's levels. ``None`` takes those at strides 4, 8 and 16: a ResNet's ``layer1`` to
            ``layer3``.
        pre_trained: Whether to load the expert's weights.
        weights: A local weight file for the expert, for sites without internet.
        student_width: Channels of the finest map of a student that is built for an expert outside the ResNet family.
        train_teacher: Whether there is a teacher that is trained; otherwise the expert is the teacher.
        guided_injection: Whether the student's decoder is handed the teacher's detail.
        foreground: Where anomalies are made: on the object as found by ``"grabcut"`` or ``"otsu"``; ``"auto"``, by
            GrabCut unless the image is a texture; ``"none"``, anywhere.
        anomaly_source_path: Folder of textures, such as DTD. ``None`` takes patches of other training images and noise.
        learning_rate: Adam's, for the student. The teacher's is .0001.
        audit: Whether a fit ends with ``audit/`` in its results: the training images from most to least suspicious.
        pre_processor: anomalib's, or ``True`` for resize to 256 and the expert's normalisation.
        post_processor: anomalib's, or whether to have the default.
        evaluator: anomalib's, or whether to have the default.
        visualizer: anomalib's, or whether to have the default.

    Raises:
        ValueError: If timm does not know the backbone, or it has no such levels.

    Example:
        >>> from anomalib.engine import Engine
        >>> from anomalib_cdd import MVTecNoisy, Urd
        >>> Engine().train(Urd(), datamodule=MVTecNoisy(category="bottle", noise_ratio=0.1))  # doctest: +SKIP
    """

    parts = ("student", "teacher")

    def __init__(
        self,
        backbone: str = "wide_resnet50_2.tv_in1k",
        layers: Sequence[str] | None = None,
        pre_trained: bool = True,
        weights: str | None = None,
        student_width: int = DEFAULT_WIDTH,
        train_teacher: bool = True,
        guided_injection: bool = True,
        foreground: Foreground = "auto",
        anomaly_source_path: str | None = None,
        learning_rate: float = 0.005,
        audit: bool = True,
        pre_processor: PreProcessor | bool = True,
        post_processor: PostProcessor | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        # a ListConfig in the checkpoint would not load with weights_only
        layers = None if layers is None else tuple(str(layer) for layer in layers)
        if pre_processor is True:
            pre_processor = self.configure_pre_processor(IMAGE_SIZE, IMAGE_SIZE, backbone)
        super().__init__(
            pre_processor=pre_processor,
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        expert = Teacher(backbone, layers, pre_trained, weights)
        self.model: UrdModel = UrdModel(expert, student_width, train_teacher, guided_injection)
        self.learning_rate = learning_rate
        self.synthesis = AnomalySynthesis(anomaly_source_path, foreground, BETA, two_masks=False)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Take a step of the teacher, then one of the student.

        Args:
            batch: Images of shape ``(B, 3, H, W)``, normalised.
            batch_idx: Index of the batch.
        """
        del batch_idx
        model, transform = self.model, getattr(self.pre_processor, "transform", None)
        normal, anomalous, masks = self.synthesis.of_batch(batch, model.tiler, self.current_epoch, transform)
        images = torch.cat([normal, anomalous])
        expert_normal, expert_anomalous = _halves(model.expert_features(images))

        # the teacher: stays with the expert, and turns away from normality where the mask is
        if model.teacher is not None:
            levels = _halves(list(model.teacher(images)))
            with full_precision(self.device.type):
                loss = teacher_loss(expert_normal, expert_anomalous, *levels, masks)
            self.take_step("teacher", loss)

        # the student: normality, from the teacher as it scores now
        features = model.settled_features(images)
        levels = _halves(model.student(features))
        with full_precision(self.device.type):
            loss = student_loss(expert_normal, _halves(features)[0], *levels)
        self.take_step("student", loss)

    def configure_optimizers(self) -> list[Optimizer]:
        """Return Adam for the student and, where there is one, for the teacher."""
        optimizers: list[Optimizer] = [Adam(self.model.student.parameters(), self.learning_rate, ADAM_BETAS)]
        if self.model.teacher is not None:
            optimizers.append(Adam(self.model.teacher.parameters(), TEACHER_LEARNING_RATE, ADAM_BETAS))
        return optimizers


def _halves(levels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the levels of the first half of a batch and those of the second."""
    chunks = [level.chunk(2) for level in levels]
    return [chunk[0] for chunk in chunks], [chunk[1] for chunk in chunks]
