# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""ReContrast's loss: two reconstructions across encoders, without gradients where it is easy; pure functions.

A "levels" argument is a list of L tensors ``(B, C_l, H_l, W_l)``.
"""

import torch
from torch import Tensor

from anomalib_cdd.teachers.distances import Levels, distance, pixel_cosine

# of the threshold, in standard deviations: at the first step, and from the end of the ramp on
ALPHA_START, ALPHA_END = -3.0, 1.0
# share of the training in which it rises
RAMP = 0.1


def mining_threshold(step: int, steps: float) -> float:
    """Return alpha, which rises from -3 to 1 over the first tenth of the training.

    Args:
        step: Number of steps taken.
        steps: Number of steps of the training.
    """
    return ALPHA_START + (ALPHA_END - ALPHA_START) * min(step / (RAMP * steps), 1.0)


def without_easy_gradients(target: Levels, output: Levels, alpha: float) -> list[Tensor]:
    """Return the output's levels as they are, with no gradient where a pixel is easy.

    A pixel is easy where its cosine distance is below mean + alpha * standard deviation of the level's in this batch.

    Args:
        target: Levels to imitate.
        output: Levels of the same shapes.
        alpha: See :func:`mining_threshold`.
    """
    mined = []
    for t, o in zip(target, output, strict=True):
        distances = 1 - pixel_cosine(t.detach().float(), o.detach().float())
        hard = distances >= distances.mean() + alpha * distances.std()
        mined.append(torch.where(hard.unsqueeze(1), o, o.detach()))
    return mined


def contrast(frozen: Levels, trained: Levels, of_trained: Levels, of_frozen: Levels, alpha: float | None) -> Tensor:
    """Return half of the distances of both reconstructions to the levels of the *other* encoder.

    Args:
        frozen: The frozen encoder's levels; no gradient flows to them.
        trained: The trained encoder's; no gradient flows to them.
        of_trained: The decoder's levels from the trained encoder's.
        of_frozen: The decoder's from the frozen encoder's.
        alpha: Threshold of hard mining; ``None`` mines nothing.

    Returns:
        Scalar in [0, 2 L].
    """
    if alpha is not None:
        of_trained = without_easy_gradients(frozen, of_trained, alpha)
        of_frozen = without_easy_gradients(trained, of_frozen, alpha)
    return (distance(frozen, of_trained) + distance(trained, of_frozen)) / 2
