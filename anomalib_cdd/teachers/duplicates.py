# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Near-duplicates: photographs of one part, which count as one image. Pure functions.

A part that was photographed five times would vouch for its own defect four times.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

# Cosine of two images' descriptors. Repeated photographs of one part have .98, the most alike of 100 different bottles,
# tiles or solar cells .92.
ALIKE = 0.96
# Of images that differ by less there is no telling apart: parts of the length of a descriptor before it is centred.
SAME = 1e-3
# Distance of two photographs of one part, at most, in typical distances of an image to one of its kind. Where a folder
# shows two kinds of thing all of a kind are alike in what tells it from the other: cosines reach .99 then, distances
# begin at .31 (bottles, tiles and solar cells, in folders of two and three kinds).
CLOSE = 0.3
# which neighbour says what is typical: further than a part's photographs, nearer than another kind
NEIGHBOURS = 8
KINDS = 3
SAMPLE = 256
QUARTERS = 2
BLOCK = 1024


def describe(patches: Tensor) -> Tensor:
    """Return the mean patch of each quarter of an image.

    Args:
        patches: Shape ``(B, D, h, w)``.

    Returns:
        Shape ``(B, 4 D)``.
    """
    return F.adaptive_avg_pool2d(patches, QUARTERS).flatten(1)


def centre(descriptors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Take from descriptors ``(N, D)`` what all images share, and scale them by their mean length."""
    length = np.linalg.norm(descriptors, axis=1).mean()
    return (descriptors - descriptors.mean(axis=0)) / max(float(length), np.finfo(np.float32).tiny)


def near_duplicates(features: NDArray[np.float32]) -> list[list[int]]:
    """Group near-duplicates: every image of a group is near to the group's first.

    There are no chains: images that change little by little are no group.

    Args:
        features: What :func:`centre` returns, shape ``(N, D)``.

    Returns:
        Rows of each group of more than one image, ascending.
    """
    rows = torch.from_numpy(features)
    # where most are copies that distance is 0, and rounding alone would keep them apart
    close = max(CLOSE * _typical_distance(rows), SAME)
    near: dict[int, list[int]] = {}
    for start in range(0, len(rows), BLOCK):
        pairs = _are_near(rows[start : start + BLOCK], rows[start:], close).nonzero() + start
        for first, second in pairs.tolist():
            if first < second:
                near.setdefault(first, []).append(second)
    taken: set[int] = set()
    groups = []
    for first in sorted(near):
        members = [row for row in near[first] if row not in taken]
        if first not in taken and members:
            groups.append([first, *members])
            taken.update(groups[-1])
    return groups


def parts_of(count: int, groups: list[list[int]]) -> NDArray[np.int64]:
    """Return the part that each of N images shows, named by the first image of its group, shape ``(N,)``."""
    part = np.arange(count)
    for group in groups:
        part[group] = group[0]
    return part


def _typical_distance(rows: Tensor) -> float:
    """Return the median, over some of the images ``(N, D)``, of the distance to a near one that is no duplicate."""
    if len(rows) < 2:
        return 0.0
    some = rows[:: -(-len(rows) // SAMPLE)]
    neighbour = min(max(1, -(-len(rows) // KINDS) - 1), NEIGHBOURS)
    # the nearest is the image itself
    return float(torch.cdist(some, rows).kthvalue(neighbour + 1, dim=1).values.median())


def _are_near(first: Tensor, second: Tensor, close: float) -> Tensor:
    """Return which of the rows ``(A, D)`` and ``(B, D)`` are near-duplicates, shape ``(A, B)``."""
    lengths = torch.linalg.vector_norm(first, dim=1)[:, None], torch.linalg.vector_norm(second, dim=1)[None]
    products = first @ second.T
    same = (lengths[0] < SAME) & (lengths[1] < SAME)
    squared = lengths[0] ** 2 + lengths[1] ** 2 - 2 * products
    return same | ((products > ALIKE * lengths[0] * lengths[1]) & (squared <= close**2))
