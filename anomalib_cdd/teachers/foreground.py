# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Where the object is in an image, without training: OpenCV's GrabCut or Otsu's threshold.

Synthetic anomalies belong on the object (DTSNet Sec. II-B, which asks a segmentation network). A texture fills its
image; where nothing can be told apart the foreground is the whole image.
"""

from typing import Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Foreground = Literal["auto", "grabcut", "otsu", "none"]

# GrabCut takes half a second at this size and a few for a noisy image; a coarse outline is all that is asked for
SIDE = 256
GRABCUT_ITERATIONS = 11
# the border is like the centre within so many standard deviations of the centre's colours ...
LIKENESS = 2.0
# ... and an image is a texture where so much of its border is: an object's background is not, but where light falls off
# towards the edges most of a texture's border is not either
TEXTURE_SHARE = 0.1
# an object that leaves part of the centre free differs from the rest in some colour by so many times the sum of both
# deviations; what GrabCut cuts out of a texture, magnetic tiles for one, by less than two
DISTINCT = 2.2


def foreground_mask(image: Tensor, method: Foreground) -> Tensor:
    """Return which pixels are the object's.

    Args:
        image: Shape ``(3, H, W)``, in [0, 1].
        method: ``"grabcut"``; ``"otsu"``, which wants an object that is plainly lighter or darker than its background;
            ``"none"``, the whole image; ``"auto"``, GrabCut unless the image is a texture: its border is like its
            centre, see :func:`is_texture`, and what GrabCut finds does not stand out, see :func:`stands_out`.

    Returns:
        Booleans of shape ``(H, W)``, on the processor. All true where the method finds no object or nothing else.
    """
    height, width = image.shape[-2:]
    whole = torch.ones(height, width, dtype=torch.bool)
    if method == "none":
        return whole
    pixels = (image.detach().float().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    small = np.asarray(cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA), dtype=np.uint8)
    found = _otsu(small) if method == "otsu" else _grabcut(small)
    if method == "auto" and is_texture(small) and not stands_out(small, found):
        return whole
    mask = cv2.resize(found.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST).astype(bool)
    return whole if mask.all() or not mask.any() else torch.from_numpy(mask)


def is_texture(pixels: NDArray[np.uint8]) -> bool:
    """Return whether at least a tenth of an image's outermost pixels have the colours of its central quarter.

    Args:
        pixels: RGB, shape ``(H, W, 3)``.
    """
    height, width = pixels.shape[:2]
    colours = cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB).astype(np.float32)
    centre = colours[height // 4 : -(height // 4), width // 4 : -(width // 4)].reshape(-1, 3)
    border = np.concatenate([colours[0], colours[-1], colours[:, 0], colours[:, -1]])
    # one grey level at the least: a flat centre has no deviation
    spread = np.maximum(centre.std(axis=0), 1.0)
    alike = (np.abs(border - centre.mean(axis=0)) <= LIKENESS * spread).all(axis=1)
    return bool(alike.mean() >= TEXTURE_SHARE)


def stands_out(pixels: NDArray[np.uint8], found: NDArray[np.bool_]) -> bool:
    """Return whether the colours of what was cut out are others than those of the rest.

    Args:
        pixels: RGB, shape ``(H, W, 3)``.
        found: What was cut out, shape ``(H, W)``.
    """
    colours = cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB).astype(np.float32)
    if not found.any() or found.all():
        return False
    inside, outside = colours[found], colours[~found]
    # one grey level each at the least: flat colours have no deviation
    spread = inside.std(axis=0) + outside.std(axis=0) + 2
    return bool((np.abs(inside.mean(axis=0) - outside.mean(axis=0)) / spread).max() >= DISTINCT)


def _grabcut(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Cut out what lies in the rectangle one pixel inside the image."""
    if (pixels == pixels[0, 0]).all():
        return np.ones(pixels.shape[:2], dtype=bool)
    labels = np.zeros(pixels.shape[:2], np.uint8)
    background, foreground = np.zeros((2, 1, 65), np.float64)
    inside = (1, 1, pixels.shape[1] - 2, pixels.shape[0] - 2)
    cv2.setRNGSeed(0)  # its colour clusters start at random
    swapped = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    cv2.grabCut(swapped, labels, inside, background, foreground, GRABCUT_ITERATIONS, cv2.GC_INIT_WITH_RECT)
    return (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)


def _otsu(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Take the side of Otsu's threshold that has less of the border."""
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    _, light = cv2.threshold(grey, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    border = np.concatenate([light[0], light[-1], light[:, 0], light[:, -1]])
    return light.astype(bool) if border.mean() <= 0.5 else ~light.astype(bool)
