# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Who is left out of a training set: recurrence, kept in a file, and the rule that the user asks for."""

import hashlib
import json
import logging
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from anomalib.data import AnomalibDataset
from numpy.typing import NDArray

from anomalib_cdd.data.clean import DEFAULT_DEVIATIONS, Cleaning
from anomalib_cdd.training.files import written_whole

from .rules import deviations, share
from .scorer import FEW_IMAGES, score_images

logger = logging.getLogger(__name__)

# part of the fingerprint: grows whenever the same images get other scores
METHOD_VERSION = 1


def judge(dataset: AnomalibDataset, cleaning: Cleaning) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Score the images of a data set and pick those to leave out.

    Args:
        dataset: N training images.
        cleaning: The rule and the teacher.

    Returns:
        Scores and what to leave out, each ``(N,)``.

    Raises:
        ValueError: If there are fewer than three images, or one cannot be read.
    """
    scores = training_scores(dataset, cleaning)
    if len(scores) < FEW_IMAGES:
        logger.warning("Cleaning: %d training images are few to say what is usual among them", len(scores))
    if np.ptp(scores) == 0:
        logger.warning("Cleaning: the %d training images are all alike, so none is left out", len(scores))
        return scores, np.zeros(len(scores), dtype=bool)
    if cleaning.share is not None:
        return scores, share(scores, cleaning.share)
    return scores, deviations(scores, cleaning.deviations or DEFAULT_DEVIATIONS)


def training_scores(dataset: AnomalibDataset, cleaning: Cleaning) -> NDArray[np.float32]:
    """Return the recurrence scores of a data set ``(N,)``, computed once: a file in the user's cache keeps them.

    The file's name is a fingerprint of the images' paths, sizes and times and of the settings.
    """
    path = scores_file(dataset, cleaning)
    scores = _read(path, len(dataset))
    if scores is not None:
        logger.info("Cleaning: scores of %d training images are known from %s", len(scores), path)
        return scores
    scores = score_images(dataset, **_settings(cleaning)).scores
    try:
        with written_whole(path) as draft, draft.open("wb") as file:
            np.save(file, scores)
    except OSError as error:
        logger.warning("The scores cannot be kept for the next fit: %s", error)
    return scores


def scores_file(dataset: AnomalibDataset, cleaning: Cleaning) -> Path:
    """Return where the scores of these images with these settings are kept."""
    files = [Path(path) for path in dataset.samples["image_path"]]
    if cleaning.weights is not None:
        files.append(Path(cleaning.weights))
    states = [(str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    content = json.dumps([METHOD_VERSION, _settings(cleaning), states])
    name = hashlib.sha256(content.encode()).hexdigest()[:32]
    return platformdirs.user_cache_path("anomalib_cdd") / "recurrence" / f"{name}.npy"


def _settings(cleaning: Cleaning) -> dict[str, Any]:
    return {name: value for name, value in asdict(cleaning).items() if name not in {"share", "deviations"}}


def _read(path: Path, count: int) -> NDArray[np.float32] | None:
    """Read kept scores; ``None``, with a warning, where the file is damaged."""
    if not path.is_file():
        return None
    try:
        scores = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        scores = None
    if not isinstance(scores, np.ndarray) or scores.shape != (count,) or not np.isfinite(scores).all():
        logger.warning("Cleaning: the file of scores %s is damaged; they are computed again", path)
        return None
    return scores
