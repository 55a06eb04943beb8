# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Which patches of different images belong together, and which of those a bank can trust (InReaCh, Sec. 3).

A *channel* is a patch of a seed image and all patches of other images that joined it.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from anomalib_cdd.teachers.bank import squared_distances

# distances in memory at a time: 64 MB
WORK_SPACE = 2**24


class Members(NamedTuple):
    """K patches that are in channels; each field has the shape ``(K,)``."""

    images: Tensor
    patches: Tensor
    channels: Tensor

    def where(self, kept: Tensor) -> "Members":
        """Return the members where ``kept`` is true."""
        return Members(*(field[kept] for field in self))


def associate(patches_of: Callable[[int], Tensor], seeds: Sequence[int], images: Iterable[int]) -> Members:
    """Let the patches of all images join channels of the seeds'.

    Args:
        patches_of: Returns the patches ``(P, C)`` of an image.
        seeds: The S seed images.
        images: All images; may be wrapped in a progress bar.

    Returns:
        What joined, and the patches of the seeds, each of which began a channel: number of the seed times P plus patch.
    """
    begun = torch.stack([patches_of(seed) for seed in seeds])
    own = torch.arange(begun.shape[1], device=begun.device)
    parts = [Members(torch.full_like(own, seed), own, n * len(own) + own) for n, seed in enumerate(seeds)]
    for image in images:
        channels, joins = joined(patches_of(image), begun, seeds.index(image) if image in seeds else None)
        parts.append(Members(torch.full_like(own, image), own, channels).where(joins))
    return Members(*(torch.cat(field) for field in zip(*parts, strict=True)))


def joined(patches: Tensor, seeds: Tensor, own: int | None = None) -> tuple[Tensor, Tensor]:
    """Return which seed patch each patch of an image joins.

    A patch is offered to the seed image that holds the patch nearest to it, and joins that patch if the two are
    mutual: none of its own image's patches is nearer to the seed patch.

    Args:
        patches: Of one image, shape ``(P, C)``.
        seeds: Patches of S seed images, shape ``(S, Q, C)``.
        own: Which of the seed images this image is, if it is one: it does not join itself.

    Returns:
        The channel of each patch, seed times Q plus seed patch, shape ``(P,)``; and whether it joins, shape ``(P,)``.
    """
    number = torch.arange(len(patches), device=patches.device)
    best = torch.full((len(patches),), torch.inf, device=patches.device)
    channel, joins = torch.zeros_like(number), torch.zeros_like(number, dtype=torch.bool)
    # one seed at a time, and of it no more distances than there is work space for
    rows = max(1, WORK_SPACE // seeds.shape[1])
    for n, seed in enumerate(seeds):
        if n == own:
            continue
        nearest_patch = number.new_zeros(len(seed))
        least = patches.new_full((len(seed),), torch.inf)
        found = []
        for start in range(0, len(patches), rows):
            distances = squared_distances(patches[start : start + rows], seed)
            found.append(distances.min(dim=1))
            values, places = distances.min(dim=0)
            nearest_patch = torch.where(values < least, places + start, nearest_patch)
            least = torch.minimum(values, least)
        to_seed, seed_patch = (torch.cat(parts) for parts in zip(*found, strict=True))
        mutual = nearest_patch[seed_patch] == number
        nearer = to_seed < best
        best = torch.where(nearer, to_seed, best)
        channel = torch.where(nearer, n * len(seed) + seed_patch, channel)
        joins = torch.where(nearer, mutual, joins)
    return channel, joins


def large_channels(channels: Tensor, minimal: int) -> Tensor:
    """Return which members are of a channel with more than ``minimal`` members.

    Args:
        channels: The channel of each of K members, shape ``(K,)``.
        minimal: Number of members.

    Returns:
        Bool, shape ``(K,)``.
    """
    return channels.bincount()[channels] > minimal


def within_spread(squared: Tensor, channels: Tensor, sigma: float) -> Tensor:
    """Return which members lie nearer to their channel's mean than ``sigma`` standard deviations.

    Args:
        squared: Squared distance of each member to the mean of its channel, shape ``(K,)``.
        channels: The channel of each, shape ``(K,)``.
        sigma: Number of standard deviations: roots of the channel's mean squared distance to its mean.

    Returns:
        Bool, shape ``(K,)``; all members of a channel without spread.
    """
    counts = channels.bincount()
    variance = torch.zeros(len(counts), dtype=squared.dtype, device=squared.device).index_add_(0, channels, squared)
    variance = (variance / counts.clamp_min(1))[channels]
    return (squared < sigma**2 * variance) | (variance == 0)


def squared_to_mean(members: Members, patches_of: Callable[[int], Tensor]) -> Tensor:
    """Return the squared distance of each member to the mean of its channel, shape ``(K,)``; one image at a time."""
    counts = members.channels.bincount()
    order = members.images.argsort(stable=True)
    rows = order.split(members.images.bincount().tolist())
    means: Tensor | None = None
    for image, own in enumerate(rows):
        if len(own):
            values = patches_of(image)[members.patches[own]]
            means = values.new_zeros(len(counts), values.shape[1]) if means is None else means
            means.index_add_(0, members.channels[own], values)
    squared = torch.empty(len(members.images), device=counts.device)
    for image, own in enumerate(rows):
        if len(own) and means is not None:
            mean = means[members.channels[own]] / counts[members.channels[own], None]
            squared[own] = (patches_of(image)[members.patches[own]] - mean).square().sum(dim=1)
    return squared


def is_aligned(mean_image: Tensor, least: float) -> bool:
    """Return whether a mean image differs from its transpose, as that of parts does that all lie in the same way.

    Args:
        mean_image: Shape ``(3, H, W)``, in [0, 255].
        least: Mean squared error from which on it differs.
    """
    side = min(mean_image.shape[-2:])
    square = torch.nn.functional.interpolate(mean_image[None], size=(side, side), mode="bilinear", antialias=True)
    return float((square - square.mT).square().mean()) >= least
