# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""ELPV: electroluminescence images of 2,624 solar cells, real data that installs from PyPI with its images.

Buerhop-Lutz et al., "A Benchmark for Visual Identification of Defective Solar Cells in Electroluminescence Imagery",
EU PVSEC 2018; https://github.com/zae-bayern/elpv-dataset, CC BY-NC-SA 4.0. 300 x 300 grey pixels, no masks.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Literal

import pandas as pd
from anomalib.data import AnomalibDataModule, AnomalibDataset
from anomalib.data.utils import LabelName, Split, TestSplitMode, ValSplitMode
from lightning.pytorch.utilities.types import EVAL_DATALOADERS
from torchvision.transforms.v2 import Transform

from anomalib_cdd.data.noise import NoiseInjection, draw

LABELS = ["path", "probability", "cell"]
Cell = Literal["mono", "poly", "all"]
Ambiguous = Literal["drop", "normal", "anomalous"]


def elpv_folder() -> Path:
    """Find the images that the package ``elpv-dataset`` installs, without importing it.

    Returns:
        Folder with ``labels.csv`` and ``images``.

    Raises:
        ModuleNotFoundError: If the package is not installed.
    """
    spec = find_spec("elpv_dataset")
    if spec is None or not spec.submodule_search_locations:
        msg = "the solar cell images are not installed: pip install elpv-dataset (part of this package's extra `demo`)"
        raise ModuleNotFoundError(msg)
    return Path(spec.submodule_search_locations[0]).resolve() / "data"


def make_elpv_dataset(
    root: str | Path,
    cell: Cell = "mono",
    ambiguous: Ambiguous = "drop",
    train_ratio: float = 0.5,
    split_seed: int = 0,
) -> pd.DataFrame:
    """List the images with their labels and a seeded split.

    Args:
        root: Folder with ``labels.csv`` (path, defect probability, cell kind) and the images.
        cell: Kind of cells, monocrystalline, polycrystalline or both.
        ambiguous: What becomes of cells with defect probability 1/3 or 2/3. 0 is normal and 1 anomalous.
        train_ratio: Share of the normal images that are for training, in (0, 1).
        split_seed: Seed of that choice, at least 0.

    Returns:
        ``samples`` of both splits: ``int(train_ratio * N)`` of N normal images are for training, the other images
        are for testing.

    Raises:
        ValueError: If an argument is out of range, or ``labels.csv`` is not such a file; the message names it.
    """
    if cell not in {"mono", "poly", "all"}:
        msg = f"cell has to be mono, poly or all, found {cell!r}"
        raise ValueError(msg)
    if ambiguous not in {"drop", "normal", "anomalous"}:
        msg = f"ambiguous has to be drop, normal or anomalous, found {ambiguous!r}"
        raise ValueError(msg)
    if not 0 < train_ratio < 1:
        msg = f"train_ratio has to be greater than 0 and less than 1, found {train_ratio}"
        raise ValueError(msg)
    if split_seed < 0:
        msg = f"split_seed has to be at least 0, found {split_seed}"
        raise ValueError(msg)

    labels = _read_labels(Path(root) / "labels.csv")
    if cell != "all":
        labels = labels[labels["cell"] == cell]
    is_sure = labels["probability"].isin([0, 1])
    if ambiguous == "drop":
        labels = labels[is_sure]
    is_normal = (labels["probability"] == 0) | (~is_sure.loc[labels.index] & (ambiguous == "normal"))

    normal = labels.loc[is_normal, "path"].tolist()
    train = set(draw(normal, int(train_ratio * len(normal)), split_seed))
    samples = pd.DataFrame(
        {
            "image_path": [str(Path(root) / path) for path in labels["path"]],
            "label": ["normal" if normal else "anomalous" for normal in is_normal],
            "label_index": [int(LabelName.NORMAL if normal else LabelName.ABNORMAL) for normal in is_normal],
            "mask_path": "",
            "split": [Split.TRAIN.value if path in train else Split.TEST.value for path in labels["path"]],
        }
    )
    samples.attrs["task"] = "classification"
    return samples


def _read_labels(path: Path) -> pd.DataFrame:
    """Read lines of path, defect probability and kind of cell."""
    try:
        rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        msg = f"the labels {path} cannot be read ({error})"
        raise ValueError(msg) from error
    for number, row in enumerate(rows, start=1):
        is_row = len(row) == len(LABELS) and row[2] in {"mono", "poly"} and _is_probability(row[1])
        if not (is_row and _is_below(row[0])):
            msg = f"the labels {path}: row {number} is not '<image> <probability> <mono|poly>': {' '.join(row)[:80]!r}"
            raise ValueError(msg)
    if not rows:
        msg = f"the labels {path}: they list no image"
        raise ValueError(msg)
    return pd.DataFrame(rows, columns=LABELS).astype({"probability": float})


def _is_below(name: str) -> bool:
    """Return whether a path stays in the folder that it is relative to."""
    return "\0" not in name and not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts


def _is_probability(text: str) -> bool:
    try:
        return 0 <= float(text) <= 1
    except ValueError:
        return False


class ElpvDataset(AnomalibDataset):
    """Solar cells of one split.

    Args:
        root: Folder with ``labels.csv`` and ``images``; those of the package ``elpv-dataset`` by default.
        cell: Kind of cells, monocrystalline, polycrystalline or both.
        ambiguous: What becomes of cells with defect probability 1/3 or 2/3. 0 is normal and 1 anomalous.
        train_ratio: Share of the normal images that are for training, in (0, 1).
        split_seed: Seed of that choice, at least 0.
        split: ``"train"``, ``"test"``, or both where it is not given.
        augmentations: Augmentations of the images.
    """

    def __init__(
        self,
        *,
        root: str | Path | None = None,
        cell: Cell = "mono",
        ambiguous: Ambiguous = "drop",
        train_ratio: float = 0.5,
        split_seed: int = 0,
        split: str | Split | None = None,
        augmentations: Transform | None = None,
    ) -> None:
        super().__init__(augmentations=augmentations)
        root = elpv_folder() if root is None else Path(root).resolve()
        samples = make_elpv_dataset(root, cell, ambiguous, train_ratio, split_seed)
        self.category = cell
        self.split = split
        self.samples = samples if split is None else samples[samples["split"] == Split(split).value]


class Elpv(AnomalibDataModule):
    """Solar cells: normal ones for training, the other normal ones and all defective ones for testing.

    Args:
        root: Folder with ``labels.csv`` and ``images``; those of the package ``elpv-dataset`` by default.
        cell: Kind of cells, monocrystalline, polycrystalline or both. It is the ``category`` of the results.
        ambiguous: What becomes of cells with defect probability 1/3 or 2/3. 0 is normal and 1 anomalous.
        train_ratio: Share of the normal images that are for training, in (0, 1).
        split_seed: Seed of that choice, at least 0.
        train_batch_size: Training batch size.
        eval_batch_size: Validation and test batch size.
        num_workers: Number of data loading processes.
        train_augmentations: Augmentations of the training images.
        val_augmentations: Augmentations of the validation images.
        test_augmentations: Augmentations of the test images.
        augmentations: Augmentations where those of the stage are not given.
        test_split_mode: Where test images come from.
        test_split_ratio: Not used by ``from_dir``.
        val_split_mode: Where validation images come from.
        val_split_ratio: Share of images that ``from_train`` and ``from_test`` take for validation.
        seed: Seed of the validation split.

    Raises:
        ModuleNotFoundError: If ``root`` is not given and the package ``elpv-dataset`` is not installed.
    """

    def __init__(
        self,
        *,
        root: str | Path | None = None,
        cell: Cell = "mono",
        ambiguous: Ambiguous = "drop",
        train_ratio: float = 0.5,
        split_seed: int = 0,
        train_batch_size: int = 32,
        eval_batch_size: int = 32,
        num_workers: int = 8,
        train_augmentations: Transform | None = None,
        val_augmentations: Transform | None = None,
        test_augmentations: Transform | None = None,
        augmentations: Transform | None = None,
        test_split_mode: TestSplitMode | str = TestSplitMode.FROM_DIR,
        test_split_ratio: float = 0.2,
        val_split_mode: ValSplitMode | str = ValSplitMode.SAME_AS_TEST,
        val_split_ratio: float = 0.5,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            train_batch_size=train_batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            train_augmentations=train_augmentations,
            val_augmentations=val_augmentations,
            test_augmentations=test_augmentations,
            augmentations=augmentations,
            test_split_mode=test_split_mode,
            test_split_ratio=test_split_ratio,
            val_split_mode=val_split_mode,
            val_split_ratio=val_split_ratio,
            seed=seed,
        )
        self.root = elpv_folder() if root is None else Path(root).resolve()
        self.category = cell
        self.cell = cell
        self.ambiguous = ambiguous
        self.train_ratio = train_ratio
        self.split_seed = split_seed

    def val_dataloader(self) -> EVAL_DATALOADERS:
        """Return the validation loader, or none at all with ``val_split_mode: none``, where anomalib's own fails."""
        return super().val_dataloader() if hasattr(self, "val_data") else []

    def _setup(self, _stage: str | None = None) -> None:
        self.train_data = self._dataset(Split.TRAIN)
        self.test_data = self._dataset(Split.TEST)

    def _dataset(self, split: Split) -> ElpvDataset:
        return ElpvDataset(
            root=self.root,
            cell=self.cell,
            ambiguous=self.ambiguous,
            train_ratio=self.train_ratio,
            split_seed=self.split_seed,
            split=split,
        )


class ElpvNoisy(NoiseInjection, Elpv):
    """Solar cells with a noisy training set."""
