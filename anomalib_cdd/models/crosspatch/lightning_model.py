# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""CrossPatch: a memory bank that asks more than one image, for training sets with unlabelled anomalies.

"Cross-Domain Distillation under other paradigms", the future work of arXiv 2508.18007, for memory banks: each training
image is a domain, and no single one can vouch for the defect that it shows.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from anomalib_cdd.teachers.anomaly_map import check_sides
from anomalib_cdd.teachers.duplicates import centre, describe, near_duplicates, parts_of
from anomalib_cdd.teachers.patches import PatchExtractor, cell_means, coreset
from anomalib_cdd.training.defaults import LabelFreeDefaults
from anomalib_cdd.training.memory_bank import FillsMemoryBank

from .torch_model import CrossPatchModel


class CrossPatch(FillsMemoryBank, LabelFreeDefaults, AnomalibModule):  # type: ignore[misc]  # as anomalib's own
    """CrossPatch: patches of the training images, and the k-th nearest image decides.

    Patchcore with four differences: the bank is kept image by image; each image's coreset is its own (one over all
    images prefers what is rare, anomalies above all); the bank holds the mean of the patches that each of them stands
    for; and a patch is as anomalous as it is far from its nearest in the k-th nearest image. Near-duplicates count as
    one image.

    Args:
        backbone: timm name of the teacher.
        layers: Names of its levels. ``None`` takes those at strides 8 and 16: a ResNet's ``layer2`` and ``layer3``.
        pre_trained: Whether to load the teacher's weights.
        weights: A local weight file for the teacher, for sites without internet.
        coreset_sampling_ratio: Patches that the bank has of an image, as a share of the image's, in (0, 1].
        agreeing_images: In how many training images a patch has to be found, k, at least 1. With 1 an anomalous
            training image vouches for its own defect.
        max_patches: Patches in the bank at most, shared evenly by the images; beyond one patch an image a sample of
            the images. ``None`` sets no limit.
        seed: Seed of that sample.
        audit: Whether a fit ends with ``audit/`` in its results: the training images from most to least suspicious.
        pre_processor: anomalib's, or ``True`` for resize to 256, centre crop of 224 and the teacher's normalisation.
        post_processor: anomalib's, or whether to have the default.
        evaluator: anomalib's, or whether to have the default.
        visualizer: anomalib's, or whether to have the default.

    Raises:
        ValueError: If an option is out of its range.

    Example:
        >>> from anomalib.engine import Engine
        >>> from anomalib_cdd import CrossPatch, MVTecNoisy
        >>> Engine().train(CrossPatch(), datamodule=MVTecNoisy(category="bottle", noise_ratio=0.1))  # doctest: +SKIP
    """

    def __init__(
        self,
        backbone: str = "wide_resnet50_2.tv_in1k",
        layers: Sequence[str] | None = None,
        pre_trained: bool = True,
        weights: str | None = None,
        coreset_sampling_ratio: float = 0.1,
        agreeing_images: int = 2,
        max_patches: int | None = None,
        seed: int = 0,
        audit: bool = True,
        pre_processor: PreProcessor | bool = True,
        post_processor: PostProcessor | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        # a ListConfig in the checkpoint would not load with weights_only
        layers = None if layers is None else tuple(str(layer) for layer in layers)
        if pre_processor is True:
            pre_processor = self.configure_pre_processor(backbone=backbone)
        super().__init__(
            pre_processor=pre_processor,
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        _check_options(coreset_sampling_ratio, agreeing_images, max_patches)
        self.model: CrossPatchModel = CrossPatchModel(
            PatchExtractor(backbone, layers, pre_trained, weights), agreeing_images
        )

    @property
    def keeps_patches(self) -> bool:  # type: ignore[override]
        """Whether a training image finds its own patches and nothing else: with two, another one is asked."""
        return self.model.agreeing_images == 1

    def fill(self, images: list[Tensor], grid: tuple[int, int]) -> Tensor:
        """Fill the bank, image by image; see :meth:`FillsMemoryBank.fill`.

        Returns:
            Which images of the bank show another part than each training image, shape ``(N, M)``.
        """
        check_sides(*self.image_size)
        # each image is a domain; near-duplicates share one
        features = centre(torch.cat([describe(image.float().T.reshape(1, -1, *grid)) for image in images]).numpy())
        domain = parts_of(len(images), near_duplicates(features))
        banked, count = self._shares(np.unique(domain), len(images[0]))
        chosen = [self.vectors(images[row], grid) for row in tqdm(banked, desc="coresets", leave=False)]
        self.model.memory_bank = torch.stack([cell_means(patches, coreset(patches, count)) for patches in chosen])
        return torch.from_numpy(domain[:, None] != domain[banked])

    def _shares(self, images: NDArray[np.int64], patches: int) -> tuple[NDArray[np.int64], int]:
        """Return which images the bank keeps, and how many patches of each."""
        options = self.hparams
        count = max(1, round(options["coreset_sampling_ratio"] * patches))
        limit = options["max_patches"]
        if limit is None or len(images) * count <= limit:
            return images, count
        if len(images) > limit:
            images = np.sort(np.random.default_rng(options["seed"]).choice(images, limit, replace=False))
        return images, limit // len(images)

    def judge(self, images: list[Tensor], known: Tensor, grid: tuple[int, int]) -> Iterable[Tensor] | None:
        """Ask about each image those that show another part; ``None`` where all are near-duplicates of one."""
        if not known.any(dim=1).all():
            self.model.scale.fill_(1.0)  # not an earlier fit's
            return None
        bank, bar = self.model.memory_bank, tqdm(images, desc="asking the other images", leave=False)
        distances = torch.stack(
            [
                self.model.distances(self.vectors(image, grid), bank[others])
                for image, others in zip(bar, known, strict=True)
            ]
        )
        self.model.scale = distances.median().clamp_min(torch.finfo(distances.dtype).tiny)
        return (self.model.anomaly_map(each.view(1, *grid), self.image_size) for each in distances)


def _check_options(coreset_sampling_ratio: float, agreeing_images: int, max_patches: int | None) -> None:
    if not 0 < coreset_sampling_ratio <= 1:
        msg = f"coreset_sampling_ratio has to be above 0 and at most 1, found {coreset_sampling_ratio}."
        raise ValueError(msg)
    if agreeing_images < 1:
        msg = f"agreeing_images has to be at least 1, found {agreeing_images}."
        raise ValueError(msg)
    if max_patches is not None and max_patches < 2:
        msg = f"max_patches has to be at least 2, or None for no limit, found {max_patches}."
        raise ValueError(msg)
