# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""MHKD: multi-task hybrid knowledge distillation, for structural and logical anomalies.

A student of EfficientAD's kind whose two decoders share its encoders; the whole's decoder teaches the first encoder.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

import torch
from anomalib.data import Batch
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Adam
from torch.optim.lr_scheduler import MultiStepLR

from anomalib_cdd.training.checkpoints import may_be_kept
from anomalib_cdd.training.defaults import LabelFreeDefaults
from anomalib_cdd.training.epochs import TrainsByEpochs
from anomalib_cdd.training.finite import StopsWhenNotFinite, check_finite
from anomalib_cdd.training.images import TrainingImages

from .loss import losses, quantiles
from .teacher import EFFICIENT_AD, build_teacher
from .torch_model import MhkdModel

IMAGE_SIZE = (256, 256)
ADAM_BETAS = (0.5, 0.999)
WEIGHT_DECAY = 1e-5
# the learning rate falls to a tenth after this share of the steps
DECAY_AT = 0.95
DECAY = 0.1
# a quantile of the maps of more images than this hardly moves
QUANTILE_IMAGES = 100


class Mhkd(StopsWhenNotFinite, TrainsByEpochs, LabelFreeDefaults, AnomalibModule):  # type: ignore[misc]  # as anomalib's own
    """Multi-task Hybrid Knowledge Distillation (MHKD).

    The defaults are the paper's, and its README says what the paper leaves open. The two maps are scaled by quantiles
    of the training images' own maps, where the paper has a validation set of flawless images.

    Args:
        backbone: ``"efficientad_medium"`` is the paper's teacher; its weights come from a local file. Any timm name
            takes that teacher's levels, pooled to 384 channels at stride 4, in its place.
        layers: Names of a timm teacher's levels. ``None`` takes those at strides 4, 8 and 16.
        pre_trained: Whether to load the teacher's weights.
        weights: The teacher's weight file. ``None`` fetches a timm teacher's; the paper's takes a file that anomalib's
            EfficientAd has left on this machine.
        second_encoder: Whether a second encoder stands before the decoders (Table IV, SEncoder2).
        self_distillation: Whether the first encoder learns the global decoder's output and the logical map is their
            difference (Table IV, loss); otherwise that map is the difference of teacher and global decoder.
        learning_rate: Adam's, until 95 % of the steps are done.
        audit: Whether a fit ends with ``audit/`` in its results: the training images from most to least suspicious.
        pre_processor: anomalib's, or ``True`` for resize to 256 and the teacher's normalisation.
        post_processor: anomalib's, or whether to have the default.
        evaluator: anomalib's, or whether to have the default.
        visualizer: anomalib's, or whether to have the default.

    Raises:
        FileNotFoundError: If the teacher's file does not exist.
        ValueError: If the file is of another network, or timm knows no such teacher.

    Example:
        >>> from anomalib.engine import Engine
        >>> from anomalib_cdd import Mhkd, MVTecNoisy
        >>> model = Mhkd(backbone="efficientnet_lite0_pypi")
        >>> Engine().train(model, datamodule=MVTecNoisy(category="bottle", noise_ratio=0.1))  # doctest: +SKIP
    """

    def __init__(
        self,
        backbone: str = EFFICIENT_AD,
        layers: Sequence[str] | None = None,
        pre_trained: bool = True,
        weights: str | None = None,
        second_encoder: bool = True,
        self_distillation: bool = True,
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
        teacher = build_teacher(backbone, layers, pre_trained, weights)
        self.model: MhkdModel = MhkdModel(teacher, second_encoder, self_distillation)
        self.learning_rate = learning_rate
        self._images: TrainingImages | None = None
        self._scaled_at: int | None = None

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the sum of the three losses of a batch (Eq. 8).

        Args:
            batch: Images of shape ``(B, 3, H, W)``, normalised.
            batch_idx: Index of the batch.
        """
        del batch_idx
        images = cast("Tensor", batch.image)
        teacher, student = self.model.features(self.model.tiles(images))
        parts = losses(teacher, student, self.model.self_distillation)
        loss = torch.stack(list(parts.values())).sum()
        with self.finite("the student's step"):
            check_finite(loss=loss.detach())
        values = {f"train_loss_{name}": value.detach() for name, value in parts.items()}
        self.log_dict({"train_loss": loss.detach(), **values}, on_epoch=True, batch_size=len(images))
        return loss

    def configure_optimizers(self) -> Any:  # Lightning's union of a dozen types
        """Return Adam for the student and the fall of its learning rate near the end.

        Raises:
            ValueError: If the training has no end.
        """
        if self.trainer.estimated_stepping_batches == float("inf"):
            msg = "max_epochs is -1: MHKD's learning rate falls at 95 % of the steps. Set max_epochs to 1 or more."
            raise ValueError(msg)
        optimizer = Adam(
            self.model.student.parameters(), lr=self.learning_rate, betas=ADAM_BETAS, weight_decay=WEIGHT_DECAY
        )
        scheduler = MultiStepLR(optimizer, milestones=[self._milestone], gamma=DECAY)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @property
    def _milestone(self) -> int:
        """The step from which on the learning rate is lower."""
        return int(DECAY_AT * self.trainer.estimated_stepping_batches)

    # ------------------------------------------------------------------------------------------ training set

    def on_fit_start(self) -> None:
        """Find the training images.

        Raises:
            ValueError: If the training data is not anomalib's.
        """
        self._images, self._scaled_at = TrainingImages.of(self.trainer), None
        if self._images is None:
            msg = "MHKD normalises its teacher over the training images and reads them itself: give anomalib data."
            raise ValueError(msg)

    def on_train_start(self) -> None:
        """Normalise the teacher's channels over the training set, unless a fit that has done so is resumed.

        A resumed fit has its own rate, and its own end by which that falls; a scheduler from elsewhere stays as it is.
        """
        super().on_train_start()
        if self.trainer.ckpt_path is None and self._images is not None:
            self._normalise_teacher(self._images)
        scheduler = self.lr_schedulers()
        if isinstance(scheduler, MultiStepLR) and "configure_optimizers" not in vars(self):
            scheduler.milestones = Counter([self._milestone])
            for group in scheduler.optimizer.param_groups:
                group["lr"] = self.learning_rate * (DECAY if scheduler.last_epoch >= self._milestone else 1)

    @torch.no_grad()
    def _normalise_teacher(self, training_images: TrainingImages) -> None:
        # on the processor: not every accelerator has double precision
        total = square = torch.zeros((), dtype=torch.float64)
        count = 0
        for images in training_images.read(self):
            features = self.model.teacher(self.model.tiles(images)).cpu().double()
            total = total + features.sum(dim=(0, 2, 3))
            square = square + features.square().sum(dim=(0, 2, 3))
            count += features[:, 0].numel()
        mean = total / count
        std = (square / count - mean.square()).clamp_min(0).sqrt()
        std = torch.where(std > std.max() * 1e-6, std, 1.0)  # a channel that never moves says nothing
        self.model.mean.copy_(mean.view(-1, 1, 1))
        self.model.std.copy_(std.view(-1, 1, 1))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Scale the two maps when an epoch or the training has ended, before it is validated or saved."""
        del outputs, batch, batch_idx
        if self.trainer.is_last_batch or 0 < self.trainer.max_steps <= self.trainer.global_step:
            self.before_calibration()

    def on_validation_start(self) -> None:
        """Scale the two maps where a validation comes within an epoch."""
        if self.trainer.state.fn == TrainerFn.FITTING:
            self.before_calibration()

    def on_train_end(self) -> None:
        """Scale the two maps where a training was stopped within an epoch."""
        super().on_train_end()
        self.before_calibration()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Scale the two maps before a checkpoint is written that may be the one that is kept, such as one by steps."""
        super().on_save_checkpoint(checkpoint)
        if self.trainer.state.fn == TrainerFn.FITTING and may_be_kept(self.trainer):
            self.before_calibration()
            checkpoint["state_dict"]["model.quantiles"] = self.model.quantiles

    @torch.no_grad()
    def before_calibration(self) -> None:
        """Scale the two maps, unless that is done for the model as it is; the post-processor asks for it too."""
        if self._images is None or self._scaled_at == self.trainer.global_step:
            return
        mode = self.model.training
        self.model.eval()
        maps = [self.model.maps(self.model.tiles(images)) for images in self._images.read(self, QUANTILE_IMAGES)]
        self.model.train(mode)
        # images, and so maps, may differ in size
        self.model.quantiles.copy_(quantiles(torch.cat([each.transpose(0, 1).flatten(1) for each in maps], dim=1)))
        self._scaled_at = self.trainer.global_step

    def __getstate__(self) -> dict[str, Any]:
        """Pickle what inference needs: anomalib's torch export pickles the whole module."""
        return super().__getstate__() | {"_images": None}
