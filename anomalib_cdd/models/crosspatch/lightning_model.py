# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""CrossPatch: a memory bank that asks more than one image, for training sets with unlabelled anomalies.

"Cross-Domain Distillation under other paradigms", the future work of arXiv 2508.18007, for memory banks: each training
image is a domain, and no single one can vouch for the defect that it shows.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from anomalib import LearningType
from anomalib.data import Batch
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule, MemoryBankMixin
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor
from tqdm.auto import tqdm

from anomalib_cdd.teachers.duplicates import centre, describe, near_duplicates, parts_of
from anomalib_cdd.teachers.patches import PatchExtractor, coreset
from anomalib_cdd.training.defaults import LabelFreeDefaults
from anomalib_cdd.training.precision import full_precision
from anomalib_cdd.training.report import TrainingReport

from .torch_model import CrossPatchModel


class CrossPatch(LabelFreeDefaults, MemoryBankMixin, AnomalibModule):  # type: ignore[misc]  # as anomalib's own
    """CrossPatch: patches of the training images, and the k-th nearest image decides.

    Patchcore with three differences: the bank is kept image by image, each image's coreset is its own (one over all
    images prefers what is rare, anomalies above all), and a patch is as anomalous as it is far from its nearest patch
    in the k-th nearest image. Near-duplicates count as one image.

    Args:
        backbone: timm name of the teacher.
        layers: Names of its levels. ``None`` takes those at strides 8 and 16: a ResNet's ``layer2`` and ``layer3``.
        pre_trained: Whether to load the teacher's weights.
        weights: A local weight file for the teacher, for sites without internet.
        coreset_sampling_ratio: Share of an image's patches that the bank keeps, in (0, 1].
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
        self._patches: list[Tensor] = []
        self._paths: list[str] = []
        self._image_size: tuple[int, int] = (0, 0)
        self._report: TrainingReport | None = None

    # ------------------------------------------------------------------------------------------ the method

    @torch.no_grad()
    def fit(self) -> None:
        """Make the bank of the patches that were seen, then ask it about each image without its own.

        Raises:
            ValueError: If no patches were seen.
        """
        if not self._patches:
            msg = "CrossPatch has seen no training image yet: validate after an epoch, not within it."
            raise ValueError(msg)
        grids = torch.cat(self._patches)
        images = grids.flatten(2).mT

        # each image is a domain; near-duplicates share one
        features = centre(torch.cat([describe(grid[None].float()) for grid in grids]).numpy())
        domain = parts_of(len(images), near_duplicates(features))
        banked, count = self._shares(np.unique(domain), images.shape[1])
        chosen = [images[row].to(self.device).float() for row in tqdm(banked, desc="coresets", leave=False)]
        self.model.memory_bank = torch.stack([patches[coreset(patches, count)] for patches in chosen])

        self._judge_training_images(images, torch.from_numpy(domain[:, None] != domain[banked]), grids.shape[-2:])
        self._patches, self._paths = [], []

    def _shares(self, images: np.ndarray, patches: int) -> tuple[np.ndarray, int]:
        """Return which images the bank keeps, and how many patches of each."""
        options = self.hparams
        count = max(1, round(options["coreset_sampling_ratio"] * patches))
        limit = options["max_patches"]
        if limit is None or len(images) * count <= limit:
            return images, count
        if len(images) > limit:
            images = np.sort(np.random.default_rng(options["seed"]).choice(images, limit, replace=False))
        return images, limit // len(images)

    def _judge_training_images(self, images: Tensor, others: Tensor, grid: Sequence[int]) -> None:
        """Set the scale, and report what the other images say of each.

        Args:
            images: Patches ``(N, P, d)``.
            others: Which images of the bank show another part than an image, shape ``(N, M)``.
            grid: Height and width of the patch grid.
        """
        if not others.any(dim=1).all():  # one image, or near-duplicates of one
            return
        bank = self.model.memory_bank
        found = [
            self.model.distances(patches.to(self.device).float(), bank[known.to(self.device)])
            for patches, known in zip(tqdm(images, desc="asking the other images", leave=False), others, strict=True)
        ]
        distances = torch.stack(found)
        self.model.scale = distances.median().clamp_min(torch.finfo(distances.dtype).tiny)
        maps = [self.model.anomaly_map(each.view(1, *grid), self._image_size) for each in distances]
        scores = np.array([float(each.amax()) for each in maps], dtype=np.float32)
        if len(self._paths) == len(scores):
            self._report = TrainingReport(self._paths, scores)

    def training_report(self) -> TrainingReport | None:
        """Return the scores of the training images by the patches of the other images, near-duplicates left out.

        ``None`` before a fit, where there is one image only, or where the images have no paths.
        """
        return self._report

    # ------------------------------------------------------------------------------------------ Lightning

    def on_train_epoch_start(self) -> None:
        """Begin a new bank."""
        self._is_fitted = torch.tensor([False], device=self.device)
        self._patches, self._paths, self._report = [], [], None

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Remember the patches of a batch.

        Args:
            batch: Images of shape ``(B, 3, H, W)``, normalised.
            batch_idx: Index of the batch.

        Returns:
            Zero: there is nothing to optimise.

        Raises:
            ValueError: If the images have another size than those before.
        """
        del batch_idx
        images: Any = batch.image
        size = (int(images.shape[-2]), int(images.shape[-1]))
        if self._patches and size != self._image_size:
            msg = f"Training images of {size} and {self._image_size} pixels: resize them to one size, pre_processor."
            raise ValueError(msg)
        self._image_size = size
        with torch.no_grad(), full_precision(self.device.type):
            self._patches.append(self.model.patches(images.to(self.dtype)).half().cpu())
        self._paths += [str(path) for path in getattr(batch, "image_path", None) or []]
        return torch.tensor(0.0, requires_grad=True, device=self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        """Score a batch.

        Args:
            batch: Images of shape ``(B, 3, H, W)``, normalised.
            batch_idx: Index of the batch.

        Returns:
            The batch with anomaly maps and scores.
        """
        del batch_idx
        return batch.update(**self.model(batch.image)._asdict())

    @staticmethod
    def configure_optimizers() -> None:
        """Nothing is optimised."""
        return

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the report."""
        super().on_save_checkpoint(checkpoint)
        if self._report is not None:
            scores = torch.from_numpy(self._report.scores)
            checkpoint["training_report"] = {"image_paths": self._report.image_paths, "scores": scores}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the report back."""
        super().on_load_checkpoint(checkpoint)
        report = checkpoint.get("training_report")
        self._report = None if report is None else TrainingReport(report["image_paths"], report["scores"].numpy())

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path, **kwargs: Any) -> "CrossPatch":  # type: ignore[override]
        """Load a model; the teacher's weights come from the checkpoint, so that nothing is fetched.

        Args:
            checkpoint_path: A checkpoint that Lightning wrote.
            kwargs: Constructor arguments to override, and those of anomalib's ``load_from_checkpoint``.
        """
        model = super().load_from_checkpoint(checkpoint_path, **{"pre_trained": False, "weights": None, **kwargs})
        return cast("CrossPatch", model)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle what inference needs: anomalib's torch export pickles the whole module."""
        return super().__getstate__() | {"_patches": [], "_paths": [], "_report": None}

    # ------------------------------------------------------------------------------------------ anomalib

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """One pass over the images, on one device."""
        return {"gradient_clip_val": 0, "max_epochs": 1, "num_sanity_val_steps": 0, "devices": 1}

    @property
    def learning_type(self) -> LearningType:
        """One-class: there are no labels in training."""
        return LearningType.ONE_CLASS


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
