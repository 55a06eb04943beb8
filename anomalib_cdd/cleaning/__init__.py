# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Which training images are bad, judged by what has not learned from them; needs no training, serves every model."""

from .cross_domain import cross_domain_scores, write_exclude_list
from .judge import judge
from .scorer import Recurrence, score_images

__all__ = ["Recurrence", "cross_domain_scores", "judge", "score_images", "write_exclude_list"]
