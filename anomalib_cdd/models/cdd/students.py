# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""The domain students of a fit, and who was trained on which sample: what makes a score out of sample."""

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor

from anomalib_cdd.teachers.students import Student
from anomalib_cdd.training.image_files import first_of_each

from .domains import Domains, Plan, draw_folds
from .history import met_before

logger = logging.getLogger(__name__)


class StudentsInTraining:
    """The domain students, and the samples that they and the global student were trained on.

    Attributes:
        students: One for each domain of the largest K; none outside a fit.
    """

    def __init__(self) -> None:
        self.students: list[Student] = []
        # the global student in row 0, domain student k in row k + 1
        self._met = torch.zeros(0, 0, dtype=torch.bool)
        self._resumed: dict[str, Any] = {}
        # the first so many have a training of their own; the others are copies of the global student
        self._trained = 0
        # paths of the images of all fits that have begun; a copy's model has learned from more than it knows of
        self.learned_from: set[str] = set()
        self._is_of_a_copy = False
        # what each sample shows, see `deal`; and which fold it was in, -1 if new, where images have come or gone
        self.shows = torch.zeros(0, dtype=torch.long)
        self._kept_folds: tuple[int, Tensor] | None = None
        self._folds: tuple[int, Tensor] | None = None

    def make(self, student: Student, count: int) -> list[Student]:
        """Make domain students, as a resumed checkpoint has them where it has any.

        Args:
            student: The global student; the others are copies of it.
            count: How many.
        """
        self.students = [copy.deepcopy(student) for _ in range(count)]
        states = self._resumed.pop("domain_students", ())
        for each, state in zip(self.students, states, strict=False):
            each.load_state_dict(state)
        self._trained = len(states)
        return self.students

    def begin(self, image_paths: Sequence[str], contents: Sequence[str], per_image: int, count: int) -> None:
        """Find who was trained on which sample before this fit.

        Args:
            image_paths: Paths of the N training images.
            contents: What tells their files apart, see :func:`.image_files.contents_of`.
            per_image: Samples an image.
            count: Number of domain students.
        """
        known, met = self._resumed.pop("image_paths", None), self._resumed.pop("met", None)
        folds = self._resumed.pop("folds", None)
        if known is None or met is None or met.shape[1] != len(known) * per_image:
            known = met = folds = None
        if known is None and (self.learned_from or self._is_of_a_copy):
            logger.warning(
                "This model has been trained before: what it says of the images that it has learned from is not out of "
                "sample. Train a new one for that."
            )
        self._met = met_before(known or [], met, image_paths, 1 + count, per_image)
        by_image, resumed = self._met.view(1 + count, -1, per_image), set(known or ())
        for number, path in enumerate(image_paths):
            if path not in resumed and (self._is_of_a_copy or path in self.learned_from):
                by_image[:, number] = True
        self.learned_from.update(image_paths)
        self.shows = torch.tensor(first_of_each(contents), dtype=torch.long).repeat_interleave(per_image)
        self._kept_folds = self._folds = None
        if folds is not None and known != list(image_paths):
            place = {path: number for number, path in enumerate(known or ())}
            of_image = folds[1].view(-1, per_image)
            new = torch.full((per_image,), -1)
            kept = [of_image[place[path]] if path in place else new for path in image_paths]
            self._kept_folds = folds[0], torch.cat(kept)

    def folds(self, plan: Plan, seed: int) -> tuple[Tensor, ...]:
        """Return the folds of persistent students, see :func:`draw_folds`.

        Where images have come or gone since a checkpoint a sample stays with the student that has learned from it, and
        what is new joins what shows the same, or else the smallest fold.
        """
        dealt = draw_folds(self.shows, plan, seed)
        fold_of = torch.empty(len(self.shows), dtype=torch.long)
        for k, part in enumerate(dealt):
            fold_of[part] = k
        if self._kept_folds is not None and self._kept_folds[0] == plan.first:
            fold_of = self._kept_folds[1]
            for sample in (fold_of < 0).nonzero().flatten().tolist():
                alike = fold_of[(self.shows == self.shows[sample]) & (fold_of >= 0)]
                sizes = torch.bincount(fold_of[fold_of >= 0], minlength=plan.domains)
                fold_of[sample] = alike[0] if len(alike) else sizes.argmin()
            dealt = tuple((fold_of == k).nonzero().flatten() for k in range(plan.domains))
        self._folds = plan.first, fold_of
        return dealt

    def of_a_copy(self) -> "StudentsInTraining":
        """Return those of a copy of the model: it does not know what it has learned from, if it has from anything."""
        others = StudentsInTraining()
        others._is_of_a_copy = self._is_of_a_copy or bool(self.learned_from)
        return others

    @property
    def has_begun(self) -> bool:
        """Whether there has been a fit, or there is one."""
        return self._met.numel() > 0

    @property
    def unmet(self) -> Tensor:
        """Which domain student has not been trained on which sample, bool of shape ``(K, N)``."""
        return ~self._met[1:]

    def adapt(self, plan: Plan) -> Plan:
        """Return the plan of an epoch for the students that there are.

        A training that is resumed with another number of epochs may ask for more of them, or sooner, than the
        checkpoint has: who has no training of its own is forked, and learns before anybody asks it.
        """
        if self._trained >= (plan.domains if plan.across and not plan.learns else plan.kept):
            return plan
        return plan._replace(kept=min(plan.kept, self._trained), learns=True)

    def ready(self, k: int, student: Student, optimizer: LightningOptimizer, lives_on: bool) -> Student:
        """Ready domain student k for an epoch.

        Args:
            k: Which.
            student: The global student.
            optimizer: The domain student's own.
            lives_on: Whether it goes on as the last epoch left it. If not, it is forked from the global student,
                parameters and buffers, and its Adam begins afresh.
        """
        if not lives_on:
            self.students[k].load_state_dict(student.state_dict())
            optimizer.optimizer.state.clear()
            self._met[k + 1] = self._met[0]
        self._trained = max(self._trained, k + 1)
        return self.students[k].train()

    def meet(self, domains: Domains, plan: Plan, options: Any) -> None:
        """Take down who is trained on which sample in an epoch.

        Args:
            domains: The epoch's.
            plan: The epoch's.
            options: The constructor's arguments of :class:`Cdd`.
        """
        for k in range(plan.domains if plan.learns else 0):
            self._met[k + 1, domains.domain(k)] = True
        if not plan.across or options.confident_patches:
            self._met[0] = True
        else:
            if options.confident_distillation or domains.shared:
                # from the teacher, or from students that were all trained on them
                self._met[0, domains.confident] = True
            # what a student says of an image that it was trained on tells the global student of the image
            for k, part in enumerate(domains.parts):
                others = [h + 1 for h in range(plan.domains) if h != k]
                self._met[0, part] |= self._met[others][:, part].any(dim=0)
        # who has learned from a copy of an image, or from a tile of it, has seen it
        of_things = torch.zeros_like(self._met)
        for met, of_thing in zip(self._met, of_things, strict=True):
            of_thing[self.shows[met]] = True
        self._met = of_things[:, self.shows]

    def state_dict(self, alive: int, image_paths: list[str]) -> dict[str, Any]:
        """Return what a checkpoint needs to go on.

        Args:
            alive: How many of the domain students live on.
            image_paths: Paths of the training images.
        """
        states = [student.state_dict() for student in self.students[: min(alive, self._trained)]]
        state = {"met": self._met, "image_paths": image_paths, "domain_students": states}
        return state if self._folds is None else state | {"folds": self._folds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Keep what a checkpoint has until the fit makes the students; nothing where it has nothing."""
        self._resumed = dict(state)

    def release(self) -> None:
        """Let the students go when a fit ends; who was trained on what stays."""
        self.students = []
