# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""The audit of a training set when its fit ends, for any anomalib model."""

import logging
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from anomalib_cdd.data.noise import relative_names
from anomalib_cdd.training.images import TrainingImages
from anomalib_cdd.training.scoring import takes_bars

from .results import write_audit

logger = logging.getLogger(__name__)

FOLDER = "audit"


class TrainingAudit(Callback):
    """Writes ``audit/`` into the results when a fit ends; for any model: ``Engine(callbacks=[TrainingAudit()])``.

    What cannot be written is logged: the training is not lost for it.
    """

    def __init__(self) -> None:
        self._images: TrainingImages | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the training images: a model may let the loop run over something else."""
        del pl_module
        self._images = None if trainer.fast_dev_run else TrainingImages.of(trainer)  # type: ignore[attr-defined]

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:  # an AnomalibModule
        """Write scores and page."""
        if self._images is None or not trainer.is_global_zero:
            return
        root = data_root(getattr(trainer, "datamodule", None))
        folder = Path(trainer.default_root_dir) / FOLDER
        logger.info("Audit of %d training images", len(self._images.dataset))
        try:
            page = write_audit(pl_module, self._images, folder, root=root, progress=takes_bars(trainer))
        except Exception:  # whatever it is, hours of training are worth more
            logger.exception("The audit of the training set could not be written")
        else:
            logger.info("Training images from most to least suspicious: %s", page)


def data_root(datamodule: Any) -> Path | None:  # any datamodule, or None
    """Return the folder that the images of a datamodule are named relative to, as in manifests and exclude lists."""
    subsets = [getattr(datamodule, name, None) for name in ("train_data", "test_data")]
    paths = [str(path) for subset in subsets if subset is not None for path in subset.samples["image_path"]]
    return relative_names(paths, getattr(datamodule, "root", None))[0] if paths else None
