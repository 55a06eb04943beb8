# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Who is left out of a training set: recurrence, kept in a file, and the rule that the user asks for."""

import hashlib
import json
import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from anomalib.data import AnomalibDataset
from numpy.typing import NDArray

from anomalib_cdd.data.clean import Cleaning, Judgement
from anomalib_cdd.teachers.duplicates import parts_of
from anomalib_cdd.training.files import DAMAGED, written_whole
from anomalib_cdd.training.source import code_hash

from .rules import pick
from .scorer import FEW_IMAGES, score_images

logger = logging.getLogger(__name__)

# what scores come from: this package's code and other packages' versions
ROOMS = (
    *("cleaning", "teachers", "training/image_files.py", "training/precision.py"),
    *("training/read_alike.py", "training/reading.py"),
)
DEPENDENCIES = ("anomalib", "timm", "torch", "torchvision")


def judge(dataset: AnomalibDataset, cleaning: Cleaning) -> Judgement:
    """Score the images of a data set and pick those to leave out.

    Args:
        dataset: N training images.
        cleaning: The rule and the teacher.

    Raises:
        ValueError: If there are fewer than three images, or one cannot be read.
    """
    scores, part, saved = training_scores(dataset, cleaning)
    if len(scores) < FEW_IMAGES:
        logger.warning("Cleaning: %d training images are few to say what is usual among them", len(scores))
    if np.ptp(scores) == 0:
        logger.warning("Cleaning: the %d training images are all alike, so none is left out", len(scores))
        left_out = np.zeros(len(scores), dtype=bool)
    else:
        left_out = pick(scores, cleaning, part)
    return Judgement(scores, left_out, saved)


def training_scores(
    dataset: AnomalibDataset, cleaning: Cleaning
) -> tuple[NDArray[np.float32], NDArray[np.int64], float]:
    """Return the recurrence scores of a data set ``(N,)``, computed once: a file in the user's cache keeps them.

    The file's name is a fingerprint of the images' paths, sizes, times and white, of the settings and of the code.

    Returns:
        The scores, the part that each image shows, as of :func:`~anomalib_cdd.teachers.duplicates.parts_of`, and the
        seconds that were saved as they were read: 0 where they were computed now.
    """
    path = scores_file(dataset, cleaning)
    known = _read(path, len(dataset))
    if known is not None:
        logger.info("Cleaning: scores of %d training images are known from %s", len(dataset), path)
        return known
    start = time.perf_counter()
    found = score_images(dataset, **_settings(cleaning))
    scores, part = found.scores, parts_of(len(found.scores), found.duplicates)
    try:
        with written_whole(path) as draft, draft.open("wb") as file:
            np.savez(file, scores=scores, part=part, seconds=time.perf_counter() - start)
    except OSError as error:
        logger.warning("The scores cannot be kept for the next fit: %s", error)
    return scores, part, 0.0


def scores_file(dataset: AnomalibDataset, cleaning: Cleaning) -> Path:
    """Return where the scores of these images with these settings are kept."""
    files = [Path(path) for path in dataset.samples["image_path"]]
    if cleaning.weights is not None and Path(cleaning.weights).is_file():  # the teacher names one that is not there
        files.append(Path(cleaning.weights))
    states = [(str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    white = getattr(getattr(dataset, "reader", None), "white", None)
    content = json.dumps([code_hash(ROOMS, DEPENDENCIES), _settings(cleaning), states, white], default=str)
    name = hashlib.sha256(content.encode()).hexdigest()[:32]
    return platformdirs.user_cache_path("anomalib_cdd") / "recurrence" / f"{name}.npz"


def _settings(cleaning: Cleaning) -> dict[str, Any]:
    return {name: value for name, value in asdict(cleaning).items() if name not in {"share", "deviations"}}


def _read(path: Path, count: int) -> tuple[NDArray[np.float32], NDArray[np.int64], float] | None:
    """Read kept scores, parts and the seconds that they took; ``None``, with a warning, where the file is damaged."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as content:
            scores, part, seconds = content["scores"], content["part"], float(content["seconds"])
    except DAMAGED:
        scores, part, seconds = np.empty(0, dtype=np.float32), np.empty(0, dtype=np.int64), 0.0
    if scores.shape != (count,) or part.shape != (count,) or not np.isfinite(scores).all():
        logger.warning("Cleaning: the file of scores %s is damaged; they are computed again", path)
        return None
    return scores, part, seconds
