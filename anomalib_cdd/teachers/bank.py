# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""A memory bank of patches: the squared distance to the nearest one, times its weight, as an anomaly map.

The search is a matrix product for each chunk of the bank with a running minimum, so that eager inference and every
export need memory for one chunk and not for all distances.
"""

import torch
from anomalib.data import InferenceBatch
from anomalib.models.components import DynamicBufferMixin, GaussianBlur2d
from torch import Tensor, nn
from torch.nn import functional as F

from anomalib_cdd.training.precision import is_traced

# distances in memory at a time: 16 MB
BANK_CHUNK = 4096
QUERY_CHUNK = 1024


def squared_distances(first: Tensor, second: Tensor) -> Tensor:
    """Return squared Euclidean distances of vectors ``(..., Q, C)`` and ``(..., M, C)``, shape ``(..., Q, M)``."""
    # in place: beside the product a pass over memory is what costs
    distances = (-2 * first) @ second.mT
    distances += first.square().sum(-1, keepdim=True)
    distances += second.square().sum(-1).unsqueeze(-2)
    return distances.clamp_min_(0)


def nearest(queries: Tensor, bank: Tensor, allowed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Find the nearest vector of a bank.

    Args:
        queries: Shape ``(Q, C)``.
        bank: Shape ``(M, C)``, M at least one.
        allowed: Shape ``(M,)``, bool: which vectors of the bank are asked; ``None`` asks all.

    Returns:
        Squared distances ``(Q,)``, infinite where none is allowed, and indices ``(Q,)``.
    """
    if is_traced():
        return _nearest(queries, bank, allowed)
    parts = [_nearest(part, bank, allowed) for part in queries.split(QUERY_CHUNK)]
    return torch.cat([distances for distances, _ in parts]), torch.cat([indices for _, indices in parts])


def _nearest(queries: Tensor, bank: Tensor, allowed: Tensor | None) -> tuple[Tensor, Tensor]:
    best, place = None, None
    for start in range(0, len(bank), BANK_CHUNK):
        part = bank[start : start + BANK_CHUNK]
        # without the squares of the queries, which are the same for all of the bank
        squares = part.square().sum(dim=1)
        if allowed is not None:
            squares = squares.masked_fill(~allowed[start : start + BANK_CHUNK], torch.inf)
        distances = (-2 * queries) @ part.mT
        distances += squares
        values, indices = distances.min(dim=1)
        if best is None or place is None:
            best, place = values, indices
        else:
            closer = values < best
            best, place = torch.where(closer, values, best), torch.where(closer, indices + start, place)
    if best is None or place is None:
        msg = "The bank is empty."
        raise ValueError(msg)
    return (best + queries.square().sum(dim=1)).clamp_min(0), place


class PatchBank(DynamicBufferMixin, nn.Module):
    """Patches, their weights, and how distances become a map with values in [0, 1).

    A distance x becomes x / (x + ``scale``), which is strictly monotone: rankings are those of the distances. The scale
    is the mean distance of training patches to patches of other images, so that values use the whole range.

    Args:
        sigma: Standard deviation of the map's blur, in pixels.

    Attributes:
        memory_bank: Shape ``(M, C)``.
        weights: Shape ``(M,)``.
        scale: The distance that becomes one half.
    """

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.memory_bank: Tensor
        self.weights: Tensor
        self.scale: Tensor
        self.kernel: Tensor
        self.register_buffer("memory_bank", torch.empty(0))
        self.register_buffer("weights", torch.empty(0))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("kernel", _gaussian(sigma))

    def fill(self, patches: Tensor, weights: Tensor | None = None, sigma: float | None = None) -> None:
        """Take patches ``(M, C)`` in place of what is there, and weights ``(M,)``, one by default.

        Args:
            patches: The bank.
            weights: What squared distances to each patch are multiplied by.
            sigma: A new standard deviation of the blur, in pixels.
        """
        self.memory_bank = patches
        self.weights = torch.ones(len(patches), device=patches.device) if weights is None else weights
        if sigma is not None:
            self.kernel = _gaussian(sigma).to(patches.device)

    def distances(self, patches: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Return weighted squared distances ``(Q,)`` of patches ``(Q, C)``; ``allowed`` as in :func:`nearest`.

        Raises:
            ValueError: If there is no bank yet.
        """
        if len(self.memory_bank) == 0:
            msg = "The memory bank is empty. Fit the model first, or give the checkpoint of one that was fitted."
            raise ValueError(msg)
        squared, indices = nearest(patches.float(), self.memory_bank, allowed)
        return squared * self.weights[indices]

    def forward(self, patches: Tensor, size: tuple[int, int]) -> InferenceBatch:
        """Score images.

        Args:
            patches: Shape ``(B, C, h, w)``.
            size: Height and width of the images.

        Returns:
            ``anomaly_map``, shape ``(B, 1, H, W)``, and its maximum ``pred_score``, shape ``(B,)``; both in [0, 1).
        """
        count, channels, height, width = patches.shape
        flat = patches.permute(0, 2, 3, 1).reshape(-1, channels)
        anomaly_map = self.anomaly_map(self.distances(flat).reshape(count, 1, height, width), size)
        return InferenceBatch(pred_score=anomaly_map.amax(dim=(-3, -2, -1)), anomaly_map=anomaly_map)

    def anomaly_map(self, distances: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the map ``(B, 1, *size)`` of weighted squared distances ``(B, 1, h, w)``."""
        maps = F.interpolate(distances, size=tuple(size), mode="bilinear")
        half = self.kernel.numel() // 2
        maps = F.pad(maps, (half, half, half, half), mode="reflect")
        maps = F.conv2d(F.conv2d(maps, self.kernel[None, None, :, None]), self.kernel[None, None, None])
        return maps / (maps + self.scale)


def _gaussian(sigma: float) -> Tensor:
    size = 2 * int(4 * sigma + 0.5) + 1
    return GaussianBlur2d(sigma=sigma, kernel_size=(size, 1)).kernel.flatten().clone()
