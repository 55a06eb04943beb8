# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Distances between features and the choice of the pseudo-normal target (CDD Eq. 1, 2, 12, 17, 18).

Pure functions. A "levels" argument is a list of L tensors ``(B, C_l, H_l, W_l)``. Everything is computed in fp32,
whatever the precision of the networks.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Levels = Sequence[Tensor]
Selection = Literal["consensual", "next", "all"]

EPSILON = 1e-8


def similarity(first: Levels, second: Levels) -> Tensor:
    """Return the sum over levels of the cosine between flattened levels (Eq. 1; the affinity of Eq. 17).

    Returns:
        Shape ``(B,)``, in [-L, L].
    """
    return torch.stack([
        F.cosine_similarity(a.float().flatten(1), b.float().flatten(1), eps=EPSILON)
        for a, b in zip(first, second, strict=True)
    ]).sum(dim=0)


def distance(target: Levels, output: Levels) -> Tensor:
    """Return the sum over levels of the batch's mean cosine distance between flattened levels (Eq. 2).

    Args:
        target: Levels to imitate; no gradient flows to them.
        output: The student's levels.

    Returns:
        Scalar in [0, 2 L].
    """
    return len(target) - similarity([level.detach() for level in target], output).mean()


def unit(levels: Levels) -> list[Tensor]:
    """Scale each flattened level of each image to length one, in fp32."""
    return [F.normalize(level.float().flatten(1), eps=EPSILON).view(level.shape) for level in levels]


def target_distance(target: Levels, output: Levels) -> Tensor:
    """Return the mean of :func:`distance` over the candidates whose mean :func:`unit` levels are ``target``.

    The mean over candidates h of 1 - cos(t_h, s) is 1 - <mean_h t_h / |t_h|, s / |s|>: one stored target serves one
    candidate or many.

    Returns:
        Scalar in [0, 2 L].
    """
    cosines = [
        (t.detach().float() * s).flatten(1).sum(dim=1) / s.flatten(1).norm(dim=1).clamp_min(EPSILON)
        for t, s in ((t, s.float()) for t, s in zip(target, output, strict=True))
    ]
    return len(cosines) - torch.stack(cosines).sum(dim=0).mean()


def confidence(teacher: Levels, student: Levels) -> Tensor:
    """Return the sum over levels of the mean cosine per pixel (Eq. 12).

    Returns:
        Shape ``(B,)``, in [-L, L]: the higher, the surer that the image is normal.
    """
    return torch.stack([
        F.cosine_similarity(a.float(), b.float(), dim=1, eps=EPSILON).mean(dim=(-2, -1))
        for a, b in zip(teacher, student, strict=True)
    ]).sum(dim=0)


def candidate_weights(affinity: Tensor, own: Tensor, selection: Selection) -> Tensor:
    """Return how much each candidate counts in an image's pseudo-normal target (Eq. 17, 18; Table 6).

    Args:
        affinity: Similarity of candidate h to the previous global student, shape ``(B, K)``. Where student h was not
            asked, any value.
        own: Domain of each visit, shape ``(B,)``: student ``own`` saw the image and is no candidate. -1 excludes none.
        selection: ``"consensual"``, the candidate with the highest affinity; ``"next"``, that of the following domain;
            ``"all"``, every candidate alike.

    Returns:
        Shape ``(B, K)``, rows sum to one, zero at ``own``.
    """
    count = affinity.shape[1]
    allowed = torch.arange(count, device=affinity.device) != own[:, None]
    if selection == "all":
        return allowed.float() / allowed.sum(dim=1, keepdim=True)
    if selection == "next":
        chosen = (own + 1) % count
    else:
        chosen = affinity.masked_fill(~allowed, -torch.inf).argmax(dim=1)
    return F.one_hot(chosen, count).float()


def pseudo_normal(candidates: Sequence[Levels], weights: Tensor) -> list[Tensor]:
    """Return the pseudo-normal target of each image: the weighted mean of its candidates' :func:`unit` levels.

    Args:
        candidates: K sequences of levels.
        weights: Shape ``(B, K)``, of :func:`candidate_weights`.
    """
    targets = [torch.zeros_like(level, dtype=torch.float32) for level in candidates[0]]
    for h, levels in enumerate(candidates):
        used = weights[:, h].nonzero().flatten()
        if len(used):
            for target, level in zip(targets, unit([level[used] for level in levels]), strict=True):
                target[used] += weights[used, h, None, None, None] * level
    return targets
