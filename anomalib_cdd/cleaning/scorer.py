# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""The look without training: every image of a folder judged by the patches of the others."""

import copy
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from anomalib.data import AnomalibDataset
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import Compose, Normalize, Resize
from tqdm.auto import tqdm

from anomalib_cdd.data.clean import IMAGE_SIZE, REFERENCE_IMAGES
from anomalib_cdd.teachers.backbones import PYPI_TEACHER, normalisation
from anomalib_cdd.teachers.duplicates import QUARTERS, centre, describe, near_duplicates, parts_of
from anomalib_cdd.teachers.patches import DIMENSIONS, PatchExtractor, nearest_distances, random_projection
from anomalib_cdd.training.read_alike import Reader, read_by
from anomalib_cdd.training.reading import white_level

from .recurrence import image_scores, suspicion

logger = logging.getLogger(__name__)

FEWEST_IMAGES = 3
FEW_IMAGES = 10


@dataclass(frozen=True)
class Recurrence:
    """How suspicious each of N images is to the others.

    Attributes:
        image_paths: N paths, in the order of the data set, or as they were given.
        scores: Shape ``(N,)``, at least 0, higher is more suspicious; no upper bound.
        maps: Suspicion per patch, shape ``(N, h, w)``, not blurred.
        features: A descriptor of each image less what all share, shape ``(N, D)``.
        duplicates: Rows of each group of near-duplicates.
    """

    image_paths: list[str]
    scores: NDArray[np.float32]
    maps: NDArray[np.float16]
    features: NDArray[np.float32]
    duplicates: list[list[int]]


@torch.no_grad()
def score_images(
    dataset: AnomalibDataset | Sequence[str | Path],
    *,
    backbone: str = PYPI_TEACHER,
    layers: Sequence[str] | None = None,
    pre_trained: bool = True,
    weights: str | Path | None = None,
    image_size: tuple[int, int] = IMAGE_SIZE,
    reference_images: int = REFERENCE_IMAGES,
    seed: int = 0,
    batch_size: int = 16,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Recurrence:
    """Score images by recurrence, without any training.

    Every image is read twice, so that memory does not grow with the number of images by more than a descriptor and
    a map each: once to find near-duplicates, and once to be scored; those that are asked once more.

    Args:
        dataset: An anomalib data set, or paths of images.
        backbone: timm name of the teacher.
        layers: Names of its levels. ``None`` takes those at strides 8 and 16.
        pre_trained: Whether to load the teacher's weights.
        weights: A local weight file for the teacher.
        image_size: Height and width to resize to. Time grows with the fourth power of a side.
        reference_images: How many other images are asked at most; beyond it a sample of them.
        seed: Seed of that sample.
        batch_size: Images that are read at a time.
        device: Where to compute. ``None`` takes the accelerator if there is one.
        progress: Whether to show progress bars.

    Raises:
        ValueError: If there are fewer than three images, or one cannot be read.
    """
    given = None if isinstance(dataset, AnomalibDataset) else [str(path) for path in dataset]
    if not isinstance(dataset, AnomalibDataset):
        dataset = dataset_of(dataset)
    if len(dataset) < FEWEST_IMAGES:
        msg = f"{len(dataset)} images: at least {FEWEST_IMAGES} are needed to say which is unlike the others."
        raise ValueError(msg)
    device = torch.device(device or torch.accelerator.current_accelerator(check_available=True) or "cpu")
    extractor = PatchExtractor(backbone, layers, pre_trained, weights).to(device)
    look = _Look(dataset, extractor, image_size, normalisation(backbone), batch_size, progress)

    # whole arrays: small ones that stay between large ones that go would keep the allocator from reusing memory
    count = len(dataset)
    descriptors = np.empty((count, QUARTERS**2 * look.projection.shape[1]), dtype=np.float32)
    start = 0
    for patches in look("looking for near-duplicates"):
        rows = slice(start, start := start + len(patches))
        descriptors[rows] = describe(patches).cpu()
    features = centre(descriptors)
    duplicates = near_duplicates(features)
    part = parts_of(len(dataset), duplicates)
    references = _references(part, reference_images, seed)
    asked = torch.cat(list(look("reading the images to ask", references)))
    bank = asked.flatten(2).mT.contiguous()

    scores = np.empty(count, dtype=np.float32)
    maps = np.empty((count, *asked.shape[-2:]), dtype=np.float16)
    start = 0
    for grid in look("asking the other images"):
        rows = slice(start, start := start + len(grid))
        nearest = nearest_distances(grid.flatten(2).mT.flatten(0, 1), bank).view(len(grid), -1, len(bank))
        others = torch.from_numpy(part[references][None] != part[rows][:, None]).to(device)
        batch = torch.stack([suspicion(d, known) for d, known in zip(nearest, others, strict=True)])
        batch = batch.view(len(grid), *grid.shape[-2:])
        scores[rows] = image_scores(batch, image_size).cpu()
        maps[rows] = batch.half().cpu()
    paths = [str(path) for path in dataset.samples["image_path"]]
    if given is not None:  # anomalib's data set has sorted them
        places: dict[str, list[int]] = {}
        for number, path in enumerate(given):
            places.setdefault(path, []).append(number)
        place = np.array([places[path].pop(0) for path in paths])
        order = np.argsort(place)
        duplicates = sorted(sorted(place[group].tolist()) for group in duplicates)
        paths, scores, maps, features = given, scores[order], maps[order], features[order]
    return Recurrence(paths, scores, maps, features, duplicates)


def dataset_of(paths: Sequence[str | Path]) -> AnomalibDataset:
    """Return a data set of images that are taken for normal, which reads them as the package's data sets do."""
    dataset = AnomalibDataset()
    samples = pd.DataFrame({"image_path": [str(path) for path in paths]})
    samples = samples.assign(label="normal", label_index=0, mask_path="", split="train")
    samples.attrs["task"] = "classification"
    dataset.samples = samples
    read_by(dataset, Reader(white_level(samples["image_path"])))
    return dataset


class _Look:
    """Reads images, all or some, and yields their projected patches batch by batch."""

    def __init__(
        self,
        dataset: AnomalibDataset,
        extractor: PatchExtractor,
        image_size: tuple[int, int],
        scale: tuple[Sequence[float], Sequence[float]],
        batch_size: int,
        progress: bool,
    ) -> None:
        self.dataset = copy.copy(dataset)
        self.dataset.augmentations = Compose([Resize(image_size, antialias=True), Normalize(*map(list, scale))])
        self.extractor = extractor
        self.device = next(extractor.parameters()).device
        self.projection = random_projection(extractor.channels, DIMENSIONS).to(self.device)
        self.batch_size = batch_size
        self.progress = progress

    def __call__(self, description: str, rows: NDArray[np.int64] | None = None) -> Iterator[Tensor]:
        """Yield patches ``(B, d, h, w)``."""
        dataset = self.dataset if rows is None else self.dataset.subsample(rows.tolist())
        loader = DataLoader(dataset, self.batch_size, collate_fn=dataset.collate_fn)
        with tqdm(total=len(dataset), desc=description, unit="image", leave=False, disable=not self.progress) as bar:
            for batch in loader:
                patches = self.extractor(batch.image.to(self.device))
                yield torch.einsum("bchw,cd->bdhw", patches, self.projection)
                bar.update(len(batch.image))


def _references(part: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Return the images to ask, ascending: one of each part, at most ``count`` beside the image's own."""
    parts = np.unique(part)
    if len(parts) <= count + 1:
        return parts
    return np.sort(np.random.default_rng(seed).choice(parts, count, replace=False))
