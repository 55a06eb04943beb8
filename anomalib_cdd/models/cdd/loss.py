# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Distances between features, their perturbation and the pseudo-normal target (CDD Eq. 1, 2, 12, 17 to 20).

Pure functions. A "levels" argument is a list of L tensors ``(B, C_l, H_l, W_l)``. Everything is computed in fp32,
whatever the precision of the networks.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Any, Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

Levels = Sequence[Tensor]
Selection = Literal["consensual", "next", "all"]

EPSILON = 1e-8


class _Cosine(torch.autograd.Function):
    """Cosine of flattened levels, with the gradient of the second only.

    Two passes over the levels where autograd makes a dozen: a level has up to a million values an image, and on a
    processor the loss costs as much as the student otherwise.
    """

    @staticmethod
    def forward(ctx: Any, target: Tensor, output: Tensor) -> Tensor:  # autograd's context
        """Return the cosine of each image, shape ``(B,)``."""
        product, of_target, squared = _products(_flat(target, output), _flat(output, output))
        inverse = 1 / (of_target.sqrt() * squared.sqrt()).clamp_min(EPSILON)
        cosine = product * inverse
        ctx.save_for_backward(target, output, inverse, cosine / squared.clamp_min(EPSILON**2))
        return cosine

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        """Return d cos / d s = t / (|t| |s|) - cos s / |s|^2."""
        target, output, inverse, ratio = ctx.saved_tensors
        along, against = (gradient * inverse).to(output.dtype), (-gradient * ratio).to(output.dtype)
        # in a layout of which `_flat` is a view: it is written to
        layout = torch.channels_last if _is_channels_last(output) else torch.contiguous_format
        result = torch.empty_like(output, memory_format=layout)
        images = (_flat(level, output) for level in (result, target, output))
        for of_image, t, s, a, b in zip(*images, along, against, strict=True):
            torch.mul(t.to(output.dtype), a, out=of_image).addcmul_(s, b)
        return None, result


def _is_channels_last(level: Tensor) -> bool:
    return level.ndim == 4 and level.is_contiguous(memory_format=torch.channels_last)


def _flat(level: Tensor, like: Tensor) -> Tensor:
    """Flatten each image's values as ``like`` lies in memory: a cosine does not mind, and a copy costs."""
    return level.permute(0, 2, 3, 1).flatten(1) if _is_channels_last(like) else level.flatten(1)


def _products(first: Tensor, second: Tensor) -> Tensor:
    """Return the inner products <a, b>, <a, a> and <b, b> of each row, in fp32, shape ``(3, B)``."""
    if first.is_cuda:
        a, b = first.float(), second.float()
        return torch.stack([(a * b).sum(dim=1), a.square().sum(dim=1), b.square().sum(dim=1)])
    # image by image, or what a processor's cache has just held is fetched again each time
    rows = ((a.float(), b.float()) for a, b in zip(first, second, strict=True))
    products = [torch.stack([torch.dot(a, b), torch.dot(a, a), torch.dot(b, b)]) for a, b in rows]
    return torch.stack(products, dim=1)


def _cosines(first: Levels, second: Levels) -> Tensor:
    """Return the cosine per level and image, shape ``(L, B)``; no gradient flows to the first."""
    return torch.stack([_Cosine.apply(a.detach(), b) for a, b in zip(first, second, strict=True)])


def similarity(first: Levels, second: Levels) -> Tensor:
    """Return the sum over levels of the cosine between flattened levels (Eq. 1; the affinity of Eq. 17).

    Args:
        first: Levels that get no gradient.
        second: Levels of the same shapes.

    Returns:
        Shape ``(B,)``, in [-L, L].
    """
    return _cosines(first, second).sum(dim=0)


def distance(target: Levels, output: Levels) -> Tensor:
    """Return the sum over levels of the batch's mean cosine distance between flattened levels (Eq. 2).

    Args:
        target: Levels to imitate; no gradient flows to them.
        output: The student's levels.

    Returns:
        Scalar in [0, 2 L].
    """
    return len(target) - similarity(target, output).mean()


def confidence(teacher: Levels, student: Levels) -> Tensor:
    """Return the sum over levels of the mean cosine per pixel (Eq. 12).

    Returns:
        Shape ``(B,)``, in [-L, L]: the higher, the surer that the image is normal.
    """
    return torch.stack(
        [pixel_cosine(a.float(), b.float()).mean(dim=(-2, -1)) for a, b in zip(teacher, student, strict=True)]
    ).sum(dim=0)


def pixel_cosine(first: Tensor, second: Tensor) -> Tensor:
    """Return the cosine per pixel of a level's two versions ``(B, C, H, W)``, shape ``(B, H, W)``."""
    lengths = torch.linalg.vector_norm(first, dim=1) * torch.linalg.vector_norm(second, dim=1)
    return (first * second).sum(dim=1) / lengths.clamp_min(EPSILON)


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
    following = (own + 1) % count
    chosen = following if selection == "next" else affinity.masked_fill(~allowed, -torch.inf).argmax(dim=1)
    return F.one_hot(chosen, count).float()


def perturb(levels: Levels, sigma: float, generator: Generator, relative: bool = False) -> Levels:
    """Add Gaussian noise to the global student's input (Eq. 19).

    Args:
        levels: The teacher's.
        sigma: Standard deviation of the noise; 0 adds none.
        generator: Source of the noise, on the CPU, so that it is the same on every device.
        relative: Whether ``sigma`` counts in standard deviations of each level.
    """
    if not sigma:
        return levels
    perturbed = []
    for level in levels:
        # channels last, as the levels are and the student wants them
        noise = torch.randn(level.permute(0, 2, 3, 1).shape, generator=generator).permute(0, 3, 1, 2)
        noise = noise.to(level.device, torch.promote_types(level.dtype, noise.dtype))
        perturbed.append(noise.mul_(sigma * level.float().std() if relative else sigma).add_(level))
    return perturbed


def pseudo_normal(candidates: Sequence[Levels], weights: Tensor, selection: Selection) -> list[Tensor]:
    """Return the pseudo-normal target of each image: one candidate's levels, or what stands for all of them.

    Args:
        candidates: K sequences of levels.
        weights: Shape ``(B, K)``, of :func:`candidate_weights`.
        selection: As in :func:`candidate_weights`. With ``"all"`` each flattened level is scaled to length one before
            the mean is taken, as :func:`target_distance` expects.
    """
    # of a candidate that nobody asked the levels stand for nothing, and may be of another precision
    dtypes = (levels[0].dtype for levels in candidates)
    dtype = torch.float32 if selection == "all" else reduce(torch.promote_types, dtypes)
    targets = [torch.zeros_like(level, dtype=dtype) for level in candidates[0]]
    for h, levels in enumerate(candidates):
        used = weights[:, h].nonzero().flatten()
        for target, level in zip(targets, levels, strict=True):
            if selection == "all":
                lengths = level[used].float().flatten(1).norm(dim=1).clamp_min(EPSILON)
                target[used] += (weights[used, h] / lengths)[:, None, None, None] * level[used]
            else:
                target[used] = level[used].to(dtype)
    return targets


def target_distance(target: Levels, output: Levels, selection: Selection) -> Tensor:
    """Return the distance to the pseudo-normal target (Eq. 20), with ``"all"`` the mean distance to every candidate.

    The mean over candidates h of 1 - cos(t_h, s) is 1 - <mean_h t_h / |t_h|, s / |s|>: the mean of the candidates,
    each scaled to length one, stands for all of them.

    Args:
        target: Of :func:`pseudo_normal`; no gradient flows to it.
        output: The global student's levels.
        selection: As in :func:`pseudo_normal`.

    Returns:
        Scalar in [0, 2 L].
    """
    if selection != "all":
        return distance(target, output)
    lengths = torch.stack([level.detach().float().flatten(1).norm(dim=1) for level in target])
    return len(target) - (lengths * _cosines(target, output)).sum(dim=0).mean()
