# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Cosine distances between features (RD4AD; CDD Eq. 1, 2).

Pure functions. A "levels" argument is a list of L tensors ``(B, C_l, H_l, W_l)``. Everything is computed in fp32,
gradients too, whatever the precision of the networks.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Levels = Sequence[Tensor]

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
        along, against = gradient * inverse, -gradient * ratio
        # in a layout of which `_flat` is a view: it is written to
        layout = torch.channels_last if _is_channels_last(output) else torch.contiguous_format
        result = torch.empty_like(output, memory_format=layout)
        images = (_flat(level, output) for level in (result, target, output))
        for of_image, t, s, a, b in zip(*images, along, against, strict=True):
            # near cos = 1 the two terms nearly cancel: products in bf16 would leave an error of several per cent
            of_image.copy_(torch.mul(t.float(), a).addcmul_(s.float(), b))
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


def cosines(first: Levels, second: Levels) -> Tensor:
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
    return cosines(first, second).sum(dim=0)


def distance(target: Levels, output: Levels) -> Tensor:
    """Return the sum over levels of the batch's mean cosine distance between flattened levels (Eq. 2).

    Args:
        target: Levels to imitate; no gradient flows to them.
        output: The student's levels.

    Returns:
        Scalar in [0, 2 L].
    """
    return len(target) - similarity(target, output).mean()


def pixel_cosine(first: Tensor, second: Tensor) -> Tensor:
    """Return the cosine per pixel of a level's two versions ``(B, C, H, W)``, shape ``(B, H, W)``."""
    lengths = torch.linalg.vector_norm(first, dim=1) * torch.linalg.vector_norm(second, dim=1)
    return (first * second).sum(dim=1) / lengths.clamp_min(EPSILON)
