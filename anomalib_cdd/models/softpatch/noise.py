# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""How unusual a patch is among the patches at the same place of the other training images (SoftPatch, Sec. 3.2).

Pure functions over positions at once. Points have the shape ``(P, N, D)``: P places, N images, D channels.
"""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from anomalib_cdd.teachers.bank import squared_distances

NoiseScore = Literal["lof", "nearest", "gaussian"]
NOISE_SCORES: tuple[NoiseScore, ...] = get_args(NoiseScore)

# distances in memory at a time: 64 MB
CHUNK_VALUES = 2**24
COVARIANCE_DIAGONAL = 0.01
# what share of the mean distance to the k-th neighbour counts as no distance at all
FLOOR = 0.1


def noise_scores(points: Tensor, kind: NoiseScore, neighbours: int, progress: Callable = iter) -> Tensor:
    """Score patches among those at their place.

    Args:
        points: Shape ``(P, N, D)``, N at least 2.
        kind: ``"lof"``, ``"nearest"`` or ``"gaussian"``.
        neighbours: k of the local outlier factor; N - 1 where there are no more others.
        progress: Wraps the list of chunks of places, such as tqdm.

    Returns:
        Shape ``(P, N)``, 0 or more, higher is more unusual. About 1 for the usual with ``"lof"``; distances with
        ``"nearest"`` and Mahalanobis distances with ``"gaussian"``.
    """
    count = points.shape[1]
    chunks = list(points.split(max(1, CHUNK_VALUES // max(count, points.shape[2]) ** 2)))
    if kind == "gaussian":
        return torch.cat([mahalanobis(chunk) for chunk in progress(chunks)])
    found = [
        nearest_others(chunk, 1 if kind == "nearest" else min(neighbours, count - 1)) for chunk in progress(chunks)
    ]
    distances, others = (torch.cat(parts) for parts in zip(*found, strict=True))
    return distances[..., 0] if kind == "nearest" else local_outlier_factor(distances, others)


def nearest_others(points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the k nearest other points of each.

    Args:
        points: Shape ``(P, N, D)``.
        k: 1 to N - 1.

    Returns:
        Distances, ascending, and indices, each ``(P, N, k)``.
    """
    # about their mean, so that the expansion of the square loses least
    centred = points - points.mean(dim=1, keepdim=True)
    found, start = [], 0
    # all at once, unless those of a single place are too many
    for some in centred.split(max(1, CHUNK_VALUES // points.shape[:2].numel()), dim=1):
        squared = squared_distances(some, centred)
        squared.diagonal(start, dim1=1, dim2=2).fill_(torch.inf)
        found.append(squared.topk(k, largest=False, dim=2))
        start += some.shape[1]
    values, indices = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
    return values.sqrt(), indices


def local_outlier_factor(distances: Tensor, others: Tensor) -> Tensor:
    """Compare the density around a point with that around its neighbours (Breunig et al., SIGMOD 2000; Eq. 5 to 7).

    Where points coincide densities are infinite and factors explode. So a reachability distance is at least a tenth of
    the mean distance to the k-th neighbour, over all places; where nothing is nearer than that the factor is exact.

    Args:
        distances: Of each point's k nearest others, ascending, shape ``(P, N, k)``.
        others: Their indices, same shape.

    Returns:
        Shape ``(P, N)``.
    """
    to_kth = distances[..., -1]
    floor = (FLOOR * to_kth.mean()).clamp_min(torch.finfo(distances.dtype).tiny)
    reached = torch.maximum(distances, _of(others, to_kth)).clamp_min(floor).mean(dim=-1)
    # densities are 1 / reached; their sum would overflow where every point is the same
    return (reached[..., None] / _of(others, reached)).mean(dim=-1)


def _of(others: Tensor, values: Tensor) -> Tensor:
    """Return the values ``(P, N)`` of each point's neighbours, shape ``(P, N, k)``."""
    return values.gather(1, others.flatten(1)).view_as(others)


def mahalanobis(points: Tensor) -> Tensor:
    """Return the distances of points to their mean in units of their covariance, plus .01 on its diagonal.

    Args:
        points: Shape ``(P, N, D)``, N at least 2.

    Returns:
        Shape ``(P, N)``.
    """
    centred = points - points.mean(dim=1, keepdim=True)
    covariance = centred.mT @ centred / (points.shape[1] - 1)
    covariance.diagonal(dim1=1, dim2=2).add_(COVARIANCE_DIAGONAL)
    solved = torch.linalg.solve(covariance, centred.mT)
    return (centred * solved.mT).sum(dim=-1).clamp_min(0).sqrt()


def kept_patches(scores: Tensor, threshold: float) -> Tensor:
    """Return which patches stay: those whose score is not above the (1 - threshold) quantile of all scores.

    Args:
        scores: Any shape.
        threshold: Share of the patches to leave out, in [0, 1).

    Returns:
        Bool, same shape.
    """
    values = scores.flatten()
    rank = max(1, round((1 - threshold) * values.numel()))
    return scores <= values.kthvalue(rank).values


def patch_weights(scores: Tensor) -> Tensor:
    """Return what squared distances to patches are multiplied by: their noise scores, in units of the mean.

    A patch that has a twin may have the score 0. It is given a tenth of the mean, or nothing would be far from it.

    Args:
        scores: Noise scores of all patches, any shape.

    Returns:
        Same shape, above 0; ones where all scores are 0.
    """
    mean = scores.mean()
    return (scores / mean).clamp_min(FLOOR) if mean > 0 else torch.ones_like(scores)
