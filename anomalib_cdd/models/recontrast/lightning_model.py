# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""ReContrast: anomaly detection via contrastive reconstruction (Guo et al., NeurIPS 2023).

Reverse Distillation whose encoder is fitted to the images: a trained and a frozen encoder, and one student that
reconstructs each from the other.
"""

from collections.abc import Sequence
from typing import cast

from anomalib.data import Batch
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from torch import Tensor
from torch.optim import AdamW, Optimizer

from anomalib_cdd.teachers.anomaly_map import check_sides
from anomalib_cdd.teachers.backbones import Teacher
from anomalib_cdd.teachers.students import DEFAULT_WIDTH
from anomalib_cdd.training.defaults import LabelFreeDefaults
from anomalib_cdd.training.epochs import TrainsByEpochs
from anomalib_cdd.training.finite import StopsWhenNotFinite, check_finite
from anomalib_cdd.training.precision import full_precision

from .loss import contrast, mining_threshold
from .torch_model import ReContrastModel

IMAGE_SIZE = (256, 256)
ENCODER_LEARNING_RATE = 1e-5
WEIGHT_DECAY = 1e-5


class ReContrast(StopsWhenNotFinite, TrainsByEpochs, LabelFreeDefaults, AnomalibModule):  # type: ignore[misc]  # as anomalib's own
    """ReContrast: domain-specific anomaly detection via contrastive reconstruction.

    The defaults are the paper's; it counts 2,000 steps, here they are epochs unless ``max_steps`` is given.

    Args:
        backbone: timm name of the encoders.
        layers: Names of the encoders' levels. ``None`` takes those at strides 4, 8 and 16: a ResNet's ``layer1`` to
            ``layer3``.
        pre_trained: Whether to load the encoders' weights.
        weights: A local weight file for the encoders, for sites without internet.
        student_width: Channels of the finest map of a student that is built for an encoder outside the ResNet family.
        hard_mining: Whether pixels that are easy in their batch have no gradient.
        train_batch_norm: Whether BatchNorm of the trained encoder takes a batch's statistics in training.
        learning_rate: AdamW's, for the student. The trained encoder's is .00001.
        audit: Whether a fit ends with ``audit/`` in its results: the training images from most to least suspicious.
        pre_processor: anomalib's, or ``True`` for resize to 256 and the encoders' normalisation.
        post_processor: anomalib's, or whether to have the default.
        evaluator: anomalib's, or whether to have the default.
        visualizer: anomalib's, or whether to have the default.

    Raises:
        ValueError: If timm does not know the backbone, or it has no such levels.

    Example:
        >>> from anomalib.engine import Engine
        >>> from anomalib_cdd import MVTecNoisy, ReContrast
        >>> Engine().train(ReContrast(), datamodule=MVTecNoisy(category="bottle", noise_ratio=0.1))  # doctest: +SKIP
    """

    several_rates = True

    def __init__(
        self,
        backbone: str = "wide_resnet50_2.tv_in1k",
        layers: Sequence[str] | None = None,
        pre_trained: bool = True,
        weights: str | None = None,
        student_width: int = DEFAULT_WIDTH,
        hard_mining: bool = True,
        train_batch_norm: bool = True,
        learning_rate: float = 2e-3,
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
        teacher = Teacher(backbone, layers, pre_trained, weights)
        self.model: ReContrastModel = ReContrastModel(teacher, student_width, train_batch_norm)
        self.hard_mining = hard_mining
        self.learning_rate = learning_rate

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch.

        Args:
            batch: Images of shape ``(B, 3, H, W)``, normalised.
            batch_idx: Index of the batch.
        """
        del batch_idx
        tiles = self.model.tiles(cast("Tensor", batch.image))
        check_sides(*tiles.shape[-2:])
        alpha = None
        if self.hard_mining:
            alpha = mining_threshold(self.trainer.global_step, self.trainer.estimated_stepping_batches)
        levels = self.model.reconstruct(tiles)
        with full_precision(self.device.type):
            loss = contrast(*levels, alpha)
        with self.finite("the step of student and encoder"):
            check_finite(loss=loss.detach())
        self.log("train_loss", loss.detach(), on_epoch=True, prog_bar=True, batch_size=len(tiles))
        return loss

    def configure_optimizers(self) -> Optimizer:
        """Return AdamW for the student and, at a rate of its own, for the trained encoder.

        Raises:
            ValueError: If hard mining is on and the training has no end.
        """
        if self.hard_mining and self.trainer.estimated_stepping_batches == float("inf"):
            msg = (
                "max_epochs is -1: ReContrast's hard mining has a threshold that rises over the first tenth of the "
                "training. Set max_epochs or max_steps."
            )
            raise ValueError(msg)
        groups = [
            {"params": self.model.student.parameters(), "lr": self.learning_rate},
            {"params": self.model.encoder.parameters(), "lr": ENCODER_LEARNING_RATE},
        ]
        return AdamW(groups, weight_decay=WEIGHT_DECAY)
