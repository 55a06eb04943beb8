# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""What a training said of each of its images, epoch by epoch: kept in checkpoints, for whoever cleans the data.

*Confidence* (Eq. 12) is the previous student's. A *cross-domain score* is the anomaly score that the students of the
other domains give: none of them met the image as one of its own domain's.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.regression import spearman_corrcoef

# the second half's scores are of the size that the trained model's are
SETTLED = 0.5
TINY = 1e-12


@dataclass
class TrainingHistory:
    """Values by epoch and image.

    Attributes:
        image_paths: Paths of the N images.
        confidence: One tensor ``(N,)`` per epoch, in [-L, L]; NaN where the epoch did not ask.
        cross_domain: One tensor ``(N,)`` per epoch, in [0, 1], higher is more anomalous; NaN likewise.
    """

    image_paths: list[str]
    confidence: list[Tensor] = field(default_factory=list)
    cross_domain: list[Tensor] = field(default_factory=list)

    def record(self, epoch: int, confidence: Tensor, cross_domain: Tensor) -> None:
        """Take down an epoch; what was known of it and of later ones, from before a resume, is dropped."""
        for values, value in ((self.confidence, confidence), (self.cross_domain, cross_domain)):
            del values[epoch:]
            values.extend([torch.full_like(value, torch.nan)] * (epoch - len(values)))
            values.append(value.clone())

    def suspicion(self) -> Tensor | None:
        """Return the mean cross-domain score over the training, each epoch counting alike, shape ``(N,)``.

        Scores fall and draw together as the students learn, so that an epoch's are standardised first. Early epochs
        count: what is rare is learned last. The result is in units of the second half's scores. An image that no
        student of another domain has scored gets the lowest score that was given. ``None`` where none has one, as
        without pseudo-normal targets.
        """
        asked = [scores for scores in self.cross_domain if not scores.isnan().all()]
        if not asked:
            return None
        values = torch.stack(asked)
        means = values.nanmean(dim=1, keepdim=True)
        spreads = (values - means).square().nanmean(dim=1, keepdim=True).sqrt()
        standardised = ((values - means) / spreads.clamp_min(TINY)).nanmean(dim=0)
        settled = int(SETTLED * len(asked))
        suspicion = means[settled:].mean() + spreads[settled:].mean() * standardised
        known = ~suspicion.isnan()
        return torch.where(known, suspicion, suspicion[known].min())

    def agreement(self) -> float:
        """Return Spearman's correlation, in [-1, 1], of the last two epochs' cross-domain scores.

        0 where there are no two epochs yet, or one of them scored fewer than two images.
        """
        if len(self.cross_domain) < 2:
            return 0.0
        last, before = self.cross_domain[-1], self.cross_domain[-2]
        known = ~(last.isnan() | before.isnan())
        return float(spearman_corrcoef(last[known], before[known])) if known.sum() > 1 else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return plain data for a checkpoint."""
        return {
            "image_paths": list(self.image_paths),
            "confidence": list(self.confidence),
            "cross_domain": list(self.cross_domain),
        }
