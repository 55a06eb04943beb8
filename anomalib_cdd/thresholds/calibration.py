# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""The scores of unlabelled training images that thresholds are taken from.

The training's report comes first: scores by what has not learned from the image. Without one they are the model's own,
which has; a model that keeps patches of its training images is shown them mirrored.
"""

from typing import Any

import numpy as np
import torch
from anomalib.data import AnomalibDataset
from anomalib.models import AnomalyDINO, MHPatchcore, Patchcore, Rad, SuperADD
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import Compose, RandomHorizontalFlip, Transform

from anomalib_cdd.training.report import report_of
from anomalib_cdd.training.scoring import iterate_predictions

# anomalib's models that compare images with patches of the training images; ours say it by `keeps_patches`
ANOMALIB_KEEPS_PATCHES = (AnomalyDINO, MHPatchcore, Patchcore, Rad, SuperADD)
# maps are blurred: a grid of this many pixels a side has their quantiles
PIXELS_PER_SIDE = 16


def keeps_patches(model: Any) -> bool:
    """Return whether a model would meet pieces of its training images again and find them flawless.

    Args:
        model: Any anomalib model. Its attribute ``keeps_patches``, a bool, counts where it has one.
    """
    return bool(getattr(model, "keeps_patches", isinstance(model, ANOMALIB_KEEPS_PATCHES)))


def training_scores(
    model: Any,
    dataset: AnomalibDataset,
    augmentations: Transform | None = None,
    batch_size: int = 32,
    progress: bool = True,
    device: str | torch.device | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Return raw scores of the training images and pixels of their maps.

    Args:
        model: A trained model.
        dataset: The images; labels are not read.
        augmentations: Deterministic transform before the model's own.
        batch_size: Images a batch.
        progress: Whether to show a progress bar.
        device: Where to compute. ``None`` takes the accelerator if there is one.

    Returns:
        Scores ``(N,)``, of the model's training report where it knows all of the images, and pixels ``(N, P)`` of the
        model's own maps, ``None`` for a model without maps.

    Raises:
        ValueError: If a score is not a finite number.
    """
    steps = [augmentations] if augmentations is not None else []
    if keeps_patches(model):
        steps.append(RandomHorizontalFlip(1))
    paths, scores, pixels = [], [], []
    batches = iterate_predictions(
        model,
        dataset,
        augmentations=Compose(steps) if steps else None,
        batch_size=batch_size,
        device=device,
        progress=progress,
        description="thresholds",
    )
    for batch, batch_scores, maps, _ in batches:
        paths.extend(batch.image_path or [])
        scores.append(batch_scores.cpu())
        if maps is not None:
            pixels.append(sample_pixels(maps).cpu())
    report = report_of(model, paths) if paths else None
    own = torch.cat(scores).numpy()
    return own if report is None else report.scores, torch.cat(pixels).numpy() if pixels else None


def sample_pixels(maps: Tensor) -> Tensor:
    """Return the values of maps ``(B, H, W)`` on an even grid, shape ``(B, P)``."""
    rows, columns = (
        ((torch.arange(PIXELS_PER_SIDE, device=maps.device) + 0.5) * side / PIXELS_PER_SIDE).long()
        for side in maps.shape[-2:]
    )
    return maps[:, rows][:, :, columns].flatten(1)
