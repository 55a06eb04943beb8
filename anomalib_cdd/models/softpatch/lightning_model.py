# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""SoftPatch: a memory bank from which noisy patches are left out, and in which the others are weighted.

Jiang et al., NeurIPS 2022, arXiv 2403.14233. :meth:`SoftPatch.fill` is the method.
"""

from collections.abc import Sequence
from functools import partial

import torch
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from torch import Tensor
from tqdm.auto import tqdm

from anomalib_cdd.teachers.anomaly_map import check_sides
from anomalib_cdd.teachers.patches import PatchExtractor, coreset, random_projection
from anomalib_cdd.training.defaults import LabelFreeDefaults
from anomalib_cdd.training.memory_bank import FillsMemoryBank

from .noise import NOISE_SCORES, NoiseScore, kept_patches, noise_scores, patch_weights
from .torch_model import SoftPatchModel

PROJECTED = 128


class SoftPatch(FillsMemoryBank, LabelFreeDefaults, AnomalibModule):  # type: ignore[misc]  # as anomalib's own
    """SoftPatch (NeurIPS 2022).

    Each patch is compared with the patches at the same place of the other training images; the most unusual leave, and
    each of the others carries its noise score into the bank as a weight of distances to it.

    The defaults are the paper's. While it fits it takes 2 bytes times patches times channels an image in a temporary
    file (1.6 MB for WRN50 at 224), some 1,000 bytes a patch in memory, and work space of a fixed size beside that.

    Args:
        backbone: timm name of the teacher.
        layers: Names of the teacher's levels, two or more. ``None`` takes those at strides 8 and 16: a ResNet's
            ``layer2`` and ``layer3``.
        pre_trained: Whether to load the teacher's weights.
        weights: A local weight file for the teacher, for sites without internet.
        noise_score: How unusual a patch is: its local outlier factor, ``"lof"``; its distance to the ``"nearest"``
            other; or ``"gaussian"``, its Mahalanobis distance. All on a random projection to 128 channels.
        threshold: Share of the patches that leave, tau, in [0, 1).
        lof_neighbors: k of the local outlier factor.
        coreset_sampling_ratio: Share of the other patches that the bank keeps, in (0, 1].
        soft_weights: Whether distances are weighted by noise scores.
        audit: Whether a fit ends with ``audit/`` in its results: the training images from most to least suspicious.
        pre_processor: anomalib's, or ``True`` for resize to 256, centre crop of 224 and the teacher's normalisation.
        post_processor: anomalib's, or whether to have the default.
        evaluator: anomalib's, or whether to have the default.
        visualizer: anomalib's, or whether to have the default.

    Raises:
        ValueError: If an option is out of its range, or the teacher has too few levels.

    Example:
        >>> from anomalib.engine import Engine
        >>> from anomalib_cdd import MVTecNoisy, SoftPatch
        >>> Engine().train(SoftPatch(), datamodule=MVTecNoisy(category="bottle", noise_ratio=0.1))  # doctest: +SKIP
    """

    def __init__(
        self,
        backbone: str = "wide_resnet50_2.tv_in1k",
        layers: Sequence[str] | None = None,
        pre_trained: bool = True,
        weights: str | None = None,
        noise_score: NoiseScore = "lof",
        threshold: float = 0.15,
        lof_neighbors: int = 5,
        coreset_sampling_ratio: float = 0.1,
        soft_weights: bool = True,
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
        _check(noise_score, threshold, lof_neighbors, coreset_sampling_ratio)
        extractor = PatchExtractor(backbone, layers, pre_trained, weights)
        if len(extractor.teacher.levels) - extractor.first < 2:
            msg = f"layers is {layers}: SoftPatch joins two of the teacher's levels or more, such as strides 8 and 16."
            raise ValueError(msg)
        self.model: SoftPatchModel = SoftPatchModel(extractor)

    def fill(self, images: list[Tensor], grid: tuple[int, int]) -> Tensor:
        """Fill the bank (Sec. 3.2 and 3.3); see :meth:`FillsMemoryBank.fill`."""
        check_sides(*self.image_size)
        options, channels = self.hparams, images[0].shape[1]
        projection = random_projection(channels, PROJECTED).to(self.device)
        points = torch.empty(len(images[0]), len(images), projection.shape[1], device=self.device)
        for number, image in enumerate(images):
            points[:, number] = self.vectors(image, grid) @ projection

        # how unusual a patch is among the patches at its place; the most unusual leave, whatever their place
        bar = partial(tqdm, desc="noise scores", leave=False)
        noise = noise_scores(points, options["noise_score"], options["lof_neighbors"], bar)
        kept = kept_patches(noise, options["threshold"])
        places, owners = kept.nonzero(as_tuple=True)

        # of the others a coreset, each with its noise score as its weight
        count = max(1, int(len(places) * options["coreset_sampling_ratio"]))
        chosen = coreset(points[kept], count, partial(tqdm, desc="coreset", leave=False))
        places, owners = places[chosen], owners[chosen]
        weights = patch_weights(noise)[places, owners] if options["soft_weights"] else None
        bank = torch.empty(len(chosen), channels, device=self.device)
        for number, image in enumerate(images):
            own = owners == number
            bank[own] = self.vectors(image, grid)[places[own]]
        self.model.bank.fill(bank, weights)
        return owners


def _check(noise_score: str, threshold: float, lof_neighbors: int, coreset_sampling_ratio: float) -> None:
    """Refuse options out of range.

    Raises:
        ValueError: Naming the option and its value.
    """
    if noise_score not in NOISE_SCORES:
        msg = f"noise_score is {noise_score!r}; it has to be one of {', '.join(NOISE_SCORES)}."
        raise ValueError(msg)
    if not 0 <= threshold < 1:
        msg = f"threshold is {threshold}; it is the share of patches to leave out and has to be in [0, 1)."
        raise ValueError(msg)
    if lof_neighbors < 1:
        msg = f"lof_neighbors is {lof_neighbors}; it has to be 1 or more."
        raise ValueError(msg)
    if not 0 < coreset_sampling_ratio <= 1:
        msg = f"coreset_sampling_ratio is {coreset_sampling_ratio}; it has to be in (0, 1]."
        raise ValueError(msg)
