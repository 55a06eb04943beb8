# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Which images are too suspicious to train on, by their scores alone. Pure functions."""

import numpy as np
from numpy.typing import NDArray

from anomalib_cdd.data.clean import DEFAULT_DEVIATIONS, Cleaning

# the standard deviation of a normal distribution over its median absolute deviation
MAD_SCALE = 1.4826


def share(scores: NDArray[np.float32], number: float, part: NDArray[np.int64] | None = None) -> NDArray[np.bool_]:
    """Pick the top share.

    Args:
        scores: Shape ``(N,)``, higher is more suspicious.
        number: Which share, in [0, 1); rounded down to whole images. Of equal scores the first are picked.
        part: What each image shows, as of :func:`deviations`: near-duplicates count as one image, with their highest
            score, and are picked together, as one that stays would show the model what the others did.

    Returns:
        Shape ``(N,)``.

    Raises:
        ValueError: If ``number`` is out of range.
    """
    if not 0 <= number < 1:
        msg = f"share has to be at least 0 and below 1, found {number}"
        raise ValueError(msg)
    shown, part_of = np.unique(np.arange(len(scores)) if part is None else part, return_inverse=True)
    highest = np.full(len(shown), -np.inf, dtype=scores.dtype)
    np.maximum.at(highest, part_of, scores)
    # 0.3 * 10 is 3 also where it is 2.9999999999999996
    return np.isin(part_of, np.argsort(-highest, kind="stable")[: int(number * len(shown) + 1e-9)])


def deviations(
    scores: NDArray[np.float32], number: float = 2.0, part: NDArray[np.int64] | None = None
) -> NDArray[np.bool_]:
    """Pick what is above median + number x 1.4826 x MAD, the median absolute deviation.

    Args:
        scores: Shape ``(N,)``, higher is more suspicious.
        number: How many deviations, above 0.
        part: What each image shows, shape ``(N,)``: of near-duplicates the first counts for median and MAD, as many
            photographs of one part would make the spread theirs. ``None`` counts every image.

    Returns:
        Shape ``(N,)``. None is picked where the MAD is 0, as nothing says then how far apart usual images are.

    Raises:
        ValueError: If ``number`` is out of range.
    """
    if not number > 0:
        msg = f"deviations has to be above 0, found {number}"
        raise ValueError(msg)
    usual = scores if part is None else scores[np.unique(part, return_index=True)[1]]
    median = np.median(usual)
    spread = np.median(np.abs(usual - median))
    return (scores > median + number * MAD_SCALE * spread) & (spread > 0)


def pick(scores: NDArray[np.float32], cleaning: Cleaning, part: NDArray[np.int64] | None = None) -> NDArray[np.bool_]:
    """Pick by the rule of ``cleaning``, shape ``(N,)``; arguments as of :func:`deviations`."""
    if cleaning.share is not None:
        return share(scores, cleaning.share, part)
    return deviations(scores, cleaning.deviations or DEFAULT_DEVIATIONS, part)
