# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""The training images of a fit: where they are read, and whether they are the same every time."""

import copy
import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

from anomalib.data import AnomalibDataset
from anomalib.data.transforms.utils import extract_transforms_by_type
from anomalib.models.components import AnomalibModule
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import v2
from torchvision.transforms.v2 import Transform

from .compat import datamodule_of, training_loader
from .read_alike import as_trained

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
        datamodule = datamodule_of(trainer, "fit")
        if hasattr(datamodule, "train_data"):
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

    def read(self, model: AnomalibModule, most: int | None = None) -> Iterator[Tensor]:
        """Read the images as the model gets them in a test.

        Args:
            model: Whose pre-processor and device are used.
            most: Where there are more images than this, so many are read, at equal distances in the data set.

        Yields:
            Batches of shape ``(B, 3, H, W)``, on the model's device.
        """
        dataset, transform = copy.copy(self.dataset), getattr(model.pre_processor, "transform", None)
        as_trained(model, dataset)
        if most is not None and len(dataset) > most:
            dataset = dataset.subsample([i * len(dataset) // most for i in range(most)])
        for batch in evaluation_loader(dataset, self.augmentations, transform, self.batch_size):
            images = batch.image.to(model.device)
            yield images if transform is None else transform(images)


def left_out_of(dataset: AnomalibDataset) -> AnomalibDataset | None:
    """Return the images that cleaning left out of a training set, read as those are; ``None`` where there are none."""
    samples = getattr(dataset, "left_out", None)
    if samples is None or samples.empty:
        return None
    others = copy.copy(dataset)
    others.samples = samples.reset_index(drop=True)
    return others


def evaluation_loader(
    dataset: AnomalibDataset,
    augmentations: Transform | None,
    transform: Transform | None,
    batch_size: int,
    num_workers: int = 0,
) -> DataLoader:
    """Return a loader that resizes before it collates, as anomalib's datamodules do: images of a set differ in size.

    Args:
        dataset: The images.
        augmentations: What comes before the model's own transform, if anything.
        transform: The model's own; only its resize is part of what the loader does.
        batch_size: Images a batch.
        num_workers: Processes that read.
    """
    resize = extract_transforms_by_type(transform, v2.Resize)[:1]
    steps = [step for step in (augmentations, *resize) if step is not None]
    dataset = copy.copy(dataset)
    dataset.augmentations = v2.Compose(steps) if steps else None
    return DataLoader(dataset, batch_size, shuffle=False, num_workers=num_workers, collate_fn=dataset.collate_fn)
