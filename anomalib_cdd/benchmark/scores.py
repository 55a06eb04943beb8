# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""What a finished cell keeps beside its measures: every image's score.

So curves, histograms and thresholds can be had later without training again. Of the anomaly maps it keeps a
histogram, a sample of pixels and a few examples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from anomalib_cdd.data.noise import relative_names
from anomalib_cdd.evaluation.measures import f1, f1_curve
from anomalib_cdd.thresholds.calibration import keeps_patches, sample_pixels, training_scores
from anomalib_cdd.thresholds.estimators import label_free_pixel_threshold, label_free_threshold
from anomalib_cdd.thresholds.post_processing import FALSE_ALARM_RATE, PIXEL_FALSE_ALARM_RATE
from anomalib_cdd.training.report import report_of

if TYPE_CHECKING:
    from pathlib import Path

    from anomalib.data import AnomalibDataModule
    from anomalib.models import AnomalibModule
    from numpy.typing import NDArray

    from anomalib_cdd.evaluation.predictions import Predictions
    from anomalib_cdd.evaluation.settings import Evaluation

Arrays = dict[str, "NDArray[Any]"]

# arrays of numbers that have one shape
TOGETHER = [
    ("test_scores", "test_labels", "test_injected"),
    ("train_scores", "train_suspicion", "train_is_noise"),
    ("calibration_scores",),
    ("calibration_pixels",),
    ("pixels_normal", "pixels_anomalous"),
    ("pixel_edges",),
]
PIXELS = {"calibration_pixels", "train_pixels"}
PIXEL_BINS = 1024
EXAMPLES = 5


def cell_scores(
    evaluation: Evaluation, model: AnomalibModule, datamodule: AnomalibDataModule, examples: bool = False
) -> Arrays:
    """Gather the arrays of a cell.

    Args:
        evaluation: Of the trained model.
        model: The model; one that has a ``training_history`` adds it.
        datamodule: What it was trained on.
        examples: Whether to keep the heat maps of a few test images: the same ones for every model.

    Returns:
        ``train_paths``, relative to their common folder, ``train_scores``, ``train_suspicion``, ``train_is_noise``;
        ``calibration_scores``, what ``LabelFreePostProcessor`` takes the threshold from; ``test_scores``,
        ``test_labels``, ``test_injected``; with maps ``calibration_pixels``; with masks ``pixel_edges``,
        ``pixels_normal``, ``pixels_anomalous``; ``history_confidence`` and ``history_cross_domain`` ``(epochs, N)``;
        ``example_paths``, ``example_maps``, ``example_labels`` and ``example_masks``.
    """
    if evaluation.training is None:
        msg = "The training images have not been scored."
        raise ValueError(msg)
    training = evaluation.training
    pixels = None if training.maps is None else sample_pixels(torch.from_numpy(training.maps)).numpy()
    report = report_of(model, training.image_paths)
    calibration = (training.scores if report is None else report.scores, pixels)
    if keeps_patches(model):
        dataset, batch_size = datamodule.train_data, datamodule.eval_batch_size
        calibration = training_scores(model, dataset, datamodule.test_augmentations, batch_size, progress=False)
    by_path = evaluation.ranking.set_index("image_path").loc[training.image_paths]
    arrays: Arrays = {
        "train_paths": np.array(list(relative_names(training.image_paths, None)[1].values())),
        "train_scores": training.scores,
        "train_suspicion": by_path["score"].to_numpy(),
        "train_is_noise": by_path["is_noise"].to_numpy() if "is_noise" in by_path else np.zeros(len(training), bool),
        "calibration_scores": calibration[0],
        "test_scores": np.concatenate([evaluation.clean.scores, evaluation.injected.scores]),
        "test_labels": np.concatenate([evaluation.clean.labels, evaluation.injected.labels]),
        "test_injected": np.arange(len(evaluation.clean) + len(evaluation.injected)) >= len(evaluation.clean),
    }
    if calibration[1] is not None:
        arrays["calibration_pixels"] = calibration[1]
        arrays |= _pixels(evaluation.clean)
    history = getattr(model, "training_history", None)
    if history is not None and history.image_paths == training.image_paths:
        arrays["history_confidence"] = np.stack([values.numpy() for values in history.confidence])
        arrays["history_cross_domain"] = np.stack([values.numpy() for values in history.cross_domain])
    return arrays | (_examples(evaluation.clean) if examples else {})


def _pixels(test: Predictions) -> Arrays:
    if test.maps is None or test.masks is None:
        return {}
    edges = np.histogram_bin_edges(test.maps, PIXEL_BINS)
    return {
        "pixel_edges": edges,
        "pixels_normal": np.histogram(test.maps[~test.masks], edges)[0],
        "pixels_anomalous": np.histogram(test.maps[test.masks], edges)[0],
    }


def _examples(test: Predictions) -> Arrays:
    """Keep the maps of anomalous test images at even steps and of one normal image, whatever they are."""
    if test.maps is None:
        return {}
    anomalous, normal = np.flatnonzero(test.labels == 1), np.flatnonzero(test.labels == 0)
    steps = np.linspace(0, len(anomalous) - 1, min(EXAMPLES, len(anomalous))).round().astype(int)
    chosen = np.concatenate([anomalous[steps], normal[:1]])
    arrays: Arrays = {
        "example_paths": np.array([test.image_paths[i] for i in chosen]),
        "example_maps": test.maps[chosen].astype(np.float16),
        "example_labels": test.labels[chosen],
    }
    return arrays if test.masks is None else arrays | {"example_masks": test.masks[chosen]}


def threshold_measures(arrays: Arrays) -> dict[str, float]:
    """Measure what a user without labels gets: thresholds from the training scores, test labels to judge them.

    Returns:
        On the test images without overlap: ``F1_best``, the best that any threshold reaches; ``F1`` and
        ``false_alarms``, the share of good test images above it, at :class:`LabelFreePostProcessor`'s default
        ``false_alarm_rate``; ``F1_ratio``, their ratio; ``F1_ratio_anomalib``, at the maximum of the training scores,
        which is anomalib's threshold where the validation images have no anomalous one; ``pixel_F1_ratio`` where there
        are masks. Empty without both kinds of test images.
    """
    if not arrays.keys() >= {"test_scores", "test_labels", "test_injected", "train_scores"}:
        return {}
    kept = ~arrays["test_injected"]
    positive = arrays["test_scores"][kept & (arrays["test_labels"] == 1)]
    negative = arrays["test_scores"][kept & (arrays["test_labels"] == 0)]
    if not positive.size or not negative.size:
        return {}
    calibration = arrays["calibration_scores"] if "calibration_scores" in arrays else arrays["train_scores"]
    best = float(f1_curve(positive, negative)[1].max())
    cut = label_free_threshold(calibration, FALSE_ALARM_RATE)
    measures = {
        "F1_best": best,
        "F1": f1(positive, negative, cut),
        "F1_ratio": f1(positive, negative, cut) / best,
        "F1_ratio_anomalib": f1(positive, negative, float(arrays["train_scores"].max())) / best,
        "false_alarms": float((negative > cut).mean()),
        "false_alarm_rate": FALSE_ALARM_RATE,
    }
    return measures | _pixel_threshold_measures(arrays, calibration)


def _pixel_threshold_measures(arrays: Arrays, scores: NDArray[Any]) -> dict[str, float]:
    """Compare at the edges of a histogram of the pixels."""
    if "pixels_anomalous" not in arrays or not arrays["pixels_anomalous"].sum():
        return {}
    pixels = arrays["calibration_pixels"] if "calibration_pixels" in arrays else arrays["train_pixels"]
    above = {name: arrays[name][::-1].cumsum()[::-1] for name in ("pixels_anomalous", "pixels_normal")}
    found, false = above["pixels_anomalous"], above["pixels_normal"]
    curve = 2 * found / np.maximum(found + false + found[0], 1)
    threshold = label_free_pixel_threshold(pixels, scores, PIXEL_FALSE_ALARM_RATE)
    cut = np.searchsorted(arrays["pixel_edges"][:-1], threshold)
    return {"pixel_F1_ratio": float(curve[cut] / curve.max()) if cut < len(curve) else 0.0}


def save(path: Path, arrays: Arrays) -> None:
    """Write the arrays, whole or not at all."""
    temporary = path.with_name(f".{path.name}")
    with temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    temporary.replace(path)


def load(path: Path) -> Arrays | None:
    """Read the arrays, or ``None`` where the cell kept none. Nothing in the file is run as code.

    Raises:
        ValueError: If the file is damaged or its arrays do not belong together; the message names it.
    """
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # its bytes may lead to anything
        reason = (str(error).strip().splitlines() or [""])[0]
        msg = f"{path} cannot be read as a cell's scores ({type(error).__name__}: {reason})"
        raise ValueError(msg) from error
    for together in TOGETHER:
        sizes = {name: arrays[name].shape for name in together if name in arrays}
        wrong = [name for name in sizes if not _are_numbers(arrays[name])]
        if wrong or len({*sizes.values()}) > 1:
            msg = f"{path} is not of a cell: {wrong[0] if wrong else ', '.join(sizes)} cannot be what a cell keeps"
            raise ValueError(msg)
    if "pixels_anomalous" in arrays:
        edges, kept = arrays.get("pixel_edges", ()), arrays.keys()
        if len(edges) != len(arrays["pixels_anomalous"]) + 1 or not kept >= {"pixels_normal"} or not kept & PIXELS:
            msg = f"{path} is not of a cell: its histogram of pixels is not whole"
            raise ValueError(msg)
    return arrays


def _are_numbers(values: NDArray[Any]) -> bool:
    return values.ndim > 0 and values.size > 0 and values.dtype.kind in "biuf" and bool(np.isfinite(values).all())
