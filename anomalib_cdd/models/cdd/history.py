# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""What a training said of each of its images, epoch by epoch: kept in checkpoints, for whoever cleans the data.

A *cross-domain score* is the anomaly score by domain students that have not been trained on the image, neither in this
epoch nor in one that they come from.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.regression import spearman_corrcoef

from anomalib_cdd.training.report import TrainingReport

TINY = 1e-12


def met_before(
    known: Sequence[str], met: Tensor | None, image_paths: Sequence[str], students: int, per_image: int = 1
) -> Tensor:
    """Return who was trained on which sample in an earlier part of a training: by path, as images may come and go.

    Args:
        known: Paths of its images; none if there was no such part.
        met: What is known of them, bool of shape ``(students, known * per_image)``; ``None`` if nothing is: every
            student descends from one that has learned from all.
        image_paths: Paths of the N images of today.
        students: Number of students, the global one included.
        per_image: Samples an image.

    Returns:
        Bool of shape ``(students, N * per_image)``.
    """
    place = {path: number for number, path in enumerate(known)}
    result = torch.zeros(students, len(image_paths), per_image, dtype=torch.bool)
    for number, path in enumerate(image_paths):
        if path in place:
            result[:, number] = True if met is None else met.view(students, -1, per_image)[:, place[path]]
    return result.flatten(1)


@dataclass
class TrainingHistory:
    """Values by epoch and image.

    Attributes:
        image_paths: Paths of the N images.
        cross_domain: One tensor ``(N,)`` per epoch, in [0, 1], higher is more anomalous; NaN where every student of the
            epoch has been trained on the image.
        scale: One tensor ``(2,)`` per epoch: mean and standard deviation over the images of the scores by all students
            that were asked; NaN where none was.
        own: The same of the global student's scores after the last epoch, shape ``(2,)``; ``None`` where nobody asked.
        contents: What tells the images' files apart, N of them; empty in checkpoints of before.
    """

    image_paths: list[str]
    cross_domain: list[Tensor] = field(default_factory=list)
    scale: list[Tensor] = field(default_factory=list)
    own: Tensor | None = None
    contents: list[str] = field(default_factory=list)

    def record(self, epoch: int, cross_domain: Tensor, scale: Tensor) -> None:
        """Take down an epoch; what was known of it and of later ones, from before a resume, is dropped."""
        for values, value in ((self.cross_domain, cross_domain), (self.scale, scale)):
            del values[epoch:]
            values.extend([torch.full_like(value, torch.nan)] * (epoch - len(values)))
            values.append(value.clone())
        self.own = None

    def report(self) -> TrainingReport | None:
        """Return the out-of-sample scores: the mean cross-domain score over the epochs that gave one.

        Scores fall and draw together as the students learn, so that an epoch's are standardised by its ``scale`` first;
        each epoch that has a score of an image then counts alike, as what is rare is learned last. Domain students and
        the global student do not learn at the same pace: the result has the mean and the standard deviation of the
        global student's own scores of these images, where they are known, else of the last domain students'. ``None``
        where an image never had a score, as without pseudo-normal targets. The curves are the standardised scores, in
        standard deviations, NaN where an epoch gave none.
        """
        asked = [epoch for epoch, scale in enumerate(self.scale) if scale.isfinite().all()]
        if not asked:
            return None
        mean, spread = torch.stack(self.scale).T
        standardised = (torch.stack(self.cross_domain) - mean[:, None]) / spread[:, None].clamp_min(TINY)
        centre, width = self.scale[asked[-1]] if self.own is None else self.own
        scores = centre + width * standardised.nanmean(dim=0)
        if not scores.isfinite().all():
            return None
        curves = {"standard_score": standardised.numpy()}
        return TrainingReport(self.image_paths, scores.numpy(), curves, contents=self.contents)

    def agreement(self) -> float:
        """Return Spearman's correlation, in [-1, 1], of the last two cross-domain scores that differ.

        Where no domain student learned in an epoch the scores of the one before stand, and tell nothing. 0 where there
        are no two yet, or one of them scored fewer than two images.
        """
        if len(self.cross_domain) < 2:
            return 0.0
        last = self.cross_domain[-1]
        others = (scores for scores in reversed(self.cross_domain[:-1]) if not last.allclose(scores, 0, 0, True))
        before = next(others, torch.full_like(last, torch.nan))
        known = ~(last.isnan() | before.isnan())
        return float(spearman_corrcoef(last[known], before[known])) if known.sum() > 1 else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return plain data for a checkpoint."""
        lists = ("image_paths", "cross_domain", "scale", "contents")
        return {name: list(getattr(self, name)) for name in lists} | {"own": self.own}
