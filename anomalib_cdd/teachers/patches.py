# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Patches as Patchcore's: two levels of a teacher, averaged over 3 x 3 neighbours, on the grid of the finer one."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomalib_cdd.training.precision import is_traced

from .backbones import Teacher
from .bank import nearest

# what patches are projected to: distances stay what they are for ranking, and cost a fifth
DIMENSIONS = 192
# rows and columns of a block of distances that stays in a processor's cache
BLOCK = 1024


class PatchExtractor(nn.Module):
    """The patches that a frozen teacher sees in an image (Patchcore, Roth et al., CVPR 2022, Sec. 3.1).

    Args:
        backbone: timm name of the teacher.
        layers: Names of its levels. ``None`` takes all of a teacher's default levels but the shallowest: those at
            strides 8 and 16, a ResNet's ``layer2`` and ``layer3``.
        pre_trained: Whether to load the teacher's weights.
        weights: A local weight file for the teacher.

    Raises:
        ValueError: See :class:`Teacher`.
    """

    def __init__(
        self,
        backbone: str,
        layers: Sequence[str] | None = None,
        pre_trained: bool = True,
        weights: str | Path | None = None,
    ) -> None:
        super().__init__()
        self.teacher = Teacher(backbone, layers, pre_trained, weights)
        self.first = 1 if layers is None else 0
        self.channels = sum(level.channels for level in self.teacher.levels[self.first :])

    def forward(self, images: Tensor) -> Tensor:
        """Return the patches of normalised images ``(B, 3, H, W)``: ``(B, D, h, w)``, h and w of the finest level."""
        return join_levels(self.teacher(images)[self.first :])


def join_levels(levels: Sequence[Tensor]) -> Tensor:
    """Average each level over 3 x 3 neighbours and join them on the grid of the first.

    Args:
        levels: Each ``(B, C_l, H_l, W_l)``, finest first.

    Returns:
        Shape ``(B, sum of C_l, H_1, W_1)``.
    """
    pooled = [F.avg_pool2d(level, kernel_size=3, stride=1, padding=1) for level in levels]
    size = pooled[0].shape[-2:]
    return torch.cat([pooled[0], *(F.interpolate(level, size=size, mode="bilinear") for level in pooled[1:])], dim=1)


def random_projection(channels: int, dimensions: int) -> Tensor:
    """Return the matrix of a random projection that keeps distances (Johnson and Lindenstrauss), always the same.

    Args:
        channels: Dimensions of a patch, D.
        dimensions: Dimensions to project to, d; where it is not below D nothing is projected.

    Returns:
        Shape ``(D, min(d, D))``.
    """
    if dimensions >= channels:
        return torch.eye(channels)
    return torch.randn(channels, dimensions, generator=torch.Generator().manual_seed(0)) / dimensions**0.5


def nearest_distances(patches: Tensor, references: Tensor) -> Tensor:
    """Return each patch's distance to the nearest patch of each reference image.

    Args:
        patches: Shape ``(R, D)``.
        references: Patches of M images, shape ``(M, Q, D)``.

    Returns:
        Euclidean distances, shape ``(R, M)``. Memory is bounded: no more than a block of distances is held at a time,
        unless an export follows, where the graph holds them all.
    """
    squares = references.square().sum(dim=-1)
    if is_traced():
        products = patches @ references.flatten(0, 1).T
        nearest = (squares - 2 * products.view(-1, *squares.shape)).amin(dim=-1)
    else:
        nearest = patches.new_empty(len(patches), len(references))
        group = max(1, BLOCK // references.shape[1])
        for rows, found in zip(patches.split(BLOCK), nearest.split(BLOCK), strict=True):
            columns = zip(references.split(group), squares.split(group), found.split(group, dim=1), strict=True)
            for images, square, place in columns:
                # |p - q|^2 without |p|^2, which is the same for all q
                block = torch.addmm(square.flatten(), rows, images.flatten(0, 1).T, alpha=-2)
                place.copy_(block.view(-1, *square.shape).amin(dim=-1))
    return (nearest + patches.square().sum(dim=-1, keepdim=True)).clamp_min(0).sqrt()


def coreset(patches: Tensor, count: int, progress: Callable[[Iterable[int]], Iterable[int]] = iter) -> Tensor:
    """Choose patches that cover all that are given: greedy k-centre, the farthest patch next.

    Args:
        patches: Shape ``(P, D)``.
        count: How many to choose, 1 to P. The first is the one nearest to their mean.
        progress: Wraps the steps, such as tqdm.

    Returns:
        Rows of the chosen patches, shape ``(count,)``.
    """
    # squared distances by a product with the one patch: differences would be a copy of all patches at every step
    squares = patches.square().sum(dim=1)
    mean = patches.mean(dim=0)
    chosen = [(squares - 2 * patches @ mean).argmin()]
    covered = torch.full_like(squares, torch.inf)
    for _ in progress(range(count - 1)):
        last = chosen[-1]
        torch.minimum(covered, squares + squares[last] - 2 * (patches @ patches[last]), out=covered)
        covered[last] = -torch.inf  # not twice, where all others have a twin among those chosen
        chosen.append(covered.argmax())
    return torch.stack(chosen)


def cell_means(patches: Tensor, chosen: Tensor) -> Tensor:
    """Return the mean of the patches that are nearest to each chosen one: a step of Lloyd's algorithm for k-means.

    What a coreset chooses are extremes, far from the patches that they stand for; their means are near to them.

    Args:
        patches: Shape ``(P, D)``.
        chosen: Rows of patches, shape ``(Q,)``, such as :func:`coreset` returns.

    Returns:
        Shape ``(Q, D)``. Of equal patches the first that was chosen has all; the others stay as they are.
    """
    centres = patches[chosen]
    _, cell = nearest(patches, centres)
    sums = torch.zeros_like(centres).index_add_(0, cell, patches)
    counts = cell.bincount(minlength=len(chosen))[:, None]
    return torch.where(counts > 0, sums / counts.clamp_min(1), centres)
