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

# Cosine of two images' descriptors: repeated photographs of one part have more, different bottles, tiles or cells less.
ALIKE = 0.96
# Of images that differ by less there is no telling apart: parts of the length of a descriptor before it is centred.
SAME = 1e-3
# Distance of two photographs of one part, at most, in distances of either to a near image that is none of the part, or
# in the median of these where that is more: noisy photographs of a part that is unlike the others are nearer. Where a
# folder shows two kinds of thing all of a kind are alike in what tells it from the other: cosines are high then, and
# only distances keep the parts of a kind apart.
CLOSE = 0.22
# which neighbour that is: further than a part's photographs, nearer than another kind
NEIGHBOURS = 8
KINDS = 3
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
    if len(rows) < 2:
        return []
    usual = _usual_distances(rows)
    # where most are copies that distance is 0, and rounding alone would keep them apart
    close = (CLOSE * usual.clamp_min(float(usual.median()))).clamp_min(SAME)
    taken = torch.zeros(len(rows), dtype=torch.bool)
    groups = []
    for start in range(0, len(rows), BLOCK):
        block = slice(start, start + BLOCK)
        if taken[block].all():
            continue
        near = _are_near(rows[block], rows[start:], torch.minimum(close[block, None], close[None, start:]))
        for first, others in enumerate(near, start):
            others[: first - start + 1] = False
            members = (others & ~taken[start:]).nonzero().flatten() + start
            if len(members) and not taken[first]:
                groups.append([first, *members.tolist()])
                taken[groups[-1]] = True
    return groups


def parts_of(count: int, groups: list[list[int]]) -> NDArray[np.int64]:
    """Return the part that each of N images shows, named by the first image of its group, shape ``(N,)``."""
    part = np.arange(count)
    for group in groups:
        part[group] = group[0]
    return part


def _usual_distances(rows: Tensor) -> Tensor:
    """Return the distance of each of the images ``(N, D)`` to a near one that is no duplicate, shape ``(N,)``."""
    neighbour = min(max(1, -(-len(rows) // KINDS) - 1), NEIGHBOURS)
    # the nearest is the image itself
    blocks = (torch.cdist(block, rows).kthvalue(neighbour + 1, dim=1).values for block in rows.split(BLOCK))
    return torch.cat(list(blocks))


def _are_near(first: Tensor, second: Tensor, close: Tensor) -> Tensor:
    """Return which of the rows ``(A, D)`` and ``(B, D)`` are near-duplicates, at most ``close (A, B)`` apart."""
    lengths = torch.linalg.vector_norm(first, dim=1)[:, None], torch.linalg.vector_norm(second, dim=1)[None]
    products = first @ second.T
    same = (lengths[0] < SAME) & (lengths[1] < SAME)
    squared = lengths[0] ** 2 + lengths[1] ** 2 - 2 * products
    return same | ((products > ALIKE * lengths[0] * lengths[1]) & (squared <= close**2))
