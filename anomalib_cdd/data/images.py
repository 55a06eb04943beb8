# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Images as they are: sixteen-bit grey values keep their scale, and what cannot be used is an error with its path.

anomalib reads every image by ``convert("RGB")``, which clips sixteen bits to white, and lets a mask of another size
than its image pass. :func:`check_images` turns any of its data sets into one that does neither.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from anomalib.data import AnomalibDataset
from PIL import Image
from torchvision.tv_tensors import Image as ImageTensor

if TYPE_CHECKING:
    from anomalib.data.dataclasses import DatasetItem

WHITE = 65535  # the largest sixteen-bit grey value


class CheckedImages(AnomalibDataset):
    """Mixin before an anomalib data set; :func:`check_images` puts it there."""

    def __getitem__(self, index: int) -> DatasetItem:
        """Read one item.

        Args:
            index: Row of ``samples``.

        Returns:
            The item as the data set itself returns it; images with more than eight bits are scaled by 1 / 65535.

        Raises:
            ValueError: If the image or mask cannot be read, or their sizes differ; the message names the file.
        """
        sample = self.samples.iloc[index]
        try:
            with Image.open(sample.image_path) as image:
                _check_mask_size(sample, image.size)
                return self._deep_item(index, image) if image.mode[0] in "IF" else super().__getitem__(index)
        except (OSError, SyntaxError) as error:
            msg = f"cannot read the image {sample.image_path} or its mask ({error}); replace or remove it"
            raise ValueError(msg) from error

    def _deep_item(self, index: int, image: Image.Image) -> DatasetItem:
        pixels = read_deep_grey(image)
        plain = copy.copy(self)
        plain.augmentations = None  # these have to see the right grey values
        item = super(CheckedImages, plain).__getitem__(index)
        if self.augmentations and item.gt_mask is not None:
            pixels, item.gt_mask = self.augmentations(pixels, item.gt_mask)
        elif self.augmentations:
            pixels = self.augmentations(pixels)
        item.image = pixels
        return item

    def __reduce_ex__(self, protocol: Any) -> tuple:
        """Copy and pickle by the data set's own class, as the checked class has no importable name."""
        return _empty, (type(self).__bases__[1],), self.__dict__


def check_images(dataset: AnomalibDataset) -> None:
    """Make a data set read its images by :class:`CheckedImages`, in place.

    Args:
        dataset: Any of anomalib's image data sets.
    """
    if not isinstance(dataset, CheckedImages):
        dataset.__class__ = _checked_class(type(dataset))


def read_deep_grey(image: Image.Image) -> ImageTensor:
    """Read a grey image of sixteen bits.

    Args:
        image: PIL image of mode ``I;16*`` or ``I``, with values in [0, 65535].

    Returns:
        Float image of shape (3, H, W) in [0, 1].

    Raises:
        ValueError: If the values are not in [0, 65535] or not integers: their scale is not known.
    """
    values = np.asarray(image)
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > WHITE:
        path = getattr(image, "filename", "")
        msg = (
            f"the image {path} has {values.dtype} values in [{values.min()}, {values.max()}]: save it with 8 or 16 bits"
        )
        raise ValueError(msg)
    grey = torch.from_numpy(values.astype(np.float32) / WHITE)
    return ImageTensor(grey.expand(3, -1, -1).contiguous())


def _check_mask_size(sample: Any, size: tuple[int, int]) -> None:
    if sample.label_index != 1:
        return
    masks = [sample.mask_path] if isinstance(sample.mask_path, str) else sample.mask_path
    for path in filter(None, masks or []):
        with Image.open(path) as mask:
            if mask.size != size:
                msg = f"the mask {path} is {mask.size} wide and high, its image {sample.image_path} is {size}"
                raise ValueError(msg)


@cache
def _checked_class(base: type[AnomalibDataset]) -> type[AnomalibDataset]:
    return type(base.__name__, (CheckedImages, base), {"__module__": base.__module__})


def _empty(base: type[AnomalibDataset]) -> AnomalibDataset:
    return object.__new__(_checked_class(base))
