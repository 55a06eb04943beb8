# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""A post-processor whose thresholds and normalisation come from unlabelled training images alone.

anomalib's own takes both from labelled validation images. This one asks the training images when a fit ends, anomalous
ones and all (:mod:`~anomalib_cdd.thresholds.calibration`), for the score that a stated share of good ones exceeds
(:mod:`~anomalib_cdd.thresholds.estimators`).
"""

import logging
from typing import Any

import numpy as np
import torch
from anomalib.data import AnomalibDataset
from anomalib.models import AnomalibModule
from anomalib.post_processing import PostProcessor
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import Transform

from anomalib_cdd.training.checkpoints import may_be_kept
from anomalib_cdd.training.compat import CheckpointedOptions, averages_weights
from anomalib_cdd.training.images import TrainingImages
from anomalib_cdd.training.scoring import takes_bars

from .calibration import training_scores
from .estimators import label_free_pixel_threshold, label_free_threshold

logger = logging.getLogger(__name__)

# for a line with few defects
FALSE_ALARM_RATE = 0.05
PIXEL_FALSE_ALARM_RATE = 0.005


class LabelFreePostProcessor(CheckpointedOptions, PostProcessor):
    """Thresholds and normalises any model's scores without a label.

    Takes the place of anomalib's ``PostProcessor``, with the same arguments and two more. The training images are
    scored when the last checkpoint of a fit is saved, each one that a measure chooses, and when the fit ends; no
    validation set is needed. A threshold maps to
    0.5 and the median training score to 0.25, strictly monotonically: nothing is clipped, so that ranking measures such
    as AUROC are those of the raw scores.

    Args:
        enable_normalization: Whether to normalise scores and maps.
        enable_thresholding: Whether to give labels and masks.
        enable_threshold_matching: As in anomalib: whether pixels take the images' threshold where there is none of
            their own, and images that of pixels.
        image_sensitivity: As in anomalib: above 0.5 calls more images anomalous. In [0, 1].
        pixel_sensitivity: As in anomalib, for pixels. In [0, 1].
        false_alarm_rate: Share of good images that may be called anomalous, in (0, 0.5].
        pixel_false_alarm_rate: Share of their pixels that may be, in (0, 0.5].

    Raises:
        ValueError: If a rate is out of its range.

    Example:
        >>> from anomalib.models import Patchcore
        >>> from anomalib_cdd import LabelFreePostProcessor
        >>> model = Patchcore(post_processor=LabelFreePostProcessor(false_alarm_rate=0.01))  # doctest: +SKIP
    """

    checkpointed_options = ("false_alarm_rate", "pixel_false_alarm_rate")

    def __init__(
        self,
        enable_normalization: bool = True,
        enable_thresholding: bool = True,
        enable_threshold_matching: bool = True,
        image_sensitivity: float = 0.5,
        pixel_sensitivity: float = 0.5,
        *,
        false_alarm_rate: float = FALSE_ALARM_RATE,
        pixel_false_alarm_rate: float = PIXEL_FALSE_ALARM_RATE,
    ) -> None:
        rates = {"false_alarm_rate": false_alarm_rate, "pixel_false_alarm_rate": pixel_false_alarm_rate}
        for name, rate in rates.items():
            if not 0 < rate <= 0.5:
                msg = f"{name} is {rate}; it has to be above 0 and at most 0.5."
                raise ValueError(msg)
        super().__init__(
            enable_normalization=enable_normalization,
            enable_thresholding=enable_thresholding,
            enable_threshold_matching=enable_threshold_matching,
            image_sensitivity=image_sensitivity,
            pixel_sensitivity=pixel_sensitivity,
        )
        self.false_alarm_rate = false_alarm_rate
        self.pixel_false_alarm_rate = pixel_false_alarm_rate
        self._images: TrainingImages | None = None
        self._calibrated_at: int | None = None

    def calibrate(
        self,
        model: AnomalibModule,
        dataset: AnomalibDataset,
        *,
        augmentations: Transform | None = None,
        batch_size: int = 32,
        progress: bool = True,
        device: str | torch.device | None = None,
    ) -> None:
        """Set thresholds and normalisation from the scores of unlabelled images; a fit does it by itself.

        Args:
            model: A trained model.
            dataset: The images, such as a datamodule's ``train_data``; labels are not read.
            augmentations: Deterministic transform before the model's own, such as ``datamodule.test_augmentations``.
            batch_size: Images a batch.
            progress: Whether to show a progress bar.
            device: Where to compute. ``None`` takes the accelerator if there is one.

        Raises:
            ValueError: If a score is not a finite number.
        """
        self.set_thresholds(*training_scores(model, dataset, augmentations, batch_size, progress, device))

    def set_thresholds(self, scores: NDArray[np.floating], pixels: NDArray[np.floating] | None = None) -> None:
        """Set thresholds and normalisation.

        Args:
            scores: Raw scores of unlabelled images, shape ``(N,)``.
            pixels: Values of their anomaly maps, shape ``(N, P)``; ``None`` for a model without maps.

        Raises:
            ValueError: See :func:`anomalib_cdd.thresholds.estimators.label_free_threshold`.
        """
        cut = label_free_threshold(scores, self.false_alarm_rate)
        self._set(cut, scores, self._image_threshold, self.image_min, self.image_max)
        if pixels is not None:
            cut = label_free_pixel_threshold(pixels, scores, self.pixel_false_alarm_rate)
            self._set(cut, pixels, self._pixel_threshold, self.pixel_min, self.pixel_max)

    @staticmethod
    def _set(cut: float, values: NDArray[np.floating], threshold: Tensor, low: Tensor, high: Tensor) -> None:
        spread = max(cut - float(np.median(values)), abs(cut) * 1e-6, 1e-12)
        threshold.fill_(cut)
        # anomalib's linear normalisation with these ends has the same labels, should it read the checkpoint
        low.fill_(cut - spread)
        high.fill_(cut + spread)

    @staticmethod
    def _normalize(
        preds: Tensor | None,
        norm_min: Tensor,
        norm_max: Tensor,
        threshold: Tensor,
    ) -> Tensor | None:
        """Map the threshold to 0.5 and ``norm_min`` to 0.25 by ``z / (1 + |z|)``, which has no end to clip at."""
        if preds is None:
            return preds
        # in fp32, and in raw units where half precision leaves nothing between the ends
        spread = (norm_max.float() - norm_min.float()) / 2
        distance = (preds.float() - threshold.float()) / torch.where(spread > 0, spread, 1.0)
        normalized = (0.5 + 0.5 * distance / (1 + distance.abs())).to(preds.dtype)
        return torch.where(torch.isnan(norm_min), preds, normalized)

    # ------------------------------------------------------------------------------------------ Lightning

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the training images: a model may let the loop run over something else."""
        del pl_module
        self._calibrated_at = None
        averaging = [callback for callback in trainer.callbacks if averages_weights(callback)]  # type: ignore[attr-defined]
        if averaging:
            self._images = None
            logger.warning(
                "%s keeps the mean of the weights, which no training image is scored with: there are no thresholds "
                "until you call calibrate() of the model's post-processor.",
                type(averaging[0]).__name__,
            )
            return
        self._images = TrainingImages.of(trainer)
        if any(getattr(callback, "save_weights_only", False) for callback in trainer.checkpoint_callbacks):
            logger.warning(
                "Checkpoints with save_weights_only have no thresholds: Lightning asks no callback for them."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the thresholds of an earlier fit: the model is about to change."""
        del trainer, pl_module
        for value in (self._image_threshold, self.image_min, self.image_max):
            value.fill_(torch.nan)
        for value in (self._pixel_threshold, self.pixel_min, self.pixel_max):
            value.fill_(torch.nan)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Calibrate before a checkpoint is written that may be the one that is kept.

        Some models, Patchcore for one, are complete only after every other hook of the epoch.
        """
        if trainer.state.fn == TrainerFn.FITTING and may_be_kept(trainer) and self._calibrate_once(trainer, pl_module):
            prefix = next(f"{name}." for name, module in pl_module.named_modules() if module is self)
            checkpoint["state_dict"].update({prefix + name: value for name, value in self.state_dict().items()})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Calibrate a model that was not saved."""
        self._calibrate_once(trainer, pl_module)

    def _calibrate_once(self, trainer: Trainer, model: Any) -> bool:  # Lightning's module, anomalib's in fact
        """Calibrate unless that is done for the model as it is; return whether there are thresholds now."""
        if self._images is None or not bool(getattr(model, "_is_fitted", True)):
            return False
        if self._calibrated_at != trainer.global_step:
            # some models set something by their training images that scores depend on
            getattr(model, "before_calibration", lambda: None)()
            logger.info("Thresholds from %d training images", len(self._images.dataset))
            self.calibrate(model, **self._images._asdict(), progress=takes_bars(trainer), device=model.device)
            self._calibrated_at = trainer.global_step
        return True

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so if there are no thresholds."""
        del trainer, pl_module
        self._warn_uncalibrated()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so if there are no thresholds."""
        del trainer, pl_module
        self._warn_uncalibrated()

    def _warn_uncalibrated(self) -> None:
        used = self.enable_normalization or self.enable_thresholding
        if used and self._image_threshold.isnan() and self._pixel_threshold.isnan():
            logger.warning(
                "This model has no thresholds: scores are raw, and labels cut them at 0.5. Its checkpoint was written "
                "before the end of a fit. Go on with that, or call calibrate() of its post-processor."
            )

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Take nothing from validation: it has labels."""

    def on_validation_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        """Take nothing from validation: it has labels."""

    def __getstate__(self) -> dict[str, Any]:
        """Leave the training images out of exports."""
        return {**super().__getstate__(), "_images": None}
