# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""What a finished cell keeps beside its measures: every image's score and a few heat maps, for the report's figures.

And what a user without labels gets of the model: the label-free thresholds, judged by the labels of the test images.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from anomalib.data import AnomalibDataModule
from anomalib.models import AnomalibModule
from numpy.typing import NDArray

from anomalib_cdd.data.noise import relative_names
from anomalib_cdd.evaluation.measures import f1, f1_curve
from anomalib_cdd.evaluation.predictions import Predictions
from anomalib_cdd.evaluation.settings import Evaluation
from anomalib_cdd.thresholds.post_processing import LabelFreePostProcessor
from anomalib_cdd.training.files import written_whole
from anomalib_cdd.training.report import report_of

Arrays = dict[str, NDArray[Any]]

EXAMPLES = 5
# numpy quotes the bytes that it could not make sense of
LONGEST_REASON = 200


def cell_scores(
    evaluation: Evaluation, model: AnomalibModule, datamodule: AnomalibDataModule, examples: bool = False
) -> Arrays:
    """Gather the arrays of a cell.

    Args:
        evaluation: Of the trained model.
        model: The model; one that reports its training adds the curves of its report.
        datamodule: What it was trained on.
        examples: Whether to keep the heat maps of a few test images: the same ones for every model.

    Returns:
        ``train_paths``, relative to their common folder, ``train_scores`` (the model's own), ``train_suspicion`` (what
        ranks), ``train_out_of_sample`` (whether that is), ``train_is_noise``; ``test_scores``, ``test_labels``,
        ``test_injected``; ``curve_<name>`` ``(epochs, N)``; ``example_paths``, ``example_names``, relative to the test
        images' common folder, ``example_maps``, ``example_labels`` and ``example_masks``.
    """
    paths = datamodule.train_data.samples["image_path"].astype(str).tolist()
    by_path = evaluation.ranking.set_index("image_path").loc[paths]
    arrays: Arrays = {
        "train_paths": np.array(list(relative_names(paths, None)[1].values())),
        "train_scores": by_path["model_score"].to_numpy(),
        "train_suspicion": by_path["score"].to_numpy(),
        "train_out_of_sample": by_path["out_of_sample"].to_numpy(),
        "train_is_noise": by_path["is_noise"].to_numpy() if "is_noise" in by_path else np.zeros(len(paths), bool),
        "test_scores": np.concatenate([evaluation.clean.scores, evaluation.injected.scores]),
        "test_labels": np.concatenate([evaluation.clean.labels, evaluation.injected.labels]),
        "test_injected": np.arange(len(evaluation.clean) + len(evaluation.injected)) >= len(evaluation.clean),
    }
    report = report_of(model, paths)
    arrays |= {f"curve_{name}": values for name, values in (report.curves if report else {}).items()}
    return arrays | (_examples(evaluation.clean) if examples else {})


def _examples(test: Predictions) -> Arrays:
    """Keep the maps of anomalous test images at even steps and of one normal image, whatever they are."""
    if test.maps is None:
        return {}
    anomalous, normal = np.flatnonzero(test.labels == 1), np.flatnonzero(test.labels == 0)
    steps = np.linspace(0, len(anomalous) - 1, min(EXAMPLES, len(anomalous))).round().astype(int)
    chosen = np.concatenate([anomalous[steps], normal[:1]])
    name_of = relative_names(test.image_paths, None)[1]
    arrays: Arrays = {
        "example_paths": np.array([test.image_paths[i] for i in chosen]),
        "example_names": np.array([name_of[test.image_paths[i]] for i in chosen]),
        "example_maps": test.maps[chosen].astype(np.float32),  # of some models fp16 would leave nothing
        "example_labels": test.labels[chosen],
    }
    return arrays if test.masks is None else arrays | {"example_masks": test.masks[chosen]}


def threshold_measures(
    evaluation: Evaluation, model: AnomalibModule, datamodule: AnomalibDataModule, device: torch.device
) -> dict[str, float]:
    """Measure what a user without labels gets: the default thresholds of :class:`LabelFreePostProcessor`.

    Args:
        evaluation: Of the trained model.
        model: The model.
        datamodule: What it was trained on.
        device: Where to compute.

    Returns:
        On the test images without overlap: ``F1`` at the threshold, ``F1_best`` at the best threshold there is and
        ``F1_ratio``, one over the other; ``false_alarms``, the share of good images above the threshold, and
        ``false_alarm_rate``, the share that was stated. With masks the same of pixels, as ``pixel_...``, false alarms
        in good images. Empty without both kinds of test images.
    """
    test = evaluation.clean
    if not {0, 1} <= set(test.labels.tolist()):
        return {}
    post_processor = LabelFreePostProcessor()
    post_processor.calibrate(
        model,
        datamodule.train_data,
        augmentations=datamodule.test_augmentations,
        batch_size=datamodule.eval_batch_size,
        progress=False,
        device=device,
    )
    cut = float(post_processor.image_threshold)
    good, bad = test.scores[test.labels == 0], test.scores[test.labels == 1]
    measures = _f1_measures(bad, good, cut, float(f1_curve(bad, good)[1].max())) | {
        "false_alarms": float((good > cut).mean()),
        "false_alarm_rate": post_processor.false_alarm_rate,
    }
    if test.maps is None or test.masks is None or not test.masks.any():
        return measures
    cut = float(post_processor.pixel_threshold)
    inside, outside = test.maps[test.masks], test.maps[~test.masks]
    pixels = _f1_measures(inside, outside, cut, _best_pixel_f1(inside, outside)) | {
        "false_alarms": float((test.maps[test.labels == 0] > cut).mean()),
        "false_alarm_rate": post_processor.pixel_false_alarm_rate,
    }
    return measures | {f"pixel_{name}": value for name, value in pixels.items()}


def _f1_measures(bad: NDArray[Any], good: NDArray[Any], cut: float, best: float) -> dict[str, float]:
    reached = f1(bad, good, cut)
    return {"F1": reached, "F1_best": best, "F1_ratio": reached / best}


def _best_pixel_f1(inside: NDArray[Any], outside: NDArray[Any]) -> float:
    """Return the best F1 of any threshold, which is at a pixel of a defect: between two of them only others change."""
    thresholds, counts = np.unique(inside, return_counts=True)
    found = counts[::-1].cumsum()[::-1]
    false = outside.size - np.searchsorted(np.sort(outside), thresholds)
    return float((2 * found / (found + false + inside.size)).max())


def save(path: Path, arrays: Arrays) -> None:
    """Write the arrays, whole or not at all."""
    with written_whole(path) as draft, draft.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def load(path: Path) -> Arrays | None:
    """Read the arrays, or ``None`` where the cell kept none. Nothing in the file is run as code.

    Raises:
        ValueError: If the file cannot be read; the message names it.
    """
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # its bytes may lead to anything
        reason = " ".join(str(error).split())[:LONGEST_REASON]
        msg = f"{path} cannot be read as a cell's scores ({type(error).__name__}: {reason})"
        raise ValueError(msg) from error
