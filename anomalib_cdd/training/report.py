# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""What a training says of its own images: out-of-sample scores, by whoever has not learned from the image.

Audit, ranking, thresholds and noise AP ask a model for its report first; only where there is none do they take the
model's own, in-sample scores, and say so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TrainingReport:
    """Out-of-sample scores of N training images.

    Attributes:
        image_paths: Paths of the images, in the order of the training set.
        scores: One per image, shape ``(N,)``, higher is more anomalous, on the scale of the model's scores of new
            images. NaN where nobody who has not learned from the image was asked.
        curves: Values over the epochs by name, each of shape ``(E, N)``, such as standardised scores; may be empty.
        pixels: A sample of P pixels of each image's map, as out of sample as the scores, shape ``(N, P)``; ``None``
            where there are no such maps.
        maps: Small anomaly maps of the whole images, as out of sample as the scores, each ``(h, w)``; ``None`` where
            there are none.
        contents: What tells the images' files apart, see :func:`.image_files.contents_of`, as they were when learned
            from; empty where that was not taken down.
    """

    image_paths: list[str]
    scores: NDArray[np.float32]
    curves: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    pixels: NDArray[np.float32] | None = None
    maps: Sequence[NDArray[np.floating]] | None = None
    contents: Sequence[str] = ()


@runtime_checkable
class ReportsTraining(Protocol):
    """A model that can say how anomalous its training images are to what has not learned from them."""

    def training_report(self) -> TrainingReport | None:
        """Return the report; ``None`` before a training, or where none of its parts was out of sample."""
        ...


def report_of(model: Any, image_paths: list[str]) -> TrainingReport | None:
    """Return a model's report of these images, in their order.

    Args:
        model: Any anomalib model.
        image_paths: Paths of N images.

    Returns:
        The report, or ``None`` where the model has none that knows a finite score of every one of the images.
    """
    report = model.training_report() if isinstance(model, ReportsTraining) else None
    if report is None:
        return None
    place = {path: row for row, path in enumerate(report.image_paths)}
    if not all(path in place for path in image_paths):
        return None
    rows = [place[path] for path in image_paths]
    if not np.isfinite(report.scores[rows]).all():
        return None
    curves = {name: values[:, rows] for name, values in report.curves.items()}
    pixels = None if report.pixels is None else report.pixels[rows]
    maps = None if report.maps is None else [report.maps[row] for row in rows]
    contents = [report.contents[row] for row in rows] if report.contents else ()
    return TrainingReport(image_paths, report.scores[rows], curves, pixels, maps, contents)
