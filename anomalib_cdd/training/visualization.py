# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Heat maps where they belong on images that the model crops.

anomalib draws an image as it lies on disk and stretches the map of its cropped middle over the whole of it. Here the
map is given the margins back that the crop took, and the image is read as the model reads it.
"""

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from anomalib.data.transforms import ExportableCenterCrop
from anomalib.utils.path import generate_output_filename
from anomalib.visualization import ImageVisualizer
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import CenterCrop, Compose, Resize
from torchvision.transforms.v2.functional import to_dtype, to_image

from .reading import read_for_display

if TYPE_CHECKING:
    from anomalib.data import ImageBatch
    from anomalib.models.components import AnomalibModule
    from lightning.pytorch import Trainer


# anomaly maps are smooth: at this longest side, two bytes a pixel, those of 50,000 images fit into memory
MAP_SIDE = 64


class Margins(NamedTuple):
    """Pixels that a centre crop takes from each side, in the order of ``torch.nn.functional.pad``."""

    left: int = 0
    right: int = 0
    top: int = 0
    bottom: int = 0


def crop_margins(transform: Any, image_size: tuple[int, int] | None = None) -> Margins:
    """Return what a model's pre-processing crops after its resize; nothing where it does not, see :func:`crop_of`."""
    return crop_of(transform, image_size)[0]


def crop_of(transform: Any, image_size: tuple[int, int] | None = None) -> tuple[Margins, tuple[int, ...]]:
    """Return what a model's pre-processing crops after its resize, and the height and width of what it crops.

    Args:
        transform: The transform of a pre-processor, whatever a model has.
        image_size: Height and width of the image; with it alone a resize of one side is known, and a crop without one.
    """
    steps = transform.transforms if isinstance(transform, Compose) else [transform]
    size: tuple[int, ...] = ()
    for step in steps:
        if isinstance(step, Resize) and step.size is not None and len(step.size) == 2:
            size = tuple(step.size)
        elif isinstance(step, Resize) and image_size is not None:
            size = tuple(step(torch.empty(1, *image_size, device="meta")).shape[-2:])
        elif isinstance(step, CenterCrop | ExportableCenterCrop) and (size or image_size):
            height, width = step.size
            size = size or tuple(image_size or ())
            top, left = round((size[0] - height) / 2), round((size[1] - width) / 2)
            return Margins(left, size[1] - width - left, top, size[0] - height - top), size
    return Margins(), size


def uncrop(maps: Tensor, margins: Margins) -> Tensor:
    """Give maps or masks ``(..., H, W)`` their margins back, as zeros."""
    if maps.dtype == torch.bool:
        return F.pad(maps.byte(), margins).bool()
    return F.pad(maps, margins)


def small_maps(maps: Tensor, transform: Any, images: Any) -> list[NDArray[np.float32]]:
    """Return maps of the whole images, at a longest side of at most 64, one by one.

    Args:
        maps: What the model says of its crop, shape ``(B, H, W)``.
        transform: The transform of its pre-processor.
        images: What it is given, resized or not, shape ``(B, 3, H', W')``.
    """
    maps = uncrop(maps.detach().float().cpu(), crop_margins(transform, tuple(images.shape[-2:])))
    factor = MAP_SIDE / max(maps.shape[-2:])
    if factor < 1:
        size = [max(round(side * factor), 1) for side in maps.shape[-2:]]
        maps = F.interpolate(maps[:, None], size, mode="bilinear", antialias=True)[:, 0]
    return list(maps.numpy())  # in fp16 nothing would be left of maps that are products of small values


class UncroppedVisualizer(ImageVisualizer):
    """anomalib's visualiser, with maps and masks in their place on images that the model crops.

    Takes the arguments of anomalib's ``ImageVisualizer`` and serves any anomalib model.
    """

    def on_test_batch_end(  # type: ignore[override]  # as anomalib narrows it
        self,
        trainer: "Trainer",
        pl_module: "AnomalibModule",
        outputs: "ImageBatch",
        batch: "ImageBatch",
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the batch; anomalib calls this after batches of a prediction too."""
        del outputs, batch_idx, dataloader_idx
        transform = getattr(pl_module.pre_processor, "transform", None)
        reader = getattr(pl_module, "reader", None)
        datamodule: Any = getattr(trainer, "datamodule", None)
        self.output_dir = self.output_dir or Path(trainer.default_root_dir) / "images"
        for item in batch:
            drawn, size = copy.copy(item), None
            if item.image_path:
                # anomalib's own reading would be dark or white, or lie on its side
                photo = read_for_display(item.image_path, reader and reader.white)
                drawn.image, drawn.image_path = to_dtype(to_image(photo), torch.float32, scale=True), None
                size = (photo.height, photo.width)
            margins = crop_margins(transform, size)
            for name in ("anomaly_map", "pred_mask", "gt_mask"):
                value = getattr(item, name, None)
                if value is not None and any(margins):
                    setattr(drawn, name, uncrop(value, margins))
            image: Any = drawn.image
            if min(image.shape[-2:]) < 2:  # anomalib would take a single row for a channel too many
                drawn.image = F.interpolate(image[None], [max(side, 2) for side in image.shape[-2:]])[0]
            picture = self.visualize(drawn)
            if isinstance(picture, Image.Image):
                place: Any = {key: getattr(datamodule, key, None) for key in ("name", "category")}
                path = generate_output_filename(
                    item.image_path or "", self.output_dir, dataset_name=place["name"], category=place["category"]
                )
                picture.save(self._own_place(path, Path(item.image_path)) if item.image_path else path)

    def _own_place(self, path: Path, source: Path) -> Path:
        """Return where a picture goes: with as many of the image's folders as tell it from other images' pictures."""
        drawn: dict[Path, Path] = self.__dict__.setdefault("_drawn", {})
        source = source.absolute()
        folders, name = [source.parent.name], path.name
        for folder in source.parent.parents:
            if drawn.setdefault(path, source) == source:
                break
            folders.insert(0, folder.name)
            path = Path(self.output_dir or "", *folders, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without what was drawn: an export holds no paths of images."""
        return {name: value for name, value in self.__dict__.items() if name != "_drawn"}
