# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""The training set of an epoch: what teacher, previous student and domain students say of each image, said once.

Teacher features are cached for the whole training, the previous student's and the pseudo-normal targets for an
epoch; each of several ranks asks its part and all share the answers. Where training augmentations are random nothing
can be kept: the same questions are then answered afresh from the features at hand.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from anomalib_cdd.teachers.distances import Levels, similarity
from anomalib_cdd.teachers.students import Student
from anomalib_cdd.training.compat import spare_images, training_loader
from anomalib_cdd.training.images import is_deterministic
from anomalib_cdd.training.ranks import Ranks

from .domains import batches
from .features import FeatureBudget, FeatureCache, NotFiniteError, TeacherFeatures
from .loss import Selection, candidate_weights, confidence, pseudo_normal

if TYPE_CHECKING:
    from .lightning_model import Cdd

logger = logging.getLogger(__name__)


class TrainingSet:
    """Answers by sample index, from memory where it can.

    Args:
        features: The teacher's features.
        budget: Where the features of students go; ``None`` keeps none.
        score: Anomaly scores ``(B,)`` of samples by the teacher's levels and a student's.
        ranks: Who shares the work.

    Attributes:
        confidence: Confidence of each sample by the previous student, shape ``(N,)``, Eq. 12.
        batch_size: Of every pass.
    """

    def __init__(
        self,
        features: TeacherFeatures,
        budget: FeatureBudget | None,
        score: Callable[[list[Tensor], list[Tensor]], Tensor],
        ranks: Ranks,
    ) -> None:
        self.features = features
        self.batch_size = features.batch_size
        self.confidence = torch.zeros(len(features))
        self._budget = budget
        self._score = score
        self._ranks = ranks
        self._score_sums = torch.zeros(len(features), 2)
        self._has_recalled = False
        self._previous: Student | None = None
        self._recalled: FeatureCache | None = None
        self._targets: FeatureCache | None = None

    @classmethod
    def of(cls, trainer: Trainer, model: "Cdd", ranks: Ranks) -> "TrainingSet":
        """Read the trainer's training data."""
        loader = training_loader(trainer)
        options = model.options
        dtype = cast("torch.dtype", model.dtype)
        features = TeacherFeatures(loader, lambda batch: extract(model, batch), model.device, dtype)
        random = [
            name
            for name, transform in (
                ("the training augmentations", getattr(loader.dataset, "augmentations", None)),
                ("the pre-processor", getattr(model.pre_processor, "transform", None)),
            )
            if not is_deterministic(transform)
        ]
        if options.cache == "off" or random:
            if random:
                logger.warning("Teacher features are not cached: %s may be random.", " and ".join(random))
            return cls(features, None, model.model.sample_scores, ranks)
        budget = FeatureBudget(options.cache_memory_gb, options.cache_dir, ranks)
        features.fill(budget)
        spare_images(trainer, loader, features.images)
        return cls(features, budget, model.model.sample_scores, ranks)

    def __len__(self) -> int:
        """Return the number of samples N."""
        return len(self.features)

    def teacher(self, parts: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        """Yield the teacher's levels for each batch of sample indices."""
        return self.features.iterate(parts)

    @torch.no_grad()
    def recall(self, previous: Student, needed: bool) -> None:
        """Ask the previous student about every sample, once (Algorithm 1, line 6).

        Args:
            previous: S_prev, frozen.
            needed: Whether anything will be asked of it in this epoch.

        Raises:
            NotFiniteError: If what it says is not finite.
        """
        self._forget()
        self._previous = previous
        self._score_sums.zero_()
        self._has_recalled = needed
        if not needed:
            return
        if self.features.cache is not None and self._budget is not None:
            # bf16: the features of an untrained student overflow fp16
            self._recalled = self._budget.cache(len(self), self.features.shapes, torch.bfloat16)
        self.confidence.zero_()
        parts = batches(self._ranks.portion(torch.arange(len(self))), self.batch_size)
        for indices, teacher in zip(parts, self.teacher(parts), strict=True):
            with no_fp16():
                output = previous(teacher)
            self.confidence[indices] = confidence(teacher, output).cpu()
            if self._recalled is not None:
                self._recalled.write(indices, output)
        self.confidence = self._ranks.sum(self.confidence)
        if not self.confidence.isfinite().all():
            msg = "confidence is not finite"
            raise NotFiniteError(msg)

    @torch.no_grad()
    def recalled(self, indices: Tensor, teacher: Levels) -> Levels:
        """Return the previous student's levels of samples whose teacher levels are at hand."""
        if self._recalled is not None:
            return self._recalled.read(indices, teacher[0].device, teacher[0].dtype)
        with no_fp16():
            return self._asked(teacher)

    @property
    def _asked(self) -> Student:
        if self._previous is None:
            msg = "The previous student is known once `recall` has been called."
            raise RuntimeError(msg)
        return self._previous

    @torch.no_grad()
    def targets(
        self,
        students: Sequence[Student],
        visits: Tensor,
        selection: Selection,
    ) -> Callable[[Tensor, Levels], Levels]:
        """Choose the pseudo-normal target of every visit (Algorithm 1, lines 20 to 22).

        Args:
            students: The domain students, in evaluation mode.
            visits: Rows (sample, domain whose student is no candidate), shape ``(V, 2)``.
            selection: How a candidate is chosen.

        Returns:
            A function of a batch of visits and their teacher levels that returns the targets.
        """
        if self._budget is None:
            return lambda batch, teacher: self._choose(students, teacher, batch, selection)
        cache = self._targets = self._budget.cache(len(visits), self.features.shapes, torch.bfloat16)
        row = torch.full((len(self), len(students) + 1), -1)
        row[visits[:, 0], visits[:, 1]] = torch.arange(len(visits))
        # visits of the same sample side by side: each S_h(F_T) is computed once
        for owners in row.ge(0).unique(dim=0):
            samples = (row.ge(0) == owners).all(dim=1).nonzero().flatten()
            own = owners.nonzero().flatten()
            own[own == len(students)] = -1
            parts = batches(self._ranks.portion(samples), self.batch_size)
            for indices, teacher in zip(parts, self.teacher(parts), strict=True):
                owners_of_each = own.expand(len(indices), -1)
                candidates, affinity = self._ask(students, owners_of_each, indices, teacher, selection)
                for owner in own.tolist():
                    excluded = torch.full((len(indices),), owner, device=affinity.device)
                    weights = candidate_weights(affinity, excluded, selection)
                    cache.write(row[indices, owner], pseudo_normal(candidates, weights, selection))
        self._ranks.wait()
        return lambda batch, teacher: cache.read(row[batch[:, 0], batch[:, 1]], teacher[0].device)

    @torch.no_grad()
    def _choose(self, students: Sequence[Student], teacher: Levels, batch: Tensor, selection: Selection) -> Levels:
        candidates, affinity = self._ask(students, batch[:, 1:], batch[:, 0], teacher, selection)
        weights = candidate_weights(affinity, batch[:, 1].to(affinity.device), selection)
        return pseudo_normal(candidates, weights, selection)

    def _ask(
        self,
        students: Sequence[Student],
        own: Tensor,
        indices: Tensor,
        teacher: Levels,
        selection: Selection,
    ) -> tuple[list[Levels], Tensor]:
        """Return the candidates S_h(F_T) and their affinity ``(B, K)`` to the previous student (Eq. 17).

        Row i of ``own`` has the domain that each visit of sample i excludes. A student that is no candidate of any
        visit is not asked.
        """
        eligible = torch.stack([(own != h).any(dim=1) for h in range(len(students))], dim=1)
        asked = [h for h in range(len(students)) if eligible[:, h].any()]
        with no_fp16():
            answers = {h: students[h](teacher) for h in asked}
        for h, answer in answers.items():
            scores = self._score(list(teacher), answer).float().cpu()
            said = torch.stack([scores, torch.ones_like(scores)], dim=1) * eligible[:, h, None]
            self._score_sums.index_add_(0, indices, said)
        candidates = [answers.get(h, teacher) for h in range(len(students))]
        affinity = torch.zeros(len(indices), len(students), device=teacher[0].device)
        # of two students the other one is the only candidate, unless an image excludes none
        if selection == "consensual" and (len(students) > 2 or bool((own < 0).any())):
            reference = self.recalled(indices, teacher)
            for h in asked:
                affinity[:, h] = similarity(answers[h], reference)
        return candidates, affinity

    @property
    def image_paths(self) -> list[str]:
        """Paths of the images, or their numbers where the data set does not tell."""
        return self.features.image_paths

    def image_confidence(self) -> Tensor:
        """Return each image's confidence in this epoch, of its tiles the lowest, shape (images,); NaN if not asked."""
        by_image = self.confidence.view(-1, self.features.per_image).amin(dim=1)
        return by_image if self._has_recalled else torch.full_like(by_image, torch.nan)

    def cross_domain_scores(self) -> Tensor:
        """Return each image's anomaly score by the students of other domains, shape (images,).

        The mean over the students that this epoch asked; of an image's tiles the highest. NaN where none was asked.
        Every rank has to ask for them, once an epoch is over.
        """
        scores, asked = self._ranks.sum(self._score_sums).T
        return (scores / asked).view(-1, self.features.per_image).amax(dim=1)

    def _forget(self) -> None:
        for cache in (self._recalled, self._targets):
            if cache is not None:
                cache.release()
        self._recalled = self._targets = None

    def close(self) -> None:
        """Give memory and disk back."""
        self._forget()
        if self.features.cache is not None:
            self.features.cache.release()


def no_fp16() -> AbstractContextManager:
    """Run frozen students in bf16 where training autocasts to fp16: an untrained one overflows it."""
    device = "cuda" if torch.is_autocast_enabled("cuda") else "cpu"
    if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16:
        return torch.autocast(device, dtype=torch.bfloat16)
    return nullcontext()


def extract(model: "Cdd", batch: Any) -> list[Tensor]:  # anomalib's batch
    """Return the teacher's levels of a batch as the loader gives it: pre-processed, in fp32, without gradient."""
    images = batch.image.to(model.device)
    transform: Any = getattr(model.pre_processor, "transform", None)
    if transform is not None:
        images = transform(images)
    with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
        return model.model.teacher_features(images.to(model.dtype))
