# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""DMDD: dual-modelling decouple distillation (Liu et al., ACM MM 2024).

The student learns from pairs of an image and the same image with a synthetic anomaly; after each of its steps the head
that fuses its maps takes one on the same pairs, by the student as it then scores.
"""

from collections.abc import Sequence

import torch
from anomalib.data import Batch
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from torch.optim import Adam, Optimizer

from anomalib_cdd.teachers.backbones import Teacher
from anomalib_cdd.teachers.foreground import Foreground
from anomalib_cdd.teachers.synthesis import AnomalySynthesis
from anomalib_cdd.training.defaults import LabelFreeDefaults
from anomalib_cdd.training.epochs import TakesSteps
from anomalib_cdd.training.finite import check_finite
from anomalib_cdd.training.precision import full_precision

from .loss import distances, guidance, inverse_mimicking, segmentation
from .student import Branches
from .torch_model import DmddModel

IMAGE_SIZE = (256, 256)
STRIDES = (4, 8, 16, 32)
ADAM_BETAS = (0.5, 0.999)
HEAD_LEARNING_RATE = 1e-3
# the image's weight in the blend with a texture
BETA = (0.0, 0.8)


class Dmdd(TakesSteps, LabelFreeDefaults, AnomalibModule):  # type: ignore[misc]  # as anomalib's own
    """Dual-Modelling Decouple Distillation (DMDD).

    The defaults are the paper's where it has them, but for the learning rate, when the head takes its steps, and
    textures: the paper has DTD's, here ``anomaly_source_path`` says where there are some.

    Args:
        backbone: timm name of the teacher, a CNN. The student begins as the same network.
        layers: Names of the teacher's levels, two or more. ``None`` takes those at strides 4, 8, 16 and 32: a ResNet's
            ``layer1`` to ``layer4``.
        pre_trained: Whether to load the teacher's weights.
        weights: A local weight file for the teacher, for sites without internet.
        branches: Which branch is trained and scores, or both (Table 4).
        pyramid_paths: Fusion paths of each branch's pyramid: 0; 1, the inner one; 2, the outer one too (Table 4).
        segmentation: Whether a head is learned; otherwise maps are averaged (Table 5, MSN).
        pyramid_upsampling: Whether the head hands maps from level to level (Table 5, PU).
        multi_perception: Whether the head weights maps by channel, by place and by both (Table 5, MM).
        foreground: Where anomalies are made: on the object as found by ``"grabcut"`` or ``"otsu"``; ``"auto"``, by
            GrabCut unless the image is a texture; ``"none"``, anywhere (Table 5, FAS).
        anomaly_source_path: Folder of textures, such as DTD. ``None`` takes patches of other training images and noise.
        learning_rate: Adam's, for the student. The head's is .001.
        audit: Whether a fit ends with ``audit/`` in its results: the training images from most to least suspicious.
        pre_processor: anomalib's, or ``True`` for resize to 256 and the teacher's normalisation.
        post_processor: anomalib's, or whether to have the default.
        evaluator: anomalib's, or whether to have the default.
        visualizer: anomalib's, or whether to have the default.

    Raises:
        ValueError: If an option is out of its range, or the teacher has too few levels.

    Example:
        >>> from anomalib.engine import Engine
        >>> from anomalib_cdd import Dmdd, MVTecNoisy
        >>> Engine().train(Dmdd(), datamodule=MVTecNoisy(category="bottle", noise_ratio=0.1))  # doctest: +SKIP
    """

    parts = ("student", "head")

    def __init__(
        self,
        backbone: str = "wide_resnet50_2.tv_in1k",
        layers: Sequence[str] | None = None,
        pre_trained: bool = True,
        weights: str | None = None,
        branches: Branches = "both",
        pyramid_paths: int = 2,
        segmentation: bool = True,
        pyramid_upsampling: bool = True,
        multi_perception: bool = True,
        foreground: Foreground = "auto",
        anomaly_source_path: str | None = None,
        learning_rate: float = 1e-4,
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
        _check(branches, pyramid_paths)
        teacher = Teacher(backbone, layers, pre_trained, weights, STRIDES)
        if len(teacher.levels) < 2 or len({level.stride for level in teacher.levels}) < 2:
            names = [level.name for level in teacher.levels]
            msg = f"Levels {names} of {backbone!r}: DMDD's pyramids need a CNN's, at two strides or more."
            raise ValueError(msg)
        self.model: DmddModel = DmddModel(
            teacher, branches, pyramid_paths, segmentation, pyramid_upsampling, multi_perception
        )
        self.learning_rate = learning_rate
        self.synthesis = AnomalySynthesis(anomaly_source_path, foreground, BETA, two_masks=False)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Take a step of the student, then one of the head.

        Args:
            batch: Images of shape ``(B, 3, H, W)``, normalised.
            batch_idx: Index of the batch.
        """
        del batch_idx
        model, transform = self.model, getattr(self.pre_processor, "transform", None)
        normal, anomalous, masks = self.synthesis.of_batch(batch, model.tiler, self.current_epoch, transform)
        images, masks = torch.cat([normal, anomalous]), torch.cat([torch.zeros_like(masks), masks])
        teacher = model.teacher_features(images)

        # the student: normality as of the normal image, abnormality unlike the teacher's where the mask is
        normality, abnormality = model.student(images)
        loss = torch.zeros((), device=self.device)
        with full_precision(self.device.type):
            if model.uses_normality:
                target = [level[: len(normal)] for level in teacher]
                of_normal, of_anomalous = zip(*(level.chunk(2) for level in normality), strict=True)
                loss = loss + guidance(distances(target, of_normal), distances(target, of_anomalous))
            if model.uses_abnormality:
                loss = loss + 2 * inverse_mimicking(distances(teacher, abnormality), masks)  # both images' means
        self.take_step("student", loss)

        # the head, by the student as it scores now
        if model.head is not None:
            maps = model.settled_distances(teacher, images)
            with full_precision(self.device.type), self.finite("the head's step"):
                anomaly_map = model.anomaly_map(*maps, images)
                check_finite(**{"the anomaly map": anomaly_map})
                loss = segmentation(anomaly_map, masks.float())
            self.take_step("head", loss)

    def configure_optimizers(self) -> list[Optimizer]:
        """Return Adam for the student and, where there is one, for the head."""
        optimizers: list[Optimizer] = [Adam(self.model.student.parameters(), self.learning_rate, ADAM_BETAS)]
        if self.model.head is not None:
            optimizers.append(Adam(self.model.head.parameters(), HEAD_LEARNING_RATE, ADAM_BETAS))
        return optimizers


def _check(branches: str, pyramid_paths: int) -> None:
    """Refuse options out of range.

    Raises:
        ValueError: Naming the option and its value.
    """
    if branches not in {"both", "normality", "abnormality"}:
        msg = f"branches is {branches!r}; it has to be one of both, normality, abnormality."
        raise ValueError(msg)
    if pyramid_paths not in {0, 1, 2}:
        msg = f"pyramid_paths is {pyramid_paths}; it has to be 0, 1 or 2."
        raise ValueError(msg)
