# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Confidence-guided domain construction (CDD Sec. 4.1, Eq. 13, 14, 16; Algorithm 1, lines 7 to 13).

Pure functions: how many domains an epoch has, how many images count as confidently normal, how strongly the
previous student holds a domain student back, which image belongs to which domain, and what is visited.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import Literal, NamedTuple

import torch
from torch import Generator, Tensor

S_CURVE_POWER = 4.0
# seeds of neighbouring runs share no epoch's seed
EPOCHS_APART = 1_000_003
NO_DOMAIN = -1


class Domains(NamedTuple):
    """The training set as an epoch sees it, in image indices.

    ``confident`` is D^HC; ``parts`` are the disjoint D_k^LC; ``shared`` says whether D^HC joins every domain.
    """

    confident: Tensor
    parts: tuple[Tensor, ...]
    shared: bool

    def domain(self, k: int) -> Tensor:
        """Return the image indices of D_k (Eq. 14)."""
        return torch.cat([self.confident, self.parts[k]]) if self.shared else self.parts[k]


def epoch_generator(seed: int, epoch: int) -> Generator:
    """Return the source of an epoch's partition, orders and noise: the same after a resume as without one."""
    return torch.Generator().manual_seed(seed * EPOCHS_APART + epoch)


def domain_count(epoch: int, epochs: int, schedule: Sequence[int]) -> int:
    """Return K for an epoch: equal shares of the training for each entry of the schedule.

    Args:
        epoch: Current epoch, 0 to ``epochs - 1``.
        epochs: Number of epochs E.
        schedule: Numbers of domains, such as (2, 3, 3, 2).
    """
    return schedule[epoch * len(schedule) // epochs]


def confident_count(epoch: int, epochs: int, images: int, max_confident: float) -> int:
    """Return floor(r(e) * N), with r(e) = min(e / E, max_confident) (Eq. 13).

    Args:
        epoch: Current epoch, 0 to ``epochs - 1``.
        epochs: Number of epochs E.
        images: Number of training images N.
        max_confident: Largest share of confident images, in [0, 1].
    """
    # exact fractions: 0.29 * 100 is 28.999... in floating point
    share = min(Fraction(epoch, epochs), Fraction(str(max_confident)))
    return int(share * images)


def regularization_weight(epoch: int, epochs: int, kind: Literal["s-curve", "linear"] | float) -> float:
    """Return lambda(e), the weight of the previous student in a domain student's loss.

    Args:
        epoch: Current epoch, 0 to ``epochs - 1``.
        epochs: Number of epochs E.
        kind: ``"s-curve"`` (Eq. 16, p = 4), ``"linear"`` (e / E), or a constant.
    """
    x = epoch / epochs
    if kind == "s-curve":
        return x**S_CURVE_POWER / (x**S_CURVE_POWER + (1 - x) ** S_CURVE_POWER)
    return x if kind == "linear" else float(kind)


def partition(confidence: Tensor, confident: int, domains: int, generator: Generator, shared: bool = True) -> Domains:
    """Split the training set into domains (Eq. 14; Algorithm 1, lines 8, 9 and 11).

    Args:
        confidence: Confidence of each image, shape ``(N,)``, Eq. 12. Equal values are ranked by image index.
        confident: Number of most confident images that form D^HC.
        domains: Number of domains K.
        generator: Source of the fresh permutation; the same state gives the same domains.
        shared: Whether D^HC joins every domain. Without it all N images are dealt into the parts, and D^HC only
            names the confident ones.

    Returns:
        D^HC and K disjoint parts whose sizes differ by at most one.
    """
    ranked = torch.argsort(confidence.cpu(), descending=True, stable=True)
    dealt = ranked[confident:] if shared else ranked
    dealt = dealt[torch.randperm(len(dealt), generator=generator)]
    return Domains(ranked[:confident], tuple(dealt[k::domains] for k in range(domains)), shared)


def visits_of(domains: Domains, confident_each: bool = True) -> Tensor:
    """Return what the global student visits (Algorithm 1, lines 18 and 19).

    Args:
        domains: The epoch's domains.
        confident_each: Whether a confident image that is in every domain is visited once for each, or once in all.

    Returns:
        Rows (image, domain whose student is no candidate for it), shape ``(V, 2)``; -1 where none is excluded.
    """
    groups: list[tuple[Tensor, Sequence[int]]] = [(part, (k,)) for k, part in enumerate(domains.parts)]
    if domains.shared:
        groups.insert(0, (domains.confident, range(len(domains.parts)) if confident_each else (NO_DOMAIN,)))
    return torch.cat(
        [torch.stack([images, torch.full_like(images, owner)], dim=1) for images, owners in groups for owner in owners]
    )


def batches(indices: Tensor, size: int, generator: Generator | None = None) -> list[Tensor]:
    """Cut indices, shuffled if there is a generator, into batches along their first dimension.

    A last batch of one is dropped where it is to be trained on (where there is a generator): it has no batch
    statistics.
    """
    if generator is None:
        return list(indices.split(size)) if len(indices) else []
    shuffled = indices[torch.randperm(len(indices), generator=generator)]
    return [batch for batch in shuffled.split(size) if len(batch) > 1]


def passes(indices: Tensor, size: int, generator: Generator, count: int) -> list[Tensor]:
    """Cut indices into the batches of ``count`` passes, each in an order of its own; see :func:`batches`."""
    return [batch for _ in range(count) for batch in batches(indices, size, generator)]
