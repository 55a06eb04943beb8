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

# the first half of a training knows little yet
SETTLED = 0.5


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
        """Return the mean cross-domain score over the second half of the training, shape ``(N,)``.

        An image that no student of another domain has scored there gets the lowest score that was given. ``None``
        where none has one, as without pseudo-normal targets.
        """
        settled = self.cross_domain[int(SETTLED * len(self.cross_domain)) :]
        if not settled:
            return None
        values = torch.stack(settled).nanmean(dim=0)
        known = ~values.isnan()
        return torch.where(known, values, values[known].min()) if known.any() else None

    def state_dict(self) -> dict[str, Any]:
        """Return plain data for a checkpoint."""
        return {
            "image_paths": list(self.image_paths),
            "confidence": list(self.confidence),
            "cross_domain": list(self.cross_domain),
        }
