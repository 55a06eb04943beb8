# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Folders of one's own images: which files are images, and which mask is whose.

In place of anomalib's listing, which takes hidden files for images, refuses names outside ASCII, and pairs images with
masks by their order.
"""

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
from anomalib.data import AnomalibDataset
from anomalib.data.utils import DirType, LabelName, Split
from anomalib.data.utils.path import resolve_path

from anomalib_cdd.training.image_files import image_files

logger = logging.getLogger(__name__)

Folders = str | Path | Sequence[str | Path] | None
PAIRS_SHOWN = 5


class FolderImages(AnomalibDataset):
    """Images of one split.

    Args:
        name: Of the data set.
        samples: What :func:`folder_samples` lists.
        split: ``Split.TRAIN`` or ``Split.TEST``.
    """

    def __init__(self, name: str, samples: pd.DataFrame, split: Split) -> None:
        super().__init__()
        self._name = name
        self.split = split
        self.samples = samples[samples["split"] == split.value].reset_index(drop=True)

    @property
    def name(self) -> str:
        """Name of the data set."""
        return self._name


def folder_samples(
    root: str | Path | None,
    normal: Folders,
    abnormal: Folders = None,
    normal_test: Folders = None,
    masks: Folders = None,
    extensions: Sequence[str] | None = None,
) -> pd.DataFrame:
    """List the images of folders with labels, masks and splits.

    Args:
        root: What the folders are relative to; the working directory if not given.
        normal: Normal images, for training.
        abnormal: Anomalous images, for testing. May be empty.
        normal_test: Normal images for testing.
        masks: Masks of the anomalous images.
        extensions: Endings of image files; torchvision's by default.

    Returns:
        ``samples`` as anomalib's data sets have them.

    Raises:
        FileNotFoundError: If a folder does not exist.
        ValueError: If there is no normal image, an image is to be tested on as normal and as anomalous, or masks and
            anomalous images are no pairs; the message shows them.
    """
    rows = []
    for label, folders in ((DirType.NORMAL, normal), (DirType.ABNORMAL, abnormal), (DirType.NORMAL_TEST, normal_test)):
        images = {folder: image_files(folder, extensions) for folder in _resolved(folders, root)}
        for folder in (folder for folder, files in images.items() if not files):
            if label == DirType.NORMAL:
                msg = f"there is no image in {folder}"
                raise ValueError(msg)
            logger.warning("There is no image in %s (%s)", folder, label.value)
        mask_of = {}
        if label == DirType.ABNORMAL and masks is not None and any(images.values()):
            found = {folder: image_files(folder, extensions) for folder in _resolved(masks, root)}
            mask_of = pair_masks(images, found)
        is_bad = label == DirType.ABNORMAL
        rows += [
            {
                "image_path": str(image),
                "label": label.value,
                "label_index": int(LabelName.ABNORMAL if is_bad else LabelName.NORMAL),
                "mask_path": str(mask_of.get(image, "")),
                "split": (Split.TRAIN if label == DirType.NORMAL else Split.TEST).value,
            }
            for files in images.values()
            for image in files
        ]
    # of folders within each other both list an image
    samples = pd.DataFrame(rows).drop_duplicates(["image_path", "label"])
    of_test = samples[samples["split"] == Split.TEST.value]
    if twice := of_test.loc[of_test.duplicated("image_path"), "image_path"].tolist():
        msg = (
            f"{len(twice)} images are in abnormal_dir and in normal_test_dir, such as {twice[0]}: name folders that do "
            "not lie within each other"
        )
        raise ValueError(msg)
    samples = samples.sort_values("image_path", ignore_index=True)
    samples.attrs["task"] = "segmentation" if (samples["mask_path"] != "").any() else "classification"
    return samples


def pair_masks(images: dict[Path, list[Path]], masks: dict[Path, list[Path]]) -> dict[Path, Path]:
    """Find the mask of each image.

    By name (``7.png`` and ``7.png``, ``7_mask.png`` or ``mask_7.png``), in a subfolder of the same name where there are
    several; else by number (``7.png`` and ``007.png``).

    Args:
        images: Images by folder.
        masks: Masks by folder; as many folders as of images belong to them one by one.

    Returns:
        The mask of each image.

    Raises:
        ValueError: If an image has none or two share one; the message shows the pairs.
    """
    apart = len(images) == len(masks)
    together = Candidates((home, mask) for home, files in masks.items() for mask in files)
    mask_of: dict[Path, Path] = {}
    missing = []
    for (folder, files), home in zip(images.items(), list(masks) if apart else [None] * len(images), strict=True):
        candidates = together if home is None else Candidates((home, mask) for mask in masks[home])
        for image in files:
            mask = candidates.mask_of(image.relative_to(folder))
            if mask is None:
                missing.append(image)
            else:
                mask_of[image] = mask
    _check_pairs(mask_of, missing, [mask for files in masks.values() for mask in files])
    return mask_of


class Candidates:
    """Masks by what an image may be called for which they are.

    Args:
        masks: Each with the folder that it was found in.
    """

    def __init__(self, masks: Iterable[tuple[Path, Path]]) -> None:
        self._by_name: dict[str, list[tuple[Path, Path]]] = defaultdict(list)
        self._by_number: dict[tuple[int, ...], list[tuple[Path, Path]]] = defaultdict(list)
        for home, mask in masks:
            for name in _parts(mask.stem):
                self._by_name[name].append((home, mask))
            self._by_number[_numbers(mask)].append((home, mask))

    def mask_of(self, image: Path) -> Path | None:
        """Return the one mask whose name or number is that of an image, relative to its folder; ``None`` if none is."""
        numbers = _numbers(image)
        for found in (self._by_name.get(image.stem, []), self._by_number.get(numbers, []) if numbers else []):
            beside = [mask for home, mask in found if mask.relative_to(home).parent == image.parent]
            pool = beside or [mask for _, mask in found]
            # 1.png: 1_mask.png rather than 2_1_mask.png
            shortest = min((len(mask.stem) for mask in pool), default=0)
            closest = [mask for mask in pool if len(mask.stem) == shortest]
            if len(closest) == 1:
                return closest[0]
        return None


def _parts(stem: str) -> set[str]:
    """Return what stands in a name between its beginning, its end and what separates words."""
    separators = [place for place, letter in enumerate(stem) if re.fullmatch(r"[\W_]", letter)]
    starts, ends = [0, *(place + 1 for place in separators)], [*separators, len(stem)]
    return {stem[start:end] for start in starts for end in ends if start < end}


def _numbers(path: Path) -> tuple[int, ...]:
    return tuple(int(digits) for digits in re.findall(r"[0-9]+", path.stem))


def _check_pairs(mask_of: dict[Path, Path], missing: list[Path], masks: list[Path]) -> None:
    used = Counter(mask_of.values())
    left = [mask for mask in masks if mask not in used]
    shared = [image for image, mask in mask_of.items() if used[mask] > 1]
    if missing or shared:
        pairs = _some([f"{image.name} - {mask.name}" for image, mask in mask_of.items()])
        problem = (
            f"these anomalous images have no mask: {_some(missing)}"
            if missing
            else f"these anomalous images share one: {_some(shared)}"
        )
        msg = (
            f"{problem}. Masks left: {_some([mask.name for mask in left])}. Pairs by name or number: {pairs}. Name "
            "each mask after its image, or leave mask_dir out"
        )
        raise ValueError(msg)
    if left:
        logger.warning("%d masks belong to no image: %s", len(left), _some(left))


def _some(things: Sequence[object]) -> str:
    shown = ", ".join(map(str, things[:PAIRS_SHOWN]))
    return (shown + (f" and {len(things) - PAIRS_SHOWN} more" if len(things) > PAIRS_SHOWN else "")) or "none"


def _resolved(folders: Folders, root: str | Path | None) -> list[Path]:
    if folders is None:
        return []
    given = [folders] if isinstance(folders, str | Path) else list(folders)
    return [resolve_path(folder, root) for folder in given]
