# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""What a trained model is worth on data that is not clean: predictions, measures, both test settings."""

from .evaluator import FuadEvaluator
from .predictions import Predictions, score_dataset
from .settings import Evaluation, evaluate, fuad_measures, training_ranking

__all__ = [
    "Evaluation",
    "FuadEvaluator",
    "Predictions",
    "evaluate",
    "fuad_measures",
    "score_dataset",
    "training_ranking",
]
