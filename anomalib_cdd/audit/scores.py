# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""What makes the scores of an audit, and whether they are out of sample: given by what has not learned from the image.

A model's training report is asked first; its own scores of images that it has learned from are in sample, and said to
be so.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from anomalib.data import AnomalibDataModule
from anomalib.models import AnomalibModule
from numpy.typing import NDArray

from anomalib_cdd.cleaning.cross_domain import cross_domain_scores
from anomalib_cdd.cleaning.scorer import score_images
from anomalib_cdd.teachers.backbones import PYPI_TEACHER
from anomalib_cdd.training.image_files import contents_of
from anomalib_cdd.training.images import TrainingImages
from anomalib_cdd.training.report import ReportsTraining
from anomalib_cdd.training.scoring import iterate_predictions
from anomalib_cdd.training.visualization import small_maps

Sample = Literal["out-of-sample", "in-sample", "unknown"]


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
    maps: list[NDArray[np.floating]] | None = None
    model_scores: NDArray[np.float32] | None = None
    curves: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    percentiles: NDArray[np.float32] | None = None
    duplicates: Sequence[Sequence[int]] = ()


class Learned(NamedTuple):
    """Which of N images a model has learned from.

    Attributes:
        places: Each image's place among the training images, shape ``(N,)``, -1 where it is none of them.
        doubtful: Whether it may be one all the same, shape ``(N,)``: it has the path of one but other content, or the
            name of one whose content is not known.
    """

    places: NDArray[np.int64]
    doubtful: NDArray[np.bool_]


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
    paths, own, maps = _predict(model, images, progress, device)
    name = type(model).__name__
    training = model.training_report() if isinstance(model, ReportsTraining) else None
    if training is None:
        sample, notes = _without_report(name, len(paths), trained_on)
        return ScoredImages(paths, own, name, sample, notes, maps, own)
    found = find_learned(paths, training.image_paths, training.contents)
    # both are on one scale, see TrainingReport
    known = (found.places >= 0) & np.isfinite(training.scores[found.places])
    scores = np.where(known, training.scores[found.places], own).astype(np.float32)
    learned = (found.places >= 0) | bool(trained_on)
    kinds: list[Sample] = ["in-sample", "unknown", "out-of-sample"]
    sample = np.select([learned & ~known, found.doubtful & ~known], kinds[:2], kinds[2]).tolist()
    notes = _notes(name, known, sample)
    curves = {key: np.where(known, values[:, found.places], np.nan) for key, values in training.curves.items()}
    reported = training.scores[np.isfinite(training.scores)]
    percentiles = None
    if trained_on is None and not known.all() and len(reported):
        percentiles = (100 * np.searchsorted(np.sort(reported), scores) / len(reported)).astype(np.float32)
        notes.append(f"Percentiles (p) say what share of {len(reported):,} training images score lower.")
    scored_by = (
        f"{name}, training report" if known.all() else f"{name} and its training report" if known.any() else name
    )
    return ScoredImages(
        paths, scores, scored_by, sample, notes, maps, own, curves if known.any() else {}, percentiles=percentiles
    )


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
    if any(len(group) == len(found.image_paths) for group in found.duplicates):
        note = (
            "All images are near-duplicates of one: there is no other to compare them with, and no score says anything."
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
    maps = None if report.maps is None else list(report.maps)
    return ScoredImages(report.image_paths, report.scores, f"{name}, cross-domain training", sample, [note], maps)


def find_learned(paths: Sequence[str], trained: Sequence[str], contents: Sequence[str] = ()) -> Learned:
    """Find which images a model has learned from: by their content, wherever they lie now.

    Args:
        paths: Images, N of them.
        trained: The training images, as they were called then.
        contents: What told their files apart then, see :func:`~anomalib_cdd.training.image_files.contents_of`. Where
            that was not taken down, those files count that are still there.
    """
    contents = contents or contents_of(trained)
    now, then = [os.path.realpath(path) for path in paths], [os.path.realpath(path) for path in trained]
    # of several files of one content that of the same path
    of_both = {key: place for place, key in enumerate(zip(contents, then, strict=True))}
    of_content = {content: place for place, content in enumerate(contents)} | {"": -1}
    known = zip(contents_of(paths), now, strict=True)
    places = np.array([of_both.get(key, of_content.get(key[0], -1)) for key in known])
    there = set(then)
    names = {Path(path).name for path, content in zip(trained, contents, strict=True) if not content}
    doubtful = [real in there or Path(path).name in names for path, real in zip(paths, now, strict=True)]
    return Learned(places, np.array(doubtful) & (places < 0))


def _without_report(name: str, count: int, trained_on: bool | None) -> tuple[list[Sample], list[str]]:
    """Say what is known of a model's own scores."""
    own = f"Scores are {name}'s own. It"
    if trained_on is None:
        says = "does not say which images it has learned from: of those, scores are in sample, and lenient."
        none = "The checkpoint keeps no scores of its training images: there are no percentiles."
        return ["unknown"] * count, [f"{own} {says}", none]
    if trained_on:
        note = (
            f"{own} has learned from these images, whose scores are in sample, and lenient: a bad image may rank low."
        )
        return ["in-sample"] * count, [note]
    return ["out-of-sample"] * count, [f"{own} has not learned from these images: they are out of sample."]


def _notes(name: str, known: NDArray[np.bool_], sample: list[Sample]) -> list[str]:
    """Say whose scores are shown, and what is known of them, in sentences."""
    total, reported = len(sample), int(known.sum())
    judged = f"judged by parts of {name} that had not learned from it."
    if reported == total:
        notes = [f"Scores are the training's: each image was {judged}"]
    elif reported:
        notes = [f"Scores of {reported} of the {total} images are the training's: each was {judged}"]
        notes[0] += f" Those of the others are {name}'s own, on the same scale."
    else:
        notes = [f"Scores are {name}'s own."]
    if learned := sample.count("in-sample"):
        some = "these images" if learned == total else f"{learned} of the {total} images"
        lenient = "whose scores are in sample, and lenient: a bad image may rank low."
        notes.append(
            f"It has learned from {some}, {lenient}" if not reported else f"{name} has learned from {some}, {lenient}"
        )
    if doubtful := sample.count("unknown"):
        notes.append(
            f"{doubtful} images have paths or names of training images and may differ from them: whether {name} has "
            "learned from them is unknown, and of those that it has, scores are lenient."
        )
    new = total - reported - learned - doubtful
    if new:
        some = "these images" if new == total else f"the other {new} images"
        notes.append(f"No training image has the content of {some}: they count as out of sample.")
    return notes


def _predict(
    model: AnomalibModule, images: TrainingImages, progress: bool, device: str | torch.device | None
) -> tuple[list[str], NDArray[np.float32], list[NDArray[np.float32]] | None]:
    """Return paths, raw scores and small maps of the whole images."""
    transform = getattr(model.pre_processor, "transform", None)
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
            small += small_maps(maps, transform, batch.image)
    return paths, np.concatenate(scores), small or None
