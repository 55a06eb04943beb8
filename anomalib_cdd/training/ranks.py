# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""The ranks of a training on several devices of one machine, and what they say to each other.

Every rank draws the same domains, orders and noise and then does its share. A rank by itself is the case of one: its
share is everything and it has nobody to talk to.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

# a share of one image has no batch statistics
SMALLEST_SHARE = 2


class Ranks:
    """One rank among ``count``.

    Args:
        rank: Number of this rank, from 0.
        count: How many there are.
        device: Where this rank computes; what is exchanged travels from there.
    """

    def __init__(self, rank: int = 0, count: int = 1, device: torch.device | str = "cpu") -> None:
        self.rank = rank
        self.count = count
        self.device = torch.device(device)

    @classmethod
    def of(cls, trainer: Trainer) -> "Ranks":
        """Return the ranks of a trainer that has begun to fit."""
        return cls(trainer.global_rank, trainer.world_size, trainer.strategy.root_device)

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that makes what all ranks use."""
        return self.rank == 0

    def portion(self, samples: Tensor) -> Tensor:
        """Return this rank's part of samples that need nothing of each other, along the first dimension."""
        return samples[self.rank :: self.count]

    def share(self, batch: Tensor) -> Tensor:
        """Return this rank's part of a batch that is trained on, along the first dimension.

        Shares are of equal size, so that the mean over ranks of a mean over shares is the mean over the batch. A batch
        that does not divide so is every rank's whole.
        """
        divides = len(batch) % self.count == 0 and len(batch) >= SMALLEST_SHARE * self.count
        return self.portion(batch) if divides else batch

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by their means over the ranks, in place."""
        if self.count > 1:
            for group, flat in _flattened(tensors):
                distributed.all_reduce(flat)
                _unflatten(flat / self.count, group)

    def average_statistics(self, module: nn.Module) -> None:
        """Replace a module's running statistics, which are means of means, by their means over the ranks."""
        self.average(buffer for buffer in module.buffers() if buffer.is_floating_point())

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over ranks of a tensor on any device."""
        if self.count == 1:
            return values
        total = values.to(self.device, copy=True)
        distributed.all_reduce(total)
        return total.to(values.device)

    def gather(self, values: Tensor) -> Tensor:
        """Return the values of all ranks, of equal shapes, stacked along a new first dimension."""
        if self.count == 1:
            return values[None]
        everyone = [torch.empty_like(values) for _ in range(self.count)]
        distributed.all_gather(everyone, values.contiguous())
        return torch.stack(everyone)

    def tell(self, said: Any) -> Any:  # whatever can be pickled
        """Return what the first rank said."""
        if self.count == 1:
            return said
        heard = [said]
        distributed.broadcast_object_list(heard, src=0, device=self.device)
        return heard[0]

    def wait(self) -> None:
        """Wait until every rank is here."""
        if self.count > 1:
            distributed.barrier()


def gradients(optimizer: Optimizer | LightningOptimizer) -> list[Tensor]:
    """Return the gradients that an optimiser is about to step along."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def _flattened(tensors: Iterable[Tensor]) -> list[tuple[list[Tensor], Tensor]]:
    """Put tensors of one precision into one, so that they travel together."""
    groups: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.dtype, []).append(tensor.detach())
    return [(group, torch.cat([tensor.flatten() for tensor in group])) for group in groups.values()]


def _unflatten(flat: Tensor, group: Sequence[Tensor]) -> None:
    for tensor, part in zip(group, flat.split([tensor.numel() for tensor in group]), strict=True):
        tensor.copy_(part.view_as(tensor))
