# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""DTSNet: a denoising teacher-student network (Lin et al.).

Reverse Distillation whose student sees a synthetic anomaly and learns what the teacher says of the normal image.
"""

from collections.abc import Sequence

from anomalib.data import Batch
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from torch import Tensor
from torch.optim import Adam, Optimizer

from anomalib_cdd.teachers.backbones import Teacher
from anomalib_cdd.teachers.distances import distance
from anomalib_cdd.teachers.foreground import Foreground
from anomalib_cdd.teachers.students import DEFAULT_WIDTH
from anomalib_cdd.teachers.synthesis import AnomalySynthesis
from anomalib_cdd.training.defaults import LabelFreeDefaults
from anomalib_cdd.training.epochs import TrainsByEpochs
from anomalib_cdd.training.finite import StopsWhenNotFinite, check_finite
from anomalib_cdd.training.precision import full_precision

from .torch_model import DtsnetModel

IMAGE_SIZE = (256, 256)
ADAM_BETAS = (0.5, 0.999)
RECONSTRUCTION_LEARNING_RATE = 1e-3
# the image's weight in the blend with a texture (Eq. 2)
BETA = (0.15, 1.0)


class Dtsnet(StopsWhenNotFinite, TrainsByEpochs, LabelFreeDefaults, AnomalibModule):  # type: ignore[misc]  # as anomalib's own
    """Denoising Teacher-Student Network (DTSNet).

    The defaults are the paper's, but for foreground and textures: the paper has a segmentation network and DTD's, here
    the foreground is found without training and ``anomaly_source_path`` says where there are textures.

    Args:
        backbone: timm name of the teacher (Table V).
        layers: Names of the teacher's levels. ``None`` takes those at strides 4, 8 and 16: a ResNet's ``layer1`` to
            ``layer3``.
        pre_trained: Whether to load the teacher's weights.
        weights: A local weight file for the teacher, for sites without internet.
        student_width: Channels of the finest map of a student that is built for a teacher outside the ResNet family.
        multiscale_fusion: Whether the bottleneck weights levels by coordinate attention and sums them; otherwise it is
            Reverse Distillation's (Table III, Bottleneck).
        perturbation: Whether the student's levels are perturbed and reconstructed (Table III, APR).
        two_masks: Whether an anomaly's mask is made of two (Table IV, Diversity).
        foreground: Where anomalies are made: on the object as found by ``"grabcut"`` or ``"otsu"``; ``"auto"``, by
            GrabCut unless the image is a texture; ``"none"``, anywhere (Table IV, Foreground).
        score_layers: Names of the levels whose distances make the anomaly map (Table VI). ``None`` takes all.
        anomaly_source_path: Folder of textures, such as DTD. ``None`` takes patches of other training images and noise.
        learning_rate: Adam's, for the student. The reconstruction's is .001.
        audit: Whether a fit ends with ``audit/`` in its results: the training images from most to least suspicious.
        pre_processor: anomalib's, or ``True`` for resize to 256 and the teacher's normalisation.
        post_processor: anomalib's, or whether to have the default.
        evaluator: anomalib's, or whether to have the default.
        visualizer: anomalib's, or whether to have the default.

    Raises:
        ValueError: If timm does not know the backbone, it has no such levels, or they cannot be fused.

    Example:
        >>> from anomalib.engine import Engine
        >>> from anomalib_cdd import Dtsnet, MVTecNoisy
        >>> Engine().train(Dtsnet(), datamodule=MVTecNoisy(category="bottle", noise_ratio=0.1))  # doctest: +SKIP
    """

    several_rates = True

    def __init__(
        self,
        backbone: str = "wide_resnet50_2.tv_in1k",
        layers: Sequence[str] | None = None,
        pre_trained: bool = True,
        weights: str | None = None,
        student_width: int = DEFAULT_WIDTH,
        multiscale_fusion: bool = True,
        perturbation: bool = True,
        two_masks: bool = True,
        foreground: Foreground = "auto",
        score_layers: Sequence[str] | None = None,
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
        score_layers = None if score_layers is None else tuple(str(layer) for layer in score_layers)
        if pre_processor is True:
            pre_processor = self.configure_pre_processor(IMAGE_SIZE, IMAGE_SIZE, backbone)
        super().__init__(
            pre_processor=pre_processor,
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        teacher = Teacher(backbone, layers, pre_trained, weights)
        self.model: DtsnetModel = DtsnetModel(teacher, student_width, multiscale_fusion, perturbation, score_layers)
        self.learning_rate = learning_rate
        self.synthesis = AnomalySynthesis(anomaly_source_path, foreground, BETA, two_masks)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the distance of what is made of anomalous images to the teacher's levels of normal ones (Eq. 8).

        Args:
            batch: Images of shape ``(B, 3, H, W)``, normalised.
            batch_idx: Index of the batch.
        """
        del batch_idx
        model, transform = self.model, getattr(self.pre_processor, "transform", None)
        normal, anomalous, _ = self.synthesis.of_batch(batch, model.tiler, self.current_epoch, transform)
        output = model.reconstruct(model.teacher_features(anomalous), noisy=True)
        with full_precision(self.device.type):
            loss = distance(model.teacher_features(normal), output)
        with self.finite("the step of student and reconstruction"):
            check_finite(loss=loss.detach())
        self.log("train_loss", loss.detach(), on_epoch=True, prog_bar=True, batch_size=len(normal))
        return loss

    def configure_optimizers(self) -> Optimizer:
        """Return Adam for the student and, at a rate of its own, for the reconstruction."""
        groups = [{"params": self.model.student.parameters(), "lr": self.learning_rate}]
        if self.model.reconstruction is not None:
            groups.append({"params": self.model.reconstruction.parameters(), "lr": RECONSTRUCTION_LEARNING_RATE})
        return Adam(groups, betas=ADAM_BETAS)
