# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Exports that say what the model says in Lightning: they resize with antialiasing too.

anomalib exports a resize without it, so that scores of large images differ. A torch export takes the model's own
transform here. A graph takes the same resize as two matrix products: runtimes disagree on ONNX's own operator.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from anomalib.data.transforms import ExportableCenterCrop
from torch import Tensor, nn
from torchvision.transforms.v2 import CenterCrop, Compose, InterpolationMode, Resize, Transform

from .precision import is_traced

# what torchvision keeps depends on its version
BILINEAR = (InterpolationMode.BILINEAR, InterpolationMode.BILINEAR.value)


class FaithfulExports:
    """Mixin before ``AnomalibModule``: ``forward``, which exports run, pre-processes as the trainer does."""

    pre_processor: Any
    post_processor: Any
    model: nn.Module

    def forward(self, batch: Tensor, *args: Any, **kwargs: Any) -> Any:  # anomalib's signature and InferenceBatch
        """Pre-process, score and post-process images.

        Args:
            batch: Images of shape ``(B, 3, H, W)``, in [0, 1].
            args: Ignored, as anomalib does.
            kwargs: Ignored, as anomalib does.
        """
        del args, kwargs
        transform = getattr(self.pre_processor, "transform", None)
        if transform is not None:
            batch = graph_transform(transform)(batch) if is_traced() else transform(batch)
        prediction = self.model(batch)
        return self.post_processor(prediction) if self.post_processor else prediction

    def to_onnx(self, *args: Any, **kwargs: Any) -> Path:
        """Export to ONNX, as anomalib does; an OpenVINO export is made of that.

        Raises:
            ValueError: If the pre-processor has a step whose result depends on the size of the image.
        """
        check_graph(getattr(self.pre_processor, "transform", None))
        return super().to_onnx(*args, **kwargs)  # type: ignore[misc]  # AnomalibModule's


def check_graph(transform: Transform | None) -> None:
    """Refuse a transform that no graph of any image size can have: tracing would keep one image's sizes for all.

    Raises:
        ValueError: If it resizes to no height and width, or crops what it has not resized so.
    """
    steps = transform.transforms if isinstance(transform, Compose) else [transform]
    is_known = False
    for step in steps:
        is_known |= isinstance(step, Resize) and step.size is not None and len(step.size) == 2
        if isinstance(step, Resize | CenterCrop) and not is_known:
            msg = (
                f"{type(step).__name__}(size={step.size}) depends on the size of the image, which an exported graph "
                "does not know: let the pre-processor begin with Resize((HEIGHT, WIDTH))."
            )
            raise ValueError(msg)


def graph_transform(transform: Transform) -> Transform | nn.Module:
    """Return a transform with the same results that can be part of an exported graph of any image size.

    Args:
        transform: A pre-processor's. Of its steps antialiased bilinear ``Resize`` and ``CenterCrop`` are replaced.
    """
    if isinstance(transform, Compose):
        return Compose([graph_transform(step) for step in transform.transforms])
    if isinstance(transform, CenterCrop):
        return ExportableCenterCrop(transform.size)
    if isinstance(transform, Resize) and transform.antialias and transform.interpolation in BILINEAR:
        return _MatrixResize(transform)
    return copy.deepcopy(transform)


class _MatrixResize(nn.Module):
    """An antialiased bilinear resize as a matrix from the left and one from the right."""

    def __init__(self, resize: Resize) -> None:
        super().__init__()
        self.resize = resize

    def forward(self, images: Tensor) -> Tensor:
        """Resize images ``(B, C, H, W)``."""
        size = self.resize.size
        if size is None or len(size) != 2:  # the size of the result depends on the image's
            size = self.resize(torch.empty(1, *images.shape[-2:], device="meta")).shape[-2:]
        down, across = (resize_matrix(*sides, images.device) for sides in zip(images.shape[-2:], size, strict=True))
        columns = down.to(images.dtype) @ images
        # ends in a transpose: OpenVINO in 8 bits fails to fuse a normalisation of channels into a product
        return (across.to(images.dtype) @ columns.mT).mT


def resize_matrix(length: int, size: int, device: torch.device | None = None) -> Tensor:
    """Return what an antialiased bilinear resize does to a column of pixels.

    A pixel of the result is a weighted mean under a triangle around its centre. When shrinking, the triangle reaches
    as far as the distance between two of these centres, else to the next pixel.

    Args:
        length: Pixels of the column.
        size: Pixels of the result.
        device: Where the matrix is wanted.

    Returns:
        Shape ``(size, length)``; each row sums to 1.
    """
    # in whole numbers, units of 1 / (2 size) of a pixel: OpenVINO may round floats to bf16, 8 bits for a coordinate
    pixels = (2 * torch.arange(length, device=device) + 1) * size
    centres = (2 * torch.arange(size, device=device) + 1) * length
    distances = (pixels - centres[:, None]).abs()
    weights = (distances.neg() + 2 * torch.sym_max(length, size)).clamp_min(0)
    return weights.float() / weights.sum(dim=1, keepdim=True).float()
