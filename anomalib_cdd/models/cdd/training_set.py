# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""The training set of an epoch: what teacher, previous student and domain students say of each image, said once.

Teacher features are cached for the whole training, the previous student's and the pseudo-normal targets for an
epoch; each of several ranks asks its part and all share the answers. Where training augmentations are random nothing
can be kept: the same questions are then answered afresh from the features at hand.
"""

import logging
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, cast

import torch
from anomalib.data import AnomalibDataset
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, RandomSampler, SequentialSampler, Subset
from torchvision.transforms.v2 import Transform

from anomalib_cdd.teachers.distances import Levels, similarity
from anomalib_cdd.teachers.students import Student
from anomalib_cdd.training.compat import spare_images, training_loader
from anomalib_cdd.training.finite import NotFiniteError
from anomalib_cdd.training.images import is_deterministic
from anomalib_cdd.training.ranks import Ranks

from .domains import batches
from .features import FeatureBudget, FeatureCache, TeacherFeatures
from .loss import Selection, candidate_weights, confidence, pseudo_normal
from .torch_model import CddModel

logger = logging.getLogger(__name__)

# where data sets keep what they do to an image: anomalib's, torchvision's
AUGMENTATIONS = ("augmentations", "transform")


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
        score: See above.
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
        self.score = score
        self._ranks = ranks
        # per sample: sum and number of the scores by students that have not been trained on it, and by all
        self._score_sums = torch.zeros(len(features), 4)
        self._unmet = torch.zeros(0, len(features), dtype=torch.bool)
        self._previous: Student | None = None
        self._recalled: FeatureCache | None = None
        self._targets: FeatureCache | None = None
        self._visits = torch.zeros(0, 2, dtype=torch.long)  # whose targets those are

    @classmethod
    def of(
        cls, trainer: Trainer, model: CddModel, transform: Transform | None, options: Any, ranks: Ranks
    ) -> "TrainingSet":
        """Find the trainer's training data; :meth:`fill` reads it.

        Args:
            trainer: The trainer that is about to fit.
            model: Whose teacher sees the images.
            transform: Of the pre-processor.
            options: The constructor's arguments of :class:`Cdd`.
            ranks: Who shares the work.

        Raises:
            ValueError: If a sampler would leave images out.
        """
        loader = training_loader(trainer)
        _check_sampler(loader.sampler)
        weight = next(model.student.parameters())
        part = limited(loader, trainer.limit_train_batches, options.seed)
        extract = partial(teacher_levels, model, transform, weight.device, weight.dtype)
        features = TeacherFeatures(loader, extract, weight.device, weight.dtype, part)
        augmentations = [getattr(data, name, None) for data in _nested(loader.dataset) for name in AUGMENTATIONS]
        random = [
            name
            for name, steps in (("the training augmentations", augmentations), ("the pre-processor", [transform]))
            if not all(map(is_deterministic, steps))
        ]
        if random:
            logger.warning("Teacher features are not cached: %s may be random.", " and ".join(random))
        is_kept = options.cache and not random
        budget = FeatureBudget(options.cache_memory_gb, options.cache_dir, ranks) if is_kept else None
        return cls(features, budget, model.sample_scores, ranks)

    def fill(self, trainer: Trainer) -> None:
        """Read every image once, where features are kept; the trainer's loader need not read them again."""
        if self._budget is not None:
            self.features.fill(self._budget)
        loader = training_loader(trainer)
        spare_images(trainer, loader, len(cast("Sized", loader.dataset)))

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
        _release(self._recalled)
        self._recalled = None
        self._previous = previous
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
            return self.previous(teacher)

    @property
    def previous(self) -> Student:
        """S_prev: the global student as the epoch found it.

        Raises:
            RuntimeError: Before the first epoch.
        """
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
        unmet: Tensor,
        anew: bool = True,
    ) -> Callable[[Tensor, Levels], Levels]:
        """Choose the pseudo-normal target of every visit (Algorithm 1, lines 20 to 22).

        Args:
            students: The domain students, in evaluation mode.
            visits: Rows (sample, domain whose student is no candidate), shape ``(V, 2)``.
            selection: How a candidate is chosen.
            unmet: Which students have not been trained on which sample, bool of shape ``(K, N)``.
            anew: Whether the students have learned since they were last asked, or the previous student has a say. If
                not, and the visits are the same, what is kept of their answers stands.

        Returns:
            A function of a batch of visits and their teacher levels that returns the targets.
        """
        row = torch.full((len(self), len(students) + 1), -1)
        row[visits[:, 0], visits[:, 1]] = torch.arange(len(visits))
        kept = self._targets
        if kept is None or anew or not torch.equal(visits, self._visits):
            _release(kept)
            self._unmet, self._visits = unmet, visits
            self._score_sums.zero_()
            if self._budget is None:
                return lambda batch, teacher: self._choose(students, teacher, batch, selection)
            kept = self._targets = self._budget.cache(len(visits), self.features.shapes, torch.bfloat16)
            self._answer(kept, students, row, selection)
        cache = kept
        return lambda batch, teacher: cache.read(row[batch[:, 0], batch[:, 1]], teacher[0].device)

    def _answer(self, cache: FeatureCache, students: Sequence[Student], row: Tensor, selection: Selection) -> None:
        """Write the target of each visit into its row of a cache; ``row`` is -1 where there is no visit."""
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
            scores = self.score(list(teacher), answer).float().cpu()
            outside = (eligible[:, h] & self._unmet[h, indices]).float()
            said = torch.stack([scores * outside, outside, scores * eligible[:, h], eligible[:, h]], dim=1)
            self._score_sums.index_add_(0, indices, said)
        candidates = [answers.get(h, teacher) for h in range(len(students))]
        affinity = torch.zeros(len(indices), len(students), device=teacher[0].device)
        # of two students the other one is the only candidate, unless an image excludes none
        if selection == "consensual" and (len(students) > 2 or bool((own < 0).any())):
            reference = self.recalled(indices, teacher)
            for h in asked:
                affinity[:, h] = similarity(answers[h], reference)
        return candidates, affinity

    @torch.no_grad()
    def scale_by(self, student: Student) -> Tensor:
        """Return mean and standard deviation over the images of a student's scores, of tiles the highest, shape (2,).

        Each rank asks about all of them and waits for no other.
        """
        parts = batches(torch.arange(len(self)), self.batch_size)
        scores = torch.cat([self.score(teacher, student(teacher)).float().cpu() for teacher in self.teacher(parts)])
        by_image = scores.view(-1, self.features.per_image).amax(dim=1)
        return torch.stack([by_image.mean(), by_image.std(correction=0)])

    @property
    def image_paths(self) -> list[str]:
        """Paths of the images, or their numbers where the data set does not tell."""
        return self.features.image_paths

    def cross_domain_scores(self) -> tuple[Tensor, Tensor]:
        """Return each image's anomaly score by students that have not been trained on it, and the epoch's scale.

        Every rank has to ask for them, once an epoch is over.

        Returns:
            The mean over such students, of an image's tiles the highest, shape (images,), NaN where there was none; and
            mean and standard deviation over the images of the same by all students that were asked, shape (2,), NaN
            where none was.
        """
        outside, count, inside, asked = self._ranks.sum(self._score_sums).T
        scores = (outside / count).view(-1, self.features.per_image).amax(dim=1)
        by_all = (inside / asked).view(-1, self.features.per_image).amax(dim=1)
        # without a cache an image that a shuffled pass has dropped was not asked about
        by_all = by_all[by_all.isfinite()]
        return scores, torch.stack([by_all.mean(), by_all.std(correction=0)])

    def close(self) -> None:
        """Give memory and disk back."""
        for cache in (self._recalled, self._targets):
            _release(cache)
        self._recalled = self._targets = None
        if self.features.cache is not None:
            self.features.cache.release()


def _check_sampler(sampler: Any) -> None:  # torch's, or any iterable
    every = isinstance(sampler, SequentialSampler | DistributedSampler)
    if not every and not (isinstance(sampler, RandomSampler) and not sampler.replacement):
        msg = (
            f"The training loader has a {type(sampler).__name__}: images are read by their index, each one, whatever a "
            "sampler says. Leave it out; for a part of the images give a data set of that part."
        )
        raise ValueError(msg)


def _nested(dataset: Any) -> Iterator[Any]:  # any data set
    """Yield a data set and those that it is a part of or is put together from."""
    yield dataset
    for inner in (getattr(dataset, "dataset", None), *getattr(dataset, "datasets", ())):
        if inner is not None:
            yield from _nested(inner)


def _release(cache: FeatureCache | None) -> None:
    if cache is not None:
        cache.release()


def no_fp16() -> AbstractContextManager:
    """Run frozen students in bf16 where training autocasts to fp16: an untrained one overflows it."""
    device = "cuda" if torch.is_autocast_enabled("cuda") else "cpu"
    if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16:
        return torch.autocast(device, dtype=torch.bfloat16)
    return nullcontext()


@torch.no_grad()
def teacher_levels(
    model: CddModel, transform: Transform | None, device: torch.device, dtype: torch.dtype, batch: Any
) -> list[Tensor]:
    """Return the teacher's levels of a batch as the loader gives it: pre-processed, without autocast or gradient."""
    images = batch.image.to(device)
    if transform is not None:
        images = transform(images)
    with torch.autocast(device.type, enabled=False):
        return model.teacher_features(images.to(dtype))


def limited(loader: DataLoader, limit: float, seed: int) -> Dataset | None:
    """Return the part of a loader's data set that Lightning's ``limit_train_batches`` leaves, drawn by the seed.

    Args:
        loader: The training loader.
        limit: A number of batches, or a share of them.
        seed: Of the draw: the same images in every epoch.

    Returns:
        The part; ``None`` where all images are left.
    """
    dataset: Any = loader.dataset
    size = loader.batch_size or 1
    count = limit if isinstance(limit, int) else int(limit * -(-len(dataset) // size))
    if count * size >= len(dataset):
        return None
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    rows = order[: max(1, count) * size].sort().values.tolist()
    return dataset.subsample(rows) if isinstance(dataset, AnomalibDataset) else Subset(dataset, rows)
