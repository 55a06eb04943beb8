# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""What a model says of images: raw scores and anomaly maps, read as anomalib's test loop reads them.

Scores and maps are the model's own, before anomalib's post-processor: its normalisation clips, and clipping makes ties.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from anomalib.data import AnomalibDataset, ImageBatch
from anomalib.models import AnomalibModule
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import Transform

from anomalib_cdd.training.scoring import iterate_predictions


@dataclass(frozen=True)
class Predictions:
    """What a model says of N images, in the order of the dataset.

    Attributes:
        scores: Raw image scores, shape ``(N,)``, higher is more anomalous; any range.
        labels: 0 normal, 1 anomalous, -1 unknown; shape ``(N,)``.
        image_paths: N paths.
        maps: Raw anomaly maps ``(N, H, W)``, or ``None``.
        masks: True masks ``(N, H, W)`` of bool, or ``None``.
    """

    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    image_paths: list[str]
    maps: NDArray[np.float32] | None = None
    masks: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def concatenate(cls, parts: "Sequence[Predictions]") -> "Predictions":
        """Join predictions of the same model, at least one.

        Raises:
            ValueError: If maps differ in size.
        """
        maps = [part.maps for part in parts if part.maps is not None]
        for each in maps:
            _check_size(maps[0].shape[1:], each.shape[1:])
        masks = [part.masks for part in parts if part.masks is not None]
        return cls(
            scores=np.concatenate([part.scores for part in parts]),
            labels=np.concatenate([part.labels for part in parts]),
            image_paths=[path for part in parts for path in part.image_paths],
            maps=np.concatenate(maps) if len(maps) == len(parts) else None,
            masks=np.concatenate(masks) if len(masks) == len(parts) else None,
        )

    def select(self, keep: NDArray[np.bool_]) -> "Predictions":
        """Return the images where ``keep``, shape ``(N,)``, is true."""
        if keep.all():
            return self
        return Predictions(
            scores=self.scores[keep],
            labels=self.labels[keep],
            image_paths=[path for path, kept in zip(self.image_paths, keep, strict=True) if kept],
            maps=None if self.maps is None else self.maps[keep],
            masks=None if self.masks is None else self.masks[keep],
        )


@torch.no_grad()
def score_dataset(
    model: AnomalibModule,
    dataset: AnomalibDataset,
    *,
    augmentations: Transform | None = None,
    batch_size: int = 32,
    num_workers: int = 0,
    keep_maps: bool = False,
    device: str | torch.device | None = None,
    progress: bool = True,
    description: str = "scoring",
    autocast: bool = False,
) -> Predictions:
    """Score every image as anomalib's test loop does, but in full precision and before the post-processor.

    Args:
        model: A trained anomalib model.
        dataset: The images. Its own augmentations are not applied: those of a training set are random.
        augmentations: Deterministic transform before the model's own, such as ``datamodule.test_augmentations``.
        batch_size: Images a batch.
        num_workers: Processes that read images.
        keep_maps: Whether to keep anomaly maps and masks: 5 bytes a pixel.
        device: Where to compute. ``None`` takes the accelerator if there is one.
        progress: Whether to show a progress bar.
        description: What stands before the bar.
        autocast: Whether to compute in an autocast's precision where one is on.

    Returns:
        One row per image, in the order of ``dataset``.

    Raises:
        ValueError: If the model gives neither scores nor maps, or a score that is not a finite number, or if maps and
            masks differ in size.
    """
    gathered = _Gathered(len(dataset), keep_maps)
    batches = iterate_predictions(
        model,
        dataset,
        augmentations=augmentations,
        batch_size=batch_size,
        num_workers=num_workers,
        device=device,
        progress=progress,
        description=description,
        autocast=autocast,
    )
    for batch, scores, maps, masks in batches:
        gathered.add(batch, scores, maps, masks)
    return gathered.result()


class _Gathered:
    """Batches written straight into arrays of the final size, so that maps are held once."""

    def __init__(self, n_images: int, keep_maps: bool) -> None:
        self.keep_maps = keep_maps
        self.filled = 0
        self.predictions = Predictions(
            scores=np.empty(n_images, dtype=np.float32),
            labels=np.full(n_images, -1, dtype=np.int64),
            image_paths=[],
        )

    def add(self, batch: ImageBatch, scores: Tensor, maps: Tensor | None, masks: Tensor | None) -> None:
        rows = slice(self.filled, self.filled + len(scores))
        self.filled = rows.stop
        self.predictions.scores[rows] = scores.cpu().numpy()
        self.predictions.image_paths.extend(str(path) for path in batch.image_path or [])
        if batch.gt_label is not None:
            self.predictions.labels[rows] = batch.gt_label.cpu().numpy()
        if self.keep_maps and maps is not None:
            self._add_maps(rows, maps, masks)

    def _add_maps(self, rows: slice, maps: Tensor, masks: Tensor | None) -> None:
        shape = (len(self.predictions), *maps.shape[-2:])
        if self.predictions.maps is None:
            self.predictions = replace(self.predictions, maps=np.empty(shape, dtype=np.float32))
        if masks is not None and self.predictions.masks is None:
            self.predictions = replace(self.predictions, masks=np.zeros(shape, dtype=bool))
        if self.predictions.maps is not None:
            _check_size(self.predictions.maps.shape[1:], maps.shape[-2:])
            self.predictions.maps[rows] = maps.cpu().numpy()
        if masks is None or self.predictions.masks is None:
            return
        if masks.shape[-2:] != maps.shape[-2:]:
            msg = (
                f"Anomaly maps are {tuple(maps.shape[-2:])} but masks {tuple(masks.shape[-2:])}: the pre-processor's "
                "transform has to leave both at the same size."
            )
            raise ValueError(msg)
        self.predictions.masks[rows] = masks.cpu().numpy()

    def result(self) -> Predictions:
        return self.predictions


def _check_size(first: Sequence[int], other: Sequence[int]) -> None:
    """Refuse maps that cannot be measured together."""
    if tuple(first) != tuple(other):
        msg = (
            f"Anomaly maps are {tuple(first)} and {tuple(other)}: their measures are of all images at once. Give the "
            "pre-processor's Resize a height and a width."
        )
        raise ValueError(msg)
