# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""What a model says of images: raw scores and anomaly maps, read as anomalib's test loop reads them.

Scores and maps are the model's own, before anomalib's post-processor: its normalisation clips, and clipping makes ties.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from anomalib.data import AnomalibDataset, ImageBatch
from anomalib.data.transforms.utils import extract_transforms_by_type
from anomalib.models import AnomalibModule
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import Compose, Resize, Transform
from tqdm.auto import tqdm


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
        """Join predictions of the same model, at least one."""
        maps = [part.maps for part in parts if part.maps is not None]
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
    )
    for batch, scores, maps, masks in batches:
        gathered.add(batch, scores, maps, masks)
    return gathered.result()


@torch.no_grad()
def iterate_predictions(
    model: AnomalibModule,
    dataset: AnomalibDataset,
    *,
    augmentations: Transform | None = None,
    batch_size: int = 32,
    num_workers: int = 0,
    device: str | torch.device | None = None,
    progress: bool = True,
    description: str = "scoring",
) -> Iterator[tuple[ImageBatch, Tensor, Tensor | None, Tensor | None]]:
    """Score batch by batch; arguments as in :func:`score_dataset`.

    Yields:
        The batch as read, raw scores ``(B,)``, raw maps ``(B, H, W)`` and true masks, the latter two where there are
        any.

    Raises:
        ValueError: See :func:`score_dataset`.
    """
    transform = getattr(model.pre_processor, "transform", None)
    loader = _loader(dataset, augmentations, transform, batch_size, num_workers)
    home, was_training = model.device, model.training
    device = torch.device(device or torch.accelerator.current_accelerator(check_available=True) or "cpu")
    model.to(device).eval()
    try:
        for batch in tqdm(loader, desc=description, unit="batch", leave=False, disable=not progress):
            images, masks = batch.image.to(device), batch.gt_mask
            if transform is not None:
                images, masks = transform(images, masks)
            yield batch, *_raw_predictions(model, images), masks
    finally:
        model.to(home).train(was_training)


def _loader(
    dataset: AnomalibDataset,
    augmentations: Transform | None,
    transform: Transform | None,
    batch_size: int,
    num_workers: int,
) -> DataLoader:
    """Resize before collating, as anomalib's datamodules do: images of one set may differ in size."""
    steps = [step for step in (augmentations, *extract_transforms_by_type(transform, Resize)[:1]) if step is not None]
    dataset = copy.copy(dataset)
    dataset.augmentations = Compose(steps) if steps else None
    return DataLoader(dataset, batch_size, shuffle=False, num_workers=num_workers, collate_fn=dataset.collate_fn)


def _raw_predictions(model: AnomalibModule, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return scores ``(B,)`` and maps ``(B, H, W)`` before the post-processor."""
    dtype: Any = model.dtype
    with torch.autocast(images.device.type, enabled=False):
        output = model.model(images.to(dtype))
    return raw_scores_and_maps(output, len(images), type(model).__name__)


def raw_scores_and_maps(output: Any, count: int, name: str) -> tuple[Tensor, Tensor | None]:
    """Bring what a model says into one form.

    Args:
        output: Has ``pred_score`` and ``anomaly_map``, either of which may be ``None``.
        count: Number of images B.
        name: The model's, for messages.

    Returns:
        Scores ``(B,)`` and maps ``(B, H, W)`` in fp32; the maximum of the map where there is no score.

    Raises:
        ValueError: If there is neither, or a score is not a finite number.
    """
    scores, maps = output.pred_score, output.anomaly_map
    maps = None if maps is None else maps.float().reshape(count, *maps.shape[-2:])
    if scores is None:
        if maps is None:
            msg = f"{name} gives neither an image score nor an anomaly map."
            raise ValueError(msg)
        scores = maps.amax(dim=(-2, -1))  # as anomalib's post-processor does
    scores = scores.float().reshape(-1)
    if not torch.isfinite(scores).all():
        msg = f"{name} gives scores that are not finite numbers: its training has diverged."
        raise ValueError(msg)
    return scores, maps


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
