# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Measures in the course of a training: how it learns, and how it forgets what is bad. Nothing is chosen by them."""

import time
from typing import Any

from anomalib.data import AnomalibDataModule
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.seed import isolate_rng

from anomalib_cdd.evaluation.settings import score_test_sets, setting_measures

MEASURES = ("image_AUROC", "image_AUROC_overlap", "injected_AUROC")


class Course(Callback):
    """Measures a model every few epochs, and leaves the training as it would be without.

    The last epoch is left to whoever measures the trained model: some models, Patchcore for one, are complete only
    when the fit has ended.

    Args:
        datamodule: What the model is trained on, and knows the injected images.
        every: Epochs between measures.

    Attributes:
        points: ``epoch``, the number of epochs trained, and ``MEASURES``, in order.
        seconds: How long the measuring took.
    """

    def __init__(self, datamodule: AnomalibDataModule, every: int) -> None:
        self.datamodule = datamodule
        self.every = every
        self.points: list[dict[str, Any]] = []
        self.seconds = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:  # an AnomalibModule
        """Measure what the epochs before have made; here all hooks of the last one have been called."""
        epoch = trainer.current_epoch
        if epoch == 0 or epoch % self.every:
            return
        start = time.perf_counter()
        modes = [(module, module.training) for module in pl_module.modules()]
        with isolate_rng():
            parts = score_test_sets(
                pl_module, self.datamodule, device=pl_module.device, progress=False, keep_maps=False
            )
        for module, training in modes:
            module.training = training
        self.points.append(course_point(epoch, setting_measures(*parts)))
        self.seconds += time.perf_counter() - start


def course_point(epoch: int, measures: dict[str, Any]) -> dict[str, Any]:
    """Return the measures of a curve after a number of epochs."""
    return {"epoch": epoch} | {name: measures[name] for name in MEASURES}
