# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Cleaning as an argument of a datamodule: the most suspicious training images are left out before a fit.

How images are judged is the business of the room ``cleaning/`` above this one, which says so by :func:`provide`
when the package is imported.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from anomalib.data import AnomalibDataset
from lightning.pytorch import Trainer
from numpy.typing import NDArray

from anomalib_cdd.teachers.backbones import PYPI_TEACHER
from anomalib_cdd.training.files import written_whole

from .manifest import check_names

logger = logging.getLogger(__name__)

FILE = "cleaned.csv"
DEFAULT_DEVIATIONS = 2.0
IMAGE_SIZE = (192, 192)
REFERENCE_IMAGES = 200
FEWEST_LEFT = 2
SMALLEST_SIDE = 32  # a grid of 4 x 4 patches


@dataclass(frozen=True)
class Cleaning:
    """Which images to leave out, and who judges them.

    Attributes:
        share: Leave out this share, the most suspicious, in [0, 1).
        deviations: Leave out what is above median + ``deviations`` x 1.4826 x MAD of the scores; 2 where neither this
            nor ``share`` is given.
        backbone: timm name of the teacher.
        layers: Names of its levels. ``None`` takes those at strides 8 and 16.
        pre_trained: Whether to load the teacher's weights.
        weights: A local weight file for the teacher.
        image_size: Height and width to resize to.
        reference_images: How many other images judge each image at most.
        seed: Seed of the sample of these.
    """

    share: float | None = None
    deviations: float | None = None
    backbone: str = PYPI_TEACHER
    layers: list[str] | None = None
    pre_trained: bool = True
    weights: str | None = None
    image_size: tuple[int, int] = IMAGE_SIZE
    reference_images: int = REFERENCE_IMAGES
    seed: int = 0

    @classmethod
    def of(cls, given: Cleaning | Mapping[str, Any] | None) -> Cleaning | None:
        """Take what a datamodule was given: anomalib's ``get_datamodule`` hands YAML over as it reads it.

        Raises:
            ValueError: If there is no such option, or its value is out of range.
        """
        if given is None or isinstance(given, Cleaning):
            return given
        if not isinstance(given, Mapping):
            msg = f"clean: give options such as {{'share': 0.1}}, or {{}} for the default rule, found {given!r}"
            raise ValueError(msg)  # noqa: TRY004  # as for every other option
        known = [option.name for option in fields(cls)]
        unknown = sorted(set(given) - set(known))
        if unknown:
            msg = f"clean: there is no {unknown[0]}; the options are {', '.join(known)}"
            raise ValueError(msg)
        return cls(**given)

    def __post_init__(self) -> None:
        """Check the rule, and make plain lists of YAML's; raises ``ValueError``."""
        try:
            sides = tuple(int(side) for side in self.image_size)
        except (TypeError, ValueError):
            sides = ()
        if isinstance(self.image_size, str) or len(sides) != 2 or min(sides) < SMALLEST_SIDE:
            msg = (
                f"clean: image_size has to be a height and a width of {SMALLEST_SIDE} or more, found {self.image_size}"
            )
            raise ValueError(msg)
        object.__setattr__(self, "image_size", sides)
        if isinstance(self.layers, str):
            msg = f"clean: layers has to be a list of names, found {self.layers!r}"
            raise ValueError(msg)  # noqa: TRY004  # as for every other option
        object.__setattr__(self, "layers", None if self.layers is None else [str(layer) for layer in self.layers])
        if self.share is not None and self.deviations is not None:
            msg = f"clean: share={self.share} and deviations={self.deviations} exclude each other: give one"
            raise ValueError(msg)
        for name, least, kind in (
            ("share", 0, Real),
            ("deviations", 0, Real),
            ("reference_images", 1, Integral),
            ("seed", 0, Integral),
        ):
            value: Any = getattr(self, name)
            if value is None and kind is Real:
                continue
            if isinstance(value, bool) or not isinstance(value, kind) or not float(value) >= least:
                number = "number" if kind is Real else "whole number"
                msg = f"clean: {name} has to be a {number} of {least} or more, found {value!r}"
                raise ValueError(msg)
        if self.share is not None and not 0 <= self.share < 1:
            msg = f"clean: share has to be at least 0 and below 1, found {self.share}"
            raise ValueError(msg)
        if self.deviations is not None and not self.deviations > 0:
            msg = f"clean: deviations has to be above 0, found {self.deviations}"
            raise ValueError(msg)

    @property
    def rule(self) -> str:
        """The rule in words."""
        if self.share is not None:
            return f"share {self.share}"
        return f"deviations {self.deviations or DEFAULT_DEVIATIONS}"


@dataclass(frozen=True)
class Cleaned:
    """What cleaning did to a training set of N images.

    Attributes:
        image_paths: N paths.
        scores: How suspicious each is, shape ``(N,)``.
        left_out: Which are no longer in the training set, shape ``(N,)``.
        is_noise: Which were injected, shape ``(N,)``; ``None`` where that is not known.
        seconds_saved: What judging took when its scores were kept; 0 where it was done now.
    """

    image_paths: list[str]
    scores: NDArray[np.float32]
    left_out: NDArray[np.bool_]
    is_noise: NDArray[np.bool_] | None = None
    seconds_saved: float = 0.0

    @property
    def kept_normals(self) -> float:
        """Share of the images that are no noise that is still there; NaN where the truth is not known."""
        return float("nan") if self.is_noise is None else float((~self.left_out[~self.is_noise]).mean())

    @property
    def noise_left(self) -> int | None:
        """How many injected images are still there, where that is known."""
        return None if self.is_noise is None else int((self.is_noise & ~self.left_out).sum())

    def write(self, path: Path, names: Mapping[str, str], excluded: Iterable[str] = ()) -> None:
        """Write what was left out, the most suspicious first, as a file that ``exclude`` reads.

        Args:
            path: CSV file with the columns ``image_path``, ``score`` and, where it is known, ``is_noise``.
            names: The name of each path in such a list.
            excluded: Names of images that had been left out before; they come last and have no score.

        Raises:
            ValueError: If a name is not valid UTF-8.
        """
        check_names(names[self.image_paths[row]] for row in np.flatnonzero(self.left_out))
        with written_whole(path) as draft, draft.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
            writer.writerow(["image_path", "score"] + ([] if self.is_noise is None else ["is_noise"]))
            for row in np.argsort(-self.scores, kind="stable"):
                if self.left_out[row]:
                    truth = [] if self.is_noise is None else [int(self.is_noise[row])]
                    writer.writerow([names[self.image_paths[row]], float(self.scores[row]), *truth])
            for name in sorted(excluded):
                writer.writerow([name, None] + ([] if self.is_noise is None else [None]))


class Judgement(NamedTuple):
    """Of N training images the scores and which to leave out, each ``(N,)``, and the seconds that kept scores saved."""

    scores: NDArray[np.float32]
    left_out: NDArray[np.bool_]
    seconds_saved: float = 0.0


Judge = Callable[[AnomalibDataset, Cleaning], Judgement]
_PROVIDED: dict[str, Judge] = {}


def provide(judge: Judge) -> None:
    """Say what scores the images of a data set and picks those to leave out."""
    _PROVIDED["judge"] = judge


def clean_dataset(dataset: AnomalibDataset, cleaning: Cleaning, trainer: Trainer | None = None) -> Cleaned:
    """Leave the most suspicious images out of a training set, in place; its ``left_out`` are their samples.

    Args:
        dataset: The training set. Where it has a column ``is_noise`` that marks any image, the truth is known.
        cleaning: How.
        trainer: That of the fit: on several devices the first one judges, the others read its file.

    Raises:
        ValueError: If too few images were left, or an image cannot be read.
    """
    waits = trainer is not None and not trainer.is_global_zero
    if trainer is not None and waits:
        trainer.strategy.barrier("cleaning")
    scores, left_out, saved = _PROVIDED["judge"](dataset, cleaning)
    if trainer is not None and not waits:
        trainer.strategy.barrier("cleaning")
    samples = dataset.samples
    if (~left_out).sum() < FEWEST_LEFT:
        msg = f"clean: {cleaning.rule} leaves {(~left_out).sum()} of {len(samples)} training images: leave out fewer"
        raise ValueError(msg)
    is_noise = samples["is_noise"].to_numpy(dtype=bool) if "is_noise" in samples else np.zeros(len(samples), bool)
    known = is_noise if is_noise.any() else None
    cleaned = Cleaned([str(path) for path in samples["image_path"]], scores, left_out, known, saved)
    dataset.samples = samples[~left_out]
    dataset.left_out = samples[left_out]  # type: ignore[attr-defined]  # what thresholds ask, see training/images.py
    _log(cleaned, cleaning)
    return cleaned


def _log(cleaned: Cleaned, cleaning: Cleaning) -> None:
    total, gone = len(cleaned.scores), int(cleaned.left_out.sum())
    logger.info("Cleaning (%s) left %d of %d training images out", cleaning.rule, gone, total)
    if cleaned.is_noise is not None:
        logger.info(
            "Of %d injected images %d went, %d are left; %.1f %% of the normal images are kept",
            cleaned.is_noise.sum(),
            int((cleaned.is_noise & cleaned.left_out).sum()),
            cleaned.noise_left,
            100 * cleaned.kept_normals,
        )
