# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Confidence, the noise on features and the pseudo-normal target (CDD Eq. 12, 17 to 20), and confident patches.

Pure functions. A "levels" argument is a list of L tensors ``(B, C_l, H_l, W_l)``.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from anomalib_cdd.teachers.distances import EPSILON, Levels, cosines, distance, pixel_cosine

Selection = Literal["consensual", "next", "all"]


def confidence(teacher: Levels, student: Levels) -> Tensor:
    """Return the sum over levels of the mean cosine per pixel (Eq. 12).

    Returns:
        Shape ``(B,)``, in [-L, L]: the higher, the surer that the image is normal.
    """
    return torch.stack(
        [pixel_cosine(a.float(), b.float()).mean(dim=(-2, -1)) for a, b in zip(teacher, student, strict=True)]
    ).sum(dim=0)


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


def with_confident_patches(
    target: Levels, teacher: Levels, share: float, gather: Callable[[Tensor], Tensor] = torch.flatten
) -> list[Tensor]:
    """Put the teacher's own features where a pseudo-normal target agrees with them most.

    The paper takes whole images straight from the teacher (Eq. 21). A good image has patches that nobody foretells, and
    a bad one mostly patches that everybody does: here each patch is judged by the student that has not learned it.

    Args:
        target: Of :func:`pseudo_normal`, ``"all"`` excepted.
        teacher: The teacher's levels of the same images.
        share: Of the batch's patches, level by level, in (0, 1].
        gather: Where several devices share the batch: how to have all their agreements, from one's own ``(B, H, W)``.

    Returns:
        Levels in fp32. An image's target is scaled to its teacher's where the two agree: the loss knows the
        direction of a whole level alone, and lengths at its patches have to fit together.
    """
    mixed = []
    for said, own in zip(target, teacher, strict=True):
        a, b = said.float(), own.float()
        # by hand: autocast would take a library's inner product in half precision
        product, length = (a * b).sum(dim=1), a.square().sum(dim=1)
        agreement = product / (length.sqrt() * b.square().sum(dim=1).sqrt()).clamp_min(EPSILON)
        everyone = gather(agreement).flatten()
        least = everyone.kthvalue(everyone.numel() - max(1, round(share * everyone.numel())) + 1).values
        agrees = agreement >= least
        shared, squared = ((x * agrees).sum(dim=(1, 2)) for x in (product, length))
        # where an image has no such patch, or none that is alike, nothing says how long its target should be
        scale = torch.where(shared > 0, shared / squared.clamp_min(EPSILON), 1.0)
        scaled = a * scale[:, None, None, None]
        mixed.append(torch.where(agrees[:, None], b, scaled, out=scaled))
    return mixed


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
    return len(target) - (lengths * cosines(target, output)).sum(dim=0).mean()
