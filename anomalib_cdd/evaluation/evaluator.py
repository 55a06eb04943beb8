# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""An anomalib evaluator that measures both settings of fully unsupervised anomaly detection in one test pass.

For any model on a noisy datamodule. It reads the model's own scores and maps, before the post-processor: anomalib's
normalisation clips, and clipping makes ties.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from anomalib.data import InferenceBatch
from anomalib.metrics import AnomalibMetric, Evaluator
from lightning.pytorch import LightningModule, Trainer
from torch import distributed

from anomalib_cdd.evaluation.predictions import Predictions
from anomalib_cdd.evaluation.settings import score_injected, setting_measures
from anomalib_cdd.training.compat import datamodule_of
from anomalib_cdd.training.scoring import raw_scores_and_maps

# as anomalib's metrics are called
NAMES = {"AUPRO": "pixel_AUPRO", "PRO": "pixel_PRO"}
LOGGED = ("image_AUROC", "pixel_AUROC", *NAMES.values(), "injected_AUROC")


class FuadEvaluator(Evaluator):
    """Logs image and pixel AUROC, AUPRO and PRO without and, as ``..._overlap``, with the injected images.

    ``pixel_AUPRO`` is anomalib's, one curve over the whole test set; ``pixel_PRO`` is RD4AD's, the mean of one curve
    per anomalous image; both up to a false positive rate of 0.3. ``injected_AUROC`` sets the injected images against
    normal test images. A measure is not logged where the data has no masks, or no injected images, or the model no maps
    for it. With ``overlap: false`` the injected images are not in the test loader: they are scored when it ends. On
    several devices each tests its share of the images, and the measures are of all of them.

    Args:
        test_metrics: anomalib metrics to log as well, on what the post-processor made of the predictions.
        val_metrics: anomalib metrics for validation.

    Raises:
        ValueError: If a metric for the test is called as a measure of this class.

    Example:
        >>> from anomalib.models import Patchcore
        >>> from anomalib_cdd import FuadEvaluator
        >>> model = Patchcore(evaluator=FuadEvaluator())  # doctest: +SKIP
    """

    def __init__(
        self,
        test_metrics: AnomalibMetric | Sequence[AnomalibMetric] | None = None,
        val_metrics: AnomalibMetric | Sequence[AnomalibMetric] | None = None,
    ) -> None:
        super().__init__(val_metrics=val_metrics, test_metrics=test_metrics)
        names = [str(metric.name) for metric in self.test_metrics]
        taken = [name for name in names if name.removesuffix("_overlap") in LOGGED]
        if taken:
            msg = f"test_metrics has {taken[0]}, which this evaluator logs itself. Leave it out, or give it a prefix."
            raise ValueError(msg)
        self._parts: list[Predictions] = []
        self._output: InferenceBatch | None = None
        self._hook: Any = None

    def on_test_start(self, trainer: Trainer, pl_module: Any) -> None:  # an AnomalibModule
        """Listen to what the model says."""
        del trainer
        self._parts = []
        self._hook = pl_module.model.register_forward_hook(self._listen)

    def _listen(self, module: torch.nn.Module, images: Any, output: Any) -> None:
        del module, images
        self._output = output if isinstance(output, InferenceBatch) else None

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,  # an ImageBatch
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the raw predictions of the batch."""
        super().on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        # a model that tests without its forward is read after the post-processor
        said: Any = batch if self._output is None else self._output
        scores, maps = raw_scores_and_maps(said, len(batch.image), type(pl_module).__name__)
        masks = None if maps is None or batch.gt_mask is None else batch.gt_mask.cpu().numpy().astype(bool)
        labels = np.full(len(scores), -1) if batch.gt_label is None else batch.gt_label.cpu().numpy().astype(np.int64)
        self._parts.append(
            Predictions(
                scores=scores.cpu().numpy(),
                labels=labels,
                image_paths=[str(path) for path in batch.image_path or []],
                maps=None if masks is None or maps is None else maps.cpu().numpy(),
                masks=masks,
            )
        )
        self._output = None

    def on_test_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:  # an AnomalibModule
        """Score the injected images that the loader left out, and log every measure."""
        super().on_test_epoch_end(trainer, pl_module)
        test, self._parts = _of_all_ranks(Predictions.concatenate(self._parts)), []
        datamodule = datamodule_of(trainer, "test")
        device = pl_module.device
        with trainer.precision_plugin.forward_context():  # as the test images were scored: the two are compared
            clean, injected = score_injected(pl_module, datamodule, test, device=device, progress=False, autocast=True)
        for name, value in setting_measures(clean, injected).items():
            if not np.isnan(value) and (len(injected) or not name.endswith("_overlap")):
                stem = name.removesuffix("_overlap")
                # every rank has measured all images: the mean over them is the value
                pl_module.log(NAMES.get(stem, stem) + name[len(stem) :], float(value), sync_dist=True)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop listening."""
        super().teardown(trainer, pl_module, stage)
        self._stop_listening()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop listening: a test that fails is not torn down."""
        super().on_exception(trainer, pl_module, exception)
        self._stop_listening()

    def _stop_listening(self) -> None:
        if self._hook is not None:
            self._hook.remove()
        self._hook, self._output, self._parts = None, None, []


def _of_all_ranks(predictions: Predictions) -> Predictions:
    """Join what each device has seen, without the images that a sampler dealt out twice to make the shares equal."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return predictions
    parts: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(parts, predictions)
    joined = Predictions.concatenate(parts)
    _, first = np.unique(joined.image_paths, return_index=True)
    keep = np.zeros(len(joined), dtype=bool)
    keep[first] = True
    return joined.select(keep)
