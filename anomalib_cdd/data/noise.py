# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Noise injection: the only place where anomalies enter a training set.

SoftPatch's protocol (Jiang et al., NeurIPS 2022), the CDD paper's too: ``int(noise_ratio * N)`` anomalous test images,
drawn uniformly without replacement, are added to the N normal training images, as if they were normal.
"""

from __future__ import annotations

import logging
import math
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anomalib.data import AnomalibDataModule
from anomalib.data.utils import LabelName, ValSplitMode
from anomalib.data.utils.synthetic import SyntheticAnomalyDataset
from lightning.pytorch.trainer.states import TrainerFn

from anomalib_cdd.data.clean import FILE as CLEANED_FILE
from anomalib_cdd.data.clean import Cleaned, Cleaning, clean_dataset
from anomalib_cdd.data.layouts import broken_links, leave_out_hidden, plain_root, what_to_mend
from anomalib_cdd.data.manifest import (
    check_exclude_list,
    check_manifest,
    read_exclude_list,
    read_manifest,
    write_manifest,
)
from anomalib_cdd.training.read_alike import EIGHT_BITS, Reader, ReadsSamples, read_by, refuse_other_model
from anomalib_cdd.training.reading import white_level

if TYPE_CHECKING:
    from collections.abc import Iterable

    from anomalib.data import AnomalibDataset
    from lightning.pytorch.utilities.types import EVAL_DATALOADERS
    from numpy.typing import ArrayLike

logger = logging.getLogger(__name__)


def draw(names: Iterable[str], count: int, seed: int) -> list[str]:
    """Draw uniformly without replacement, the same on every machine and untouched by any global generator.

    Args:
        names: What to draw from; its order does not matter.
        count: How many, in [0, number of names].
        seed: Seed of the draw, at least 0. A smaller draw with the same seed is part of a larger one.

    Returns:
        The names drawn, in the order of the draw.
    """
    generator = random.Random(seed)  # noqa: S311 - the one generator whose numbers Python promises never to change
    return sorted(sorted(names), key=lambda _: generator.random())[:count]


def draw_split(
    normal: list[str], anomalous: list[str], ratio: float, seed: int, max_normal: int | None = None
) -> dict[str, bool]:
    """Draw a noisy training set.

    Args:
        normal: Names of the normal training images.
        anomalous: Names of the anomalous test images.
        ratio: Injected images per normal training image, at least 0.
        seed: Seed of the draw, at least 0.
        max_normal: Use that many normal images only; ``ratio`` then counts on those.

    Returns:
        Name of each training image, sorted, and whether the image is injected noise.

    Raises:
        ValueError: If there are too few images; the message says which value is possible.
    """
    if max_normal is not None:
        if max_normal > len(normal):
            msg = f"max_normal={max_normal}, but there are {len(normal)} normal training images: ask for fewer"
            raise ValueError(msg)
        normal = draw(normal, max_normal, seed)
    if ratio and not anomalous:
        msg = f"noise_ratio={ratio}, but the test set has no anomalous image to inject: set noise_ratio to 0"
        raise ValueError(msg)
    count = int(ratio * len(normal))
    if count > len(anomalous):
        possible = math.floor(1000 * len(anomalous) / len(normal)) / 1000
        msg = (
            f"noise_ratio={ratio} of {len(normal)} normal training images needs {count} anomalous test images, there "
            f"are {len(anomalous)}: noise_ratio can be at most {possible}"
        )
        raise ValueError(msg)
    if ratio and not count:
        logger.warning("noise_ratio=%s of %d normal training images is less than one image", ratio, len(normal))
    injected = draw(anomalous, count, seed)
    return dict(sorted({**dict.fromkeys(normal, False), **dict.fromkeys(injected, True)}.items()))


def join_as_normal(normal: pd.DataFrame, injected: pd.DataFrame) -> pd.DataFrame:
    """Join training rows so that nothing but ``is_noise`` and the image itself tells injected rows from normal ones.

    Args:
        normal: ``samples`` of normal training images, at least one row.
        injected: ``samples`` of anomalous images.

    Returns:
        Rows of both: an injected one is a normal one with another image, no row has a mask.
    """
    relabelled = normal.iloc[[0] * len(injected)].assign(image_path=injected["image_path"].to_numpy())
    samples = pd.concat([normal.assign(is_noise=False), relabelled.assign(is_noise=True)], ignore_index=True)
    # BTech names a mask of their own for normal training images, others "" or None for all
    samples["mask_path"] = "" if isinstance(normal["mask_path"].iloc[0], str) else None
    samples.attrs = dict(normal.attrs)
    return samples


def relative_names(paths: Iterable[str], root: str | Path | None) -> tuple[Path, dict[str, str]]:
    """Name images by their path relative to the root of the data set.

    Args:
        paths: Image paths, at least one.
        root: Root of the data set. The images' common folder takes its place where there is none or images lie outside.

    Returns:
        The folder that the names are relative to, and the name (forward slashes) of each path.
    """
    absolute = {path: Path(path).absolute() for path in paths}
    bases = [Path(root).resolve(), Path(root).absolute()] if root is not None else []
    bases.append(Path(os.path.commonpath([path.parent for path in absolute.values()])))
    base = next(base for base in bases if all(path.is_relative_to(base) for path in absolute.values()))
    return base, {name: path.relative_to(base).as_posix() for name, path in absolute.items()}


class NoiseInjection(AnomalibDataModule):
    """Mixin before an anomalib datamodule: ``class MVTecNoisy(NoiseInjection, MVTecAD)``.

    The injected images look like any other training image: their label is normal, their mask empty. The truth is in
    the column ``is_noise`` of ``train_data.samples`` and ``test_data.samples``, and in :attr:`injected_data`.
    The training set is the same with and without ``overlap``, so one trained model answers both settings. Once it is
    set up, ``image_names`` has the name of each image, by its path, in manifests and exclude lists, and ``excluded``
    the names that ``exclude`` has left out.

    A warning on validation: with ``val_split_mode="same_as_test"``, anomalib's usual default, and with
    ``"from_test"``, test labels enter the threshold and the normalisation of the scores (not the ranking, hence not
    AUROC). Use ``"none"`` where no label may be known.
    """

    def __init__(
        self,
        *,
        noise_ratio: float = 0.1,
        noise_seed: int = 0,
        overlap: bool = False,
        manifest: str | Path | None = None,
        max_normal: int | None = None,
        exclude: str | Path | None = None,
        clean: Cleaning | None = None,
        **kwargs: Any,
    ) -> None:
        """Take the arguments of the injection, and hand the others to the datamodule.

        Args:
            noise_ratio: Injected images per normal training image, at least 0. 0.1 is 9.1 % of the final training set.
            noise_seed: Seed of the draw, at least 0; the draw depends on nothing else.
            overlap: Whether the injected images stay in the test set.
            manifest: CSV file with the training set to use (``image_path`` relative to the root of the data set,
                ``is_noise``); ``noise_ratio`` and ``noise_seed`` draw nothing then. Every fit writes one next to its
                results, see :meth:`write_manifest`.
            max_normal: Use only that many normal training images, drawn with ``noise_seed``; ``noise_ratio`` counts on
                those.
            exclude: CSV file of images to leave out of the training set once it is drawn (``image_path`` relative to
                the root of the data set), such as the audit page writes it, or the ``review.json`` that it saves.
            clean: Leave the most suspicious images out of the training set once it is drawn and ``exclude`` is read;
                see :class:`Cleaning`. The manifest lists them still, ``cleaned.csv`` beside it says which they are.
            **kwargs: Arguments of the datamodule. Its ``seed`` is 0 where it is not given, as normal test images
                that are split off by chance would change the training set at every ``setup``.

        Raises:
            ValueError: If an argument is out of range, here or once ``setup`` knows the number of images.
        """
        if not (math.isfinite(noise_ratio) and noise_ratio >= 0):
            msg = f"noise_ratio has to be a finite number of at least 0, found {noise_ratio}"
            raise ValueError(msg)
        if noise_seed < 0:
            msg = f"noise_seed has to be at least 0, found {noise_seed}"
            raise ValueError(msg)
        if max_normal is not None and max_normal <= 0:
            msg = f"max_normal has to be at least 1, or None for all normal training images, found {max_normal}"
            raise ValueError(msg)
        if max_normal is not None and manifest is not None:
            msg = f"max_normal={max_normal} and manifest={manifest} exclude each other: the manifest lists the images"
            raise ValueError(msg)
        super().__init__(**kwargs)
        self.noise_ratio = noise_ratio
        self.noise_seed = noise_seed
        self.overlap = overlap
        self.manifest = manifest
        self.max_normal = max_normal
        self.exclude = exclude
        self.seed = 0 if self.seed is None else self.seed  # a split by chance would change with every setup
        self.clean = Cleaning.of(clean)
        self.cleaned: Cleaned | None = None
        self._injected_data: AnomalibDataset | None = None
        self._clean_data: AnomalibDataset | None = None
        self.image_names: dict[str, str] = {}
        self._split: dict[str, bool] = {}
        self.excluded: set[str] = set()
        if self.val_split_mode in {ValSplitMode.SAME_AS_TEST, ValSplitMode.FROM_TEST}:
            logger.warning(
                "val_split_mode=%s lets test labels into thresholds and normalisation; val_split_mode=none does not",
                self.val_split_mode.value,
            )

    @property
    def injected_data(self) -> AnomalibDataset:
        """The injected images with their true labels and masks: for measuring, never for training."""
        if self._injected_data is None:
            msg = "injected_data is known once setup() has been called"
            raise RuntimeError(msg)
        self._injected_data.augmentations = self.test_data.augmentations
        if isinstance(self.test_data, ReadsSamples):
            read_by(self._injected_data, self.test_data.reader)
        return self._injected_data

    def write_manifest(self, path: str | Path) -> None:
        """Write the training set as a file that ``manifest`` reads.

        Args:
            path: CSV file to write, whole or not at all.

        Raises:
            RuntimeError: If ``setup`` has not been called.
        """
        if not self._split:
            msg = "the manifest can be written once setup() has been called"
            raise RuntimeError(msg)
        write_manifest(path, self._split)

    def setup(self, stage: str | None = None) -> None:
        """Set up the data sets; a fit leaves its manifest as ``manifest.csv`` in the trainer's ``default_root_dir``.

        Args:
            stage: Current stage (fit, validate, test or predict).

        Raises:
            ValueError: If the data set cannot be read or does not have the images that are asked for.
        """
        super().setup(stage)
        trainer = self.trainer
        self._read_alike(getattr(trainer, "lightning_module", None), is_fit=stage == TrainerFn.FITTING)
        # a test reads no training image; an augmented set of a later call is the one that was cleaned
        if self.clean is not None and stage in {None, TrainerFn.FITTING} and self._clean_data is not self.train_data:
            self.cleaned = clean_dataset(self.train_data, self.clean, self.trainer)
            self._clean_data = self.train_data
        if (
            stage != TrainerFn.FITTING
            or trainer is None
            or not trainer.is_global_zero
            or getattr(trainer, "fast_dev_run", False)
        ):
            return
        path = Path(trainer.default_root_dir) / "manifest.csv"
        if self.manifest is None or path.resolve() != Path(self.manifest).resolve():
            self.write_manifest(path)
        if self.cleaned is not None:
            self.cleaned.write(path.with_name(CLEANED_FILE), self.image_names, self.excluded)

    def _read_alike(self, model: Any, *, is_fit: bool) -> None:
        """Let every subset read as the model does; without a model of this package, by what the training set uses."""
        subsets = [getattr(self, name) for name in ("train_data", "val_data", "test_data") if hasattr(self, name)]
        reader = getattr(model, "reader", None) or getattr(self.train_data, "reader", None)
        is_synthetic = any(isinstance(subset, SyntheticAnomalyDataset) for subset in subsets)
        if is_fit and reader is not None and self.clean is not None:
            # cleaning comes before a fit finds what its training set calls white
            reader.white = white_level(self.train_data.samples["image_path"])
        if reader is None or is_synthetic:
            white = white_level(self.train_data.samples["image_path"])
            reader = reader or Reader(white)
            if is_synthetic and white is not None and white > EIGHT_BITS:
                msg = "synthetic anomalies are drawn on images of eight bits, these have more: use another split mode"
                raise ValueError(msg)
        if is_fit:
            refuse_other_model(model, reader)
        for subset in subsets:
            read_by(subset, reader)

    def val_dataloader(self) -> EVAL_DATALOADERS:
        """Return the validation loader, or none at all with ``val_split_mode: none``, where anomalib's own fails."""
        return super().val_dataloader() if hasattr(self, "val_data") else []

    def _setup(self, _stage: str | None = None) -> None:
        try:
            with plain_root(self):
                super()._setup(_stage)  # type: ignore[safe-super]
        except (ValueError, TypeError) as error:  # pandas', when masks are not as many as anomalous images
            msg = f"{self.name} cannot be read: {error}. {what_to_mend(self, str(error))}"
            raise ValueError(msg) from error
        except FileNotFoundError as error:  # anomalib's does not say which
            broken = broken_links(getattr(self, "root", None))
            if not broken:
                raise
            msg = f"{self.name} cannot be read: {broken[0]} is a link to nowhere; mend or remove it"
            raise FileNotFoundError(msg) from error
        root: Any = getattr(self, "root", None)
        own_validation = [self.val_data] if hasattr(self, "val_data") else []
        for subset in (self.train_data, self.test_data, *own_validation) if root is not None else ():
            leave_out_hidden(subset, Path(root).resolve())

    def _create_test_split(self) -> None:
        # afterwards the test set is final, and validation not yet cut from it
        super()._create_test_split()
        train, test = self.train_data.samples, self.test_data.samples
        paths = [*train["image_path"], *test["image_path"]]
        root, name_of = relative_names(paths, getattr(self, "root", None))
        self.image_names = name_of
        normal = [name_of[path] for path in train["image_path"]]
        anomalous = (test["label_index"] == LabelName.ABNORMAL).tolist()
        test_names = dict(zip((name_of[path] for path in test["image_path"]), anomalous, strict=True))
        if twice := sorted(test_names.keys() & set(normal)):
            msg = (
                f"{len(twice)} images of {self.name} are in the training set and in the test set, such as {twice[0]}: "
                "name folders that do not lie within each other"
            )
            raise ValueError(msg)

        if isinstance(self.test_data, SyntheticAnomalyDataset) and (self.noise_ratio or self.manifest is not None):
            msg = "test_split_mode=synthetic leaves no real anomaly to inject: use from_dir, or noise_ratio 0"
            raise ValueError(msg)
        if self.manifest is not None:
            self._split = read_manifest(self.manifest)
            check_manifest(self.manifest, self._split, normal, test_names, root)
        else:
            pool = [name for name, is_anomalous in test_names.items() if is_anomalous]
            self._split = draw_split(normal, pool, self.noise_ratio, self.noise_seed, self.max_normal)
        self._inject([name in self._split for name in normal], [self._split.get(name, False) for name in test_names])
        if self.exclude is not None:
            excluded = read_exclude_list(self.exclude, root)
            check_exclude_list(self.exclude, excluded, [*normal, *test_names], root)
            self._leave_out(excluded, name_of)
            self.excluded = excluded & {*normal, *test_names}

    def _create_val_split(self) -> None:
        # anomalib's cannot draw from a test set without images
        if self.val_split_mode != ValSplitMode.FROM_TEST or len(self.test_data):
            super()._create_val_split()

    def _inject(self, kept: ArrayLike, drawn: ArrayLike) -> None:
        """Move (or copy) the drawn rows of the test set, as normal ones, to the kept rows of the training set."""
        # masks as arrays: a folder without a test set has none, and pandas takes an empty list for columns
        kept, drawn = np.array(kept, dtype=bool), np.array(drawn, dtype=bool)
        train, test = self.train_data.samples, self.test_data.samples.assign(is_noise=drawn)
        self.test_data.samples = test
        self._injected_data = self.test_data.subsample(drawn.nonzero()[0].tolist())
        self.train_data.samples = join_as_normal(train[kept], test[drawn])
        if not self.overlap:
            self.test_data.samples = test[~drawn]
        self._log_counts()

    def _leave_out(self, excluded: set[str], name_of: dict[str, str]) -> None:
        """Drop images, injected ones too, from the training set alone: the test set and what was injected stay."""
        drawn = len(self._split)
        self._split = {name: is_noise for name, is_noise in self._split.items() if name not in excluded}
        if all(self._split.values()):
            msg = f"exclude list {self.exclude}: it leaves no normal training image"
            raise ValueError(msg)
        train = self.train_data.samples
        self.train_data.samples = train[[name_of[path] in self._split for path in train["image_path"]]]
        logger.info(
            "Left out of the training set by %s: %d of %d images", self.exclude, drawn - len(self._split), drawn
        )

    def _log_counts(self) -> None:
        total, injected = len(self._split), sum(self._split.values())
        test_labels = self.test_data.samples["label_index"]
        anomalous = int((test_labels == LabelName.ABNORMAL).sum())
        # of a folder into which nothing was injected nobody knows what is in it
        training = f"{total} images, none injected"
        if injected:
            share = f"{100 * injected / total:.1f} % of {total}"
            training = f"{total - injected} normal + {injected} injected anomalous images ({share})"
        normal = len(test_labels) - anomalous
        logger.info("Training: %s. Test: %d normal, %d anomalous images.", training, normal, anomalous)
        if injected and not anomalous:
            logger.warning("Every anomalous test image was injected: the test set has none left to measure on.")
