# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Data sets that read as the model was trained: whichever data set it is, and whoever asks.

A :class:`Reader` knows what is white to a model. :func:`read_by` lets anomalib's data sets read by it, in place, and
:class:`ReadAlike`, a callback of every model of this package, does so for every loader of a trainer.
"""

import logging
import os
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from anomalib import TaskType
from anomalib.data import AnomalibDataset, ImageItem, PredictDataset
from anomalib.data.datasets.image.mvtec_loco import MVTecLOCODataset
from anomalib.data.utils import LabelName
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset
from torchvision.tv_tensors import Image as ImageTensor
from torchvision.tv_tensors import Mask

from .compat import datasets_of
from .image_files import without_hidden
from .reading import WHITE, read_image, read_mask, white_level

logger = logging.getLogger(__name__)

EIGHT_BITS = 255


@dataclass
class Reader:
    """Reads images as a training set was read.

    Attributes:
        white: What became 1 in its images of more than eight bits; ``None`` if it had none.
    """

    white: int | None = None

    def read(self, path: str | Path) -> ImageTensor:
        """Read an image; see :func:`anomalib_cdd.training.reading.read_image`."""
        return read_image(path, self.white or WHITE)


class ReadsSamples(AnomalibDataset):
    """Mixin before an anomalib data set; :func:`read_by` puts it there."""

    reader: Reader

    def __getitem__(self, index: int) -> ImageItem:
        """Read one item.

        Args:
            index: Row of ``samples``.

        Returns:
            The item that anomalib's own data set would return, but for how its files are read; always three channels.

        Raises:
            ValueError: If the image or mask cannot be read, or their sizes differ; the message names the file.
        """
        sample = self.samples.iloc[index]
        image, mask = self.reader.read(sample.image_path), None
        masks = [sample.mask_path] if isinstance(sample.mask_path, str) else list(sample.mask_path or [])
        if self.task == TaskType.SEGMENTATION:
            empty = Mask(torch.zeros(image.shape[-2:], dtype=torch.uint8))
            if sample.label_index == LabelName.NORMAL:
                mask = empty
            elif sample.label_index == LabelName.ABNORMAL:
                mask = _union(masks, sample.image_path, image)
            if self.augmentations:
                image, augmented = self.augmentations(image, empty if mask is None else mask)
                mask = None if mask is None else augmented
        elif self.augmentations:
            image = self.augmentations(image)
        return ImageItem(
            image=three_channels(image),
            gt_mask=mask,
            gt_label=None if sample.label_index == LabelName.UNKNOWN else torch.tensor(int(sample.label_index)),
            image_path=sample.image_path,
            mask_path=masks[0] if masks else None,
        )

    def __reduce_ex__(self, protocol: Any) -> tuple:
        """Copy and pickle by the data set's own class, as this one has no importable name."""
        return _empty, (type(self).__bases__[1],), self.__dict__


class ReadsFiles(PredictDataset):
    """Mixin before anomalib's data set of files without labels; :func:`read_by` puts it there."""

    reader: Reader

    def __getitem__(self, index: int) -> ImageItem:
        """Read one item; errors as of :class:`ReadsSamples`."""
        path = self.image_filenames[index]
        image = self.reader.read(path)
        return ImageItem(image=three_channels(self.transform(image) if self.transform else image), image_path=str(path))

    def __reduce_ex__(self, protocol: Any) -> tuple:
        """Copy and pickle by the data set's own class, as this one has no importable name."""
        return _empty, (type(self).__bases__[1],), self.__dict__


def read_by(dataset: Any, reader: Reader, is_whole: bool = True) -> None:
    """Make a data set read its files by ``reader`` from now on, in place.

    Args:
        dataset: anomalib's data set of images, with labels or without. One of another kind, or that says itself how
            an item is read, stays as it is.
        reader: Whose white changes with it.
        is_whole: Whether all of its items are read. If not, somebody counts on their places, hidden files included.
    """
    if not isinstance(dataset, ReadsSamples | ReadsFiles):
        if not _has_known_items(dataset):
            return
        if is_whole and isinstance(dataset, PredictDataset):
            _leave_out_hidden(dataset)
        kind: Any = type(dataset)
        dataset.__class__ = _reading_class(kind)
    dataset.reader = reader


def refuse_other_model(model: Any, reader: Reader) -> None:  # any model, or none
    """Refuse a model that would not predict as it is trained, or has not been trained as it would be read.

    Raises:
        ValueError: If the images have more than eight bits and the model is not of this package: anomalib reads them
            as white.
    """
    if reader.white is not None and reader.white > EIGHT_BITS and not hasattr(model, "reader"):
        msg = (
            f"The images have more than eight bits, which anomalib reads as white when {type(model).__name__} predicts:"
            " save them with eight bits, or take a model of this package"
        )
        raise ValueError(msg)


def as_trained(model: Any, dataset: AnomalibDataset) -> None:  # any anomalib model
    """Make a data set read its images as the model's training read them.

    Raises:
        ValueError: See :func:`refuse_other_model`.
    """
    if hasattr(model, "reader"):
        read_by(dataset, model.reader)
    elif isinstance(dataset, ReadsSamples):
        refuse_other_model(model, dataset.reader)


def three_channels(image: Tensor) -> Tensor:
    """Give a grey image, such as ``v2.Grayscale`` leaves it, the three channels that a teacher takes."""
    return image.expand(3, -1, -1) if image.shape[0] == 1 else image


class ReadAlike(Callback):
    """Lets every loader of a trainer read as the model was trained; a fit finds what its training set calls white."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Turn the trainer's data sets into such that read by the model's reader.

        A checkpoint is loaded after this, and tells the reader what was white.
        """
        model: Any = pl_module
        given = datasets_of(trainer, stage)
        datasets = [_beneath(dataset) for dataset in given]
        if stage == "fit":
            training = [
                data for data in chain(*datasets[:1]) if isinstance(data, AnomalibDataset) and _has_known_items(data)
            ]
            # a part of a training set has the white of the whole, which a model of another part has too
            readers = [data.reader for data in training if isinstance(data, ReadsSamples)]
            whites = [reader.white for reader in readers if reader is not model.reader and reader.white is not None]
            paths = [path for data in training for path in data.samples["image_path"]]
            model.reader.white = max(whites) if whites else white_level(paths)
        for dataset in chain(*datasets):
            read_by(dataset, model.reader, is_whole=any(dataset is each for each in given))


def _union(masks: list[str], image_path: str, image: Tensor) -> Mask:
    """Read the masks of one image: MVTec LOCO has several."""
    if not any(masks):
        msg = f"the anomalous image {image_path} has no mask"
        raise ValueError(msg)
    read = []
    for path in masks:
        mask = read_mask(path)
        if mask.shape != image.shape[-2:]:
            sizes = tuple(mask.shape[::-1]), tuple(image.shape[:0:-1])
            msg = f"the mask {path} is {sizes[0]} wide and high, its image {image_path} is {sizes[1]}"
            raise ValueError(msg)
        read.append(mask)
    return Mask(torch.stack(read).amax(dim=0))


def _beneath(dataset: Any) -> list[Any]:
    """Return the data sets that torch's own wrappers take their items from."""
    if isinstance(dataset, Subset):
        return _beneath(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        return [each for one in dataset.datasets for each in _beneath(one)]
    return [dataset]


def _has_known_items(dataset: Any) -> bool:
    """Return whether the items are read as anomalib's own are."""
    item = getattr(type(dataset), "__getitem__", None)
    known = (AnomalibDataset, MVTecLOCODataset, PredictDataset, ReadsSamples, ReadsFiles)
    return any(item is kind.__getitem__ for kind in known)


def _leave_out_hidden(dataset: PredictDataset) -> None:
    files = [Path(path) for path in dataset.image_filenames]
    if len(files) < 2:
        return  # a file that was asked for
    visible = without_hidden(files, Path(os.path.commonpath([path.parent for path in files])))
    if visible and len(visible) < len(files):
        logger.warning("%d hidden files left out of the %d to predict", len(files) - len(visible), len(files))
        dataset.image_filenames = visible


@cache
def _reading_class(base: type) -> type:
    mixin = ReadsFiles if issubclass(base, PredictDataset) else ReadsSamples
    return type(base.__name__, (mixin, base), {"__module__": base.__module__})


def _empty(base: type) -> Any:
    return object.__new__(_reading_class(base))
