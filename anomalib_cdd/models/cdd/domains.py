# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Confidence-guided domain construction (CDD Sec. 4.1, Eq. 13, 14, 16; Algorithm 1, lines 7 to 13).

Pure functions: how many domains an epoch has, how many images count as confidently normal, how strongly the
previous student holds a domain student back, which image belongs to which domain, and what is visited.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import torch
from torch import Generator, Tensor

S_CURVE_POWER = 4.0
# seeds of neighbouring runs share no epoch's seed, and folds share none with an epoch
EPOCHS_APART = 1_000_003
FOLDS_APART = 500_000
STUDENTS_APART = 101
SEEDS = 2**63
NO_DOMAIN = -1
DomainStudents = Literal["forked", "persistent"] | float


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
    return torch.Generator().manual_seed((seed * EPOCHS_APART + epoch) % SEEDS)


def student_seed(seed: int, epoch: int, number: int) -> int:
    """Return the seed of what a student draws by itself in an epoch: the global student is number 0."""
    return (seed * EPOCHS_APART + epoch) * STUDENTS_APART + number


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


def persistent_epochs(epochs: int, kind: DomainStudents) -> int:
    """Return how many of the first epochs have persistent domain students.

    Args:
        epochs: Number of epochs E.
        kind: ``"persistent"`` (all), ``"forked"`` (none), or the share of the epochs, in (0, 1).
    """
    if isinstance(kind, str):
        return epochs if kind == "persistent" else 0
    return round(kind * epochs)


class Plan(NamedTuple):
    """What an epoch does, as far as its number and the options say.

    Attributes:
        domains: K.
        confident: Number of confident images.
        weight: Of the previous student in a domain student's loss.
        across: Whether domain students are trained and asked.
        warm_up: Whether the epoch is plain Reverse Distillation.
        persistent: Whether domain students live on.
        recalls: Whether the previous student is asked about the training set.
        first: The first epoch with these folds.
        kept: How many domain students live on from the epoch before; the others are forked.
        learns: Whether domain students are trained; if not, what they said in the epoch before stands.
    """

    domains: int
    confident: int
    weight: float
    across: bool
    warm_up: bool
    persistent: bool
    recalls: bool
    first: int
    kept: int
    learns: bool


def plan_epoch(epoch: int, epochs: int, images: int, options: Any) -> Plan:
    """Return the plan of an epoch.

    Args:
        epoch: Current epoch, 0 to ``epochs - 1``.
        epochs: Number of epochs E.
        images: Number of training images N.
        options: The constructor's arguments of :class:`Cdd`.
    """
    warm_up = epoch < options.warmup_epochs
    across = options.pseudo_normal and not warm_up
    guided = (options.confidence_guidance or options.confident_distillation) and not warm_up
    # of two students the other one is the candidate
    chooses = options.selection == "consensual" and max(options.domains) > 2
    asks = bool(options.regularization) or chooses or (guided and options.max_confident > 0)
    count = domain_count(epoch, epochs, options.domains) if options.domain_construction and not warm_up else 1
    first = epoch
    while first > options.warmup_epochs and domain_count(first - 1, epochs, options.domains) == count:
        first -= 1
    confident = confident_count(epoch, epochs, images, options.max_confident) if guided else 0
    persistent = across and epoch < persistent_epochs(epochs, options.domain_students)
    count_before = 0
    if epoch > options.warmup_epochs:
        count_before = domain_count(epoch - 1, epochs, options.domains) if options.domain_construction else 1
    return Plan(
        domains=count,
        confident=confident,
        weight=regularization_weight(epoch, epochs, options.regularization) if across else 0.0,
        across=across,
        warm_up=warm_up,
        persistent=persistent,
        recalls=(across and asks) or confident > 0,
        first=first,
        kept=min(count, count_before) if persistent else 0,
        learns=across and not (persistent and (epoch - first) % options.domain_interval),
    )


def deal(samples: Tensor, count: int, generator: Generator, shows: Tensor) -> tuple[Tensor, ...]:
    """Permute samples and deal them into parts whose sizes differ by at most one.

    Args:
        samples: Which of the training set.
        count: Number of parts.
        generator: Source of the permutation.
        shows: What each sample of the training set shows, shape ``(N,)``: tiles of one image and copies of one file
            are dealt together, as who has learned from one of them has seen the others. The parts are of so many
            things then. Fewer things than parts cannot be kept together.
    """
    things, thing_of = torch.unique(shows[samples], return_inverse=True)
    if not count <= len(things) < len(samples):
        dealt = samples[torch.randperm(len(samples), generator=generator)]
        return tuple(dealt[k::count] for k in range(count))
    dealt = torch.randperm(len(things), generator=generator)
    return tuple(samples[torch.isin(thing_of, dealt[k::count])] for k in range(count))


def draw_folds(shows: Tensor, plan: Plan, seed: int) -> tuple[Tensor, ...]:
    """Return the folds of persistent domain students: the same in every epoch until K changes.

    Args:
        shows: As of :func:`deal`.
        plan: Of the epoch.
        seed: The model's.

    Returns:
        K disjoint parts of all samples.
    """
    generator = epoch_generator(seed, FOLDS_APART + plan.first)
    return deal(torch.arange(len(shows)), plan.domains, generator, shows)


def partition(
    confidence: Tensor,
    confident: int,
    domains: int,
    generator: Generator,
    shared: bool = True,
    folds: Sequence[Tensor] = (),
    shows: Tensor | None = None,
) -> Domains:
    """Split the training set into domains (Eq. 14; Algorithm 1, lines 8, 9 and 11).

    Args:
        confidence: Confidence of each image, shape ``(N,)``, Eq. 12. Equal values are ranked by image index.
        confident: Number of most confident images that form D^HC.
        domains: Number of domains K.
        generator: Source of the fresh permutation; the same state gives the same domains.
        shared: Whether D^HC joins every domain. Without it all N images are dealt into the parts, and D^HC only
            names the confident ones.
        folds: K disjoint parts of all images, where the domains are to be those and not dealt afresh.
        shows: As of :func:`deal`; ``None`` where no two samples show the same.

    Returns:
        D^HC and K disjoint parts, of sizes that differ by at most one if they were dealt.
    """
    ranked = torch.argsort(confidence.cpu(), descending=True, stable=True)
    rest = ranked[confident:] if shared else ranked
    shows = torch.arange(len(ranked)) if shows is None else shows
    parts = tuple(fold[torch.isin(fold, rest)] for fold in folds) or deal(rest, domains, generator, shows)
    return Domains(ranked[:confident], parts, shared)


def visits_of(domains: Domains, once: bool = False, dealt: bool = False) -> Tensor:
    """Return what the global student visits (Algorithm 1, lines 18 and 19).

    Args:
        domains: The epoch's domains.
        once: Whether a confident image that is in every domain is visited once in all, or once for each.
        dealt: Whether an image that is visited once belongs to one domain in turn, or to none.

    Returns:
        Rows (image, domain whose student is no candidate for it), shape ``(V, 2)``; -1 where none is excluded.
    """
    count = len(domains.parts)
    owned = [(part, torch.full_like(part, k)) for k, part in enumerate(domains.parts)]
    if domains.shared:
        images = domains.confident
        for k in range(1 if once else count):
            owner = torch.arange(len(images)) % count if once and dealt else torch.full_like(images, k)
            owned.append((images, torch.full_like(images, NO_DOMAIN) if once and not dealt else owner))
    return torch.cat([torch.stack(pair, dim=1) for pair in owned])


def global_steps(epochs: int, images: int, batch_size: int, options: Any) -> int:
    """Return how many optimiser steps the global student takes in a training.

    Args:
        epochs: Number of epochs E.
        images: Number of training images N.
        batch_size: Images a batch.
        options: The constructor's arguments of :class:`Cdd`.
    """
    steps = 0
    for plan in (plan_epoch(epoch, epochs, images, options) for epoch in range(epochs)):
        shared = options.confidence_guidance and not plan.warm_up
        again = (plan.domains - 1) * plan.confident if shared and not options.confident_once else 0
        steps += batch_count(images + again, batch_size)
        steps += batch_count(plan.confident, batch_size) if options.confident_distillation else 0
    return steps


def batch_count(images: int, size: int) -> int:
    """Return the number of batches that :func:`batches` makes to train on: a last one of one image is dropped."""
    return -(-images // size) - (images % size == 1)


def batches(indices: Tensor, size: int, generator: Generator | None = None) -> list[Tensor]:
    """Cut indices, shuffled if there is a generator, into batches along their first dimension.

    A last batch of one is dropped where it is to be trained on (where there is a generator): it has no batch
    statistics.
    """
    if generator is None:
        return list(indices.split(size)) if len(indices) else []
    shuffled = indices[torch.randperm(len(indices), generator=generator)]
    return [batch for batch in shuffled.split(size) if len(batch) > 1]
