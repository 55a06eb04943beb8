# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""The training images of a fit: where they are read, and whether they are the same every time."""

import logging
from typing import Any, NamedTuple

from anomalib.data import AnomalibDataset
from lightning.pytorch import Trainer
from torchvision.transforms import v2
from torchvision.transforms.v2 import Transform

from .compat import training_loader

logger = logging.getLogger(__name__)


# What gives the same image for the same file every time. Anything else is taken for random.
DETERMINISTIC_TRANSFORMS = (
    v2.CenterCrop,
    v2.ConvertImageDtype,
    v2.Grayscale,
    v2.Identity,
    v2.Normalize,
    v2.Pad,
    v2.Resize,
    v2.RGB,
    v2.ToDtype,
    v2.ToImage,
    v2.ToPureTensor,
)


def is_deterministic(transform: Any) -> bool:  # any callable that a user gives
    """Return whether a transform is known to give the same result every time.

    Args:
        transform: A torchvision v2 transform, or ``None``.
    """
    if transform is None:
        return True
    if isinstance(transform, v2.Compose):
        return all(is_deterministic(step) for step in transform.transforms)
    # anomalib's own deterministic transforms derive from Transform directly
    return isinstance(transform, DETERMINISTIC_TRANSFORMS) or type(transform).__module__.startswith(
        ("anomalib.data.transforms.center_crop", "anomalib.data.transforms.square_pad"),
    )


class TrainingImages(NamedTuple):
    """Where a fit's training images are read, the way test images are."""

    dataset: AnomalibDataset
    augmentations: Transform | None
    batch_size: int

    @classmethod
    def of(cls, trainer: Trainer) -> "TrainingImages | None":
        """Find them; ``None``, with a warning, where the training data is not anomalib's."""
        datamodule: Any = getattr(trainer, "datamodule", None)
        if datamodule is not None and hasattr(datamodule, "train_data"):
            dataset, augmentations = datamodule.train_data, datamodule.test_augmentations
            batch_size = datamodule.eval_batch_size
        else:
            try:
                loader = training_loader(trainer)
            except ValueError as error:  # no reason to refuse the training
                logger.warning("The training images cannot be scored, so there are no thresholds. %s", error)
                return None
            dataset, augmentations, batch_size = loader.dataset, None, loader.batch_size or 1
        if not isinstance(dataset, AnomalibDataset):
            logger.warning("No thresholds: the training data is a %s, not an anomalib dataset.", type(dataset).__name__)
            return None
        return cls(dataset, augmentations, batch_size)
