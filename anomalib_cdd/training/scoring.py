# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""What any anomalib model says of images, batch by batch: raw scores and maps, read as anomalib's test loop reads them.

Scores and maps are the model's own, before the post-processor: its normalisation clips, and clipping makes ties.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from anomalib.data import AnomalibDataset, ImageBatch
from anomalib.models import AnomalibModule
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from torch import Tensor
from torchvision.transforms.v2 import Transform
from tqdm.auto import tqdm

from .images import evaluation_loader
from .read_alike import as_trained

# maps are blurred: a grid of this many pixels a side has their quantiles
PIXELS_PER_SIDE = 16


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
    autocast: bool = False,
) -> Iterator[tuple[ImageBatch, Tensor, Tensor | None, Tensor | None]]:
    """Score batch by batch; arguments as in :func:`score_dataset`, and ``autocast``, whether to keep it where it is on.

    Yields:
        The batch as read, raw scores ``(B,)``, raw maps ``(B, H, W)`` and true masks, the latter two where there are
        any.

    Raises:
        ValueError: See :func:`score_dataset`.
    """
    transform = getattr(model.pre_processor, "transform", None)
    dataset = copy.copy(dataset)
    as_trained(model, dataset)
    loader = evaluation_loader(dataset, augmentations, transform, batch_size, num_workers)
    home, modes = model.device, [(module, module.training) for module in model.modules()]
    device = torch.device(device or torch.accelerator.current_accelerator(check_available=True) or "cpu")
    model.to(device).eval()
    try:
        for batch in tqdm(loader, desc=description, unit="batch", leave=False, disable=not progress):
            images, masks = batch.image.to(device), batch.gt_mask
            if transform is not None:
                images, masks = transform(images, masks)
            with torch.autocast(images.device.type, enabled=autocast and torch.is_autocast_enabled(images.device.type)):
                found = _raw_predictions(model, images)
            yield batch, *found, masks
    finally:
        model.to(home)
        # one by one: some models keep a part in evaluation mode while they train
        for module, training in modes:
            module.training = training


def _raw_predictions(model: AnomalibModule, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return scores ``(B,)`` and maps ``(B, H, W)`` before the post-processor."""
    dtype: Any = model.dtype
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


def sample_pixels(maps: Tensor) -> Tensor:
    """Return the values of maps ``(B, H, W)`` on an even grid, shape ``(B, P)``."""
    rows, columns = (
        ((torch.arange(PIXELS_PER_SIDE, device=maps.device) + 0.5) * side / PIXELS_PER_SIDE).long()
        for side in maps.shape[-2:]
    )
    return maps[:, rows][:, :, columns].flatten(1)


def takes_bars(trainer: Trainer) -> bool:
    """Return whether a bar of ours can stand beside the trainer's: in a notebook, rich's would call itself for ever."""
    return isinstance(trainer.progress_bar_callback, TQDMProgressBar)
