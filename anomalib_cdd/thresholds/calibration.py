# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""The scores of unlabelled training images that thresholds are taken from.

The training's report comes first: scores, and pixels of maps, by what has not learned from the image. Without one they
are the model's own, which has; a model that keeps patches of its training images is shown them mirrored.
"""

from functools import partial
from typing import Any

import numpy as np
import torch
from anomalib.data import AnomalibDataset
from anomalib.models import AnomalyDINO, MHPatchcore, Patchcore, Rad, SuperADD
from numpy.typing import NDArray
from torchvision.transforms.v2 import Compose, RandomHorizontalFlip, Transform

from anomalib_cdd.training.images import left_out_of
from anomalib_cdd.training.report import report_of
from anomalib_cdd.training.scoring import iterate_predictions, sample_pixels

# anomalib's models that compare images with patches of the training images; ours say it by `keeps_patches`
ANOMALIB_KEEPS_PATCHES = (AnomalyDINO, MHPatchcore, Patchcore, Rad, SuperADD)


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
        Scores ``(N,)`` and pixels ``(N, P)`` of maps, each of the model's training report where that knows all of the
        images, or else the model's own; no pixels, ``None``, of a model without maps. Images that cleaning left out
        come last, scored by the model, which has not learned from them.

    Raises:
        ValueError: If a score is not a finite number.
    """
    ask = partial(_own_scores, model, batch_size=batch_size, device=device, progress=progress)
    report = report_of(model, [str(path) for path in dataset.samples["image_path"]])
    pixels: NDArray[np.float32] | None
    if report is not None and report.pixels is not None:
        scores, pixels = report.scores, report.pixels
    else:
        steps = [augmentations] if augmentations is not None else []
        if keeps_patches(model):
            steps.append(RandomHorizontalFlip(1))
        own, pixels = ask(dataset, augmentations=Compose(steps) if steps else None)
        scores = own if report is None else report.scores
    left_out = left_out_of(dataset)
    if left_out is None:
        return scores, pixels
    more, more_pixels = ask(left_out, augmentations=augmentations)
    if pixels is not None and more_pixels is not None:
        pixels = np.concatenate([pixels, more_pixels])
    return np.concatenate([scores, more]), pixels


def _own_scores(
    model: Any, dataset: AnomalibDataset, **options: Any
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Return what the model itself says of images: scores ``(N,)`` and, where it has maps, pixels ``(N, P)``."""
    scores, pixels = [], []
    for _, batch_scores, maps, _ in iterate_predictions(model, dataset, description="thresholds", **options):
        scores.append(batch_scores.cpu())
        if maps is not None:
            pixels.append(sample_pixels(maps).cpu())
    return torch.cat(scores).numpy(), torch.cat(pixels).numpy() if pixels else None
