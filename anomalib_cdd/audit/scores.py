# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""What makes the scores of an audit, and whether they are out of sample: given by what has not learned from the image.

A model's training report is asked first; its own scores of images that it has learned from are in sample, and said to
be so.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from anomalib.data import AnomalibDataModule
from anomalib.models import AnomalibModule
from numpy.typing import NDArray
from torch.nn import functional as F

from anomalib_cdd.cleaning.cross_domain import cross_domain_scores
from anomalib_cdd.cleaning.scorer import score_images
from anomalib_cdd.teachers.backbones import PYPI_TEACHER
from anomalib_cdd.training.images import TrainingImages
from anomalib_cdd.training.report import ReportsTraining, TrainingReport, report_of
from anomalib_cdd.training.scoring import iterate_predictions
from anomalib_cdd.training.visualization import crop_margins, uncrop

Sample = Literal["out-of-sample", "in-sample", "unknown"]
# anomaly maps are smooth: at this longest side, two bytes a pixel, those of 50,000 images fit into memory
MAP_SIDE = 64


@dataclass(frozen=True)
class ScoredImages:
    """Scores of N images and where they come from.

    Attributes:
        image_paths: N files.
        scores: Higher is more suspicious, shape ``(N,)``.
        scored_by: What gave the scores, in a word or two.
        sample: Of each image, whether its score was given by what has not learned from it.
        notes: The same for a person, in sentences.
        maps: Anomaly maps of the whole images, each ``(h, w)``, or ``None``.
        model_scores: The model's own scores, shape ``(N,)``, where there is a model.
        curves: Values over the epochs by name, each of shape ``(E, N)``.
        percentiles: Share of the training images that score lower, in per cent, shape ``(N,)``, where that is known.
        duplicates: Groups of near-duplicates, as places in ``image_paths``.
    """

    image_paths: list[str]
    scores: NDArray[np.float32]
    scored_by: str
    sample: list[Sample]
    notes: list[str]
    maps: list[NDArray[np.float16]] | None = None
    model_scores: NDArray[np.float32] | None = None
    curves: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    percentiles: NDArray[np.float32] | None = None
    duplicates: Sequence[Sequence[int]] = ()


def score_by_model(
    model: AnomalibModule,
    images: TrainingImages,
    *,
    trained_on: bool | None = None,
    progress: bool = True,
    device: str | torch.device | None = None,
) -> ScoredImages:
    """Score images by a trained model, or by its training's report of them where it has one.

    Args:
        model: A trained anomalib model.
        images: The data set and how it is read.
        trained_on: Whether the model has learned from these images; ``None`` where that is not known.
        progress: Whether to show a progress bar.
        device: Where to compute. ``None`` takes the accelerator if there is one.

    Raises:
        ValueError: If the model gives no finite scores.
    """
    paths, scores, maps = _predict(model, images, progress, device)
    name = type(model).__name__
    report = report_of(model, paths)
    if report is not None:
        note = f"Scores are the training's: each image was judged by parts of {name} that had not learned from it."
        sample: list[Sample] = ["out-of-sample"] * len(paths)
        return ScoredImages(
            paths, report.scores, f"{name}, training report", sample, [note], maps, scores, report.curves
        )
    training = model.training_report() if isinstance(model, ReportsTraining) else None
    sample, notes = _own_scores(name, paths, trained_on, training)
    known = np.empty(0) if training is None else training.scores[np.isfinite(training.scores)]
    percentiles = None
    if trained_on is None and len(known):
        percentiles = (100 * np.searchsorted(np.sort(known), scores) / len(known)).astype(np.float32)
        notes.append(f"Percentiles (p) say what share of {len(known):,} training images score lower.")
    elif trained_on is None:
        notes.append("The checkpoint keeps no scores of its training images: there are no percentiles.")
    return ScoredImages(paths, scores, name, sample, notes, maps, scores, percentiles=percentiles)


def score_by_recurrence(images: TrainingImages, *, backbone: str = PYPI_TEACHER, progress: bool = True) -> ScoredImages:
    """Score images by what comes back in the others, without any training.

    Args:
        images: The data set and how it is read.
        backbone: timm name of the teacher whose features are compared.
        progress: Whether to show progress bars.

    Raises:
        ValueError: See :func:`anomalib_cdd.cleaning.scorer.score_images`.
        RuntimeError: If the teacher's weights are not there.
    """
    found = score_images(images.dataset, backbone=backbone, batch_size=images.batch_size, progress=progress)
    note = (
        "No model was trained: an image is suspicious where it shows what the others do not. Scores are out of sample."
    )
    sample: list[Sample] = ["out-of-sample"] * len(found.image_paths)
    return ScoredImages(
        found.image_paths, found.scores, "recurrence", sample, [note], list(found.maps), duplicates=found.duplicates
    )


def score_by_cross_domain_training(
    make_model: Callable[[], AnomalibModule],
    datamodule: AnomalibDataModule,
    domains: int,
    folder: Path,
    trainer: Mapping[str, Any],
) -> ScoredImages:
    """Score the training images of a datamodule by models that are each trained on a part of them.

    Args:
        make_model: Makes a model that has learned nothing.
        datamodule: Its training set is dealt out.
        domains: Number of parts and of models.
        folder: Where finished parts are kept: the same call goes on where it was stopped.
        trainer: Arguments of ``Engine``.

    Raises:
        ValueError: See :func:`anomalib_cdd.cleaning.cross_domain.cross_domain_scores`.
    """
    report = cross_domain_scores(make_model, datamodule, domains, folder=folder, trainer=trainer)
    name = type(make_model()).__name__
    note = f"Each image was scored by one of {domains} models that was trained without it: scores are out of sample."
    sample: list[Sample] = ["out-of-sample"] * len(report.image_paths)
    return ScoredImages(
        report.image_paths, report.scores, f"{name}, cross-domain training", sample, [note], curves=report.curves
    )


def _own_scores(
    name: str, paths: list[str], trained_on: bool | None, training: TrainingReport | None
) -> tuple[list[Sample], list[str]]:
    """Say of a model's own scores which are in sample."""
    if trained_on is None and training is None:
        note = (
            f"Scores are {name}'s own. It does not say which images it has learned from: of those, scores are in "
            "sample, and lenient."
        )
        return ["unknown"] * len(paths), [note]
    learned = set(paths) if training is None else set(training.image_paths)
    sample: list[Sample] = ["in-sample" if trained_on or path in learned else "out-of-sample" for path in paths]
    count = sample.count("in-sample")
    if count == 0:
        return sample, [f"Scores are {name}'s own. It was not trained on any of these files: they are out of sample."]
    some = "these images" if count == len(paths) else f"{count} of the {len(paths)} images"
    lenient = "in sample, and lenient: a bad image may rank low."
    return sample, [f"Scores are {name}'s own. It has learned from {some}, whose scores are {lenient}"]


def _predict(
    model: AnomalibModule, images: TrainingImages, progress: bool, device: str | torch.device | None
) -> tuple[list[str], NDArray[np.float32], list[NDArray[np.float16]] | None]:
    """Return paths, raw scores and small maps of the whole images."""
    margins = crop_margins(getattr(model.pre_processor, "transform", None))
    paths: list[str] = []
    scores, small = [], []
    batches = iterate_predictions(
        model,
        images.dataset,
        augmentations=images.augmentations,
        batch_size=images.batch_size,
        device=device,
        progress=progress,
        description="audit",
    )
    for batch, batch_scores, maps, _ in batches:
        scores.append(batch_scores.cpu().numpy())
        paths += [str(path) for path in batch.image_path or []]
        if maps is not None:
            small += shrink(uncrop(maps.cpu(), margins))
    return paths, np.concatenate(scores), small or None


def shrink(maps: torch.Tensor) -> list[NDArray[np.float16]]:
    """Return maps ``(B, H, W)`` at a longest side of at most 64, one by one."""
    factor = MAP_SIDE / max(maps.shape[-2:])
    if factor < 1:
        size = [max(round(side * factor), 1) for side in maps.shape[-2:]]
        maps = F.interpolate(maps[:, None].float(), size, mode="bilinear", antialias=True)[:, 0]
    return list(maps.numpy().astype(np.float16))
