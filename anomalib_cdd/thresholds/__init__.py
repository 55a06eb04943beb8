# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Thresholds without labels: estimators (pure), the scores that they take, and the post-processor that asks both."""

from .estimators import label_free_pixel_threshold, label_free_threshold
from .post_processing import LabelFreePostProcessor

__all__ = ["LabelFreePostProcessor", "label_free_pixel_threshold", "label_free_threshold"]
