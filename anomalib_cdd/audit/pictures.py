# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""What image files show without any model: a thumbnail, and whether one is blurred, dark or of an odd size.

All three flags are relative to the set: what is far from the median of its fellows, by the median absolute deviation.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from anomalib.visualization.image.functional import apply_colormap
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import median_abs_deviation
from tqdm.auto import tqdm

from anomalib_cdd.training.image_files import printable
from anomalib_cdd.training.reading import read_for_display, white_level

THUMBNAIL = 160
QUALITY = 80
# sharpness is measured at this longest side at most: much smaller, and a blurred photograph looks sharp
MEASURED_SIDE = 1024
# a flagged value lies this many robust standard deviations from the median, and differs from it by this factor
DEVIATIONS = 3.5
BLURRED, DARK = 0.5, 0.7
# a size that more images than this share have is not odd
COMMON_SIZE = 0.1
# a normal image stays dark and a strong response saturates
COLOUR_QUANTILES = (0.5, 0.999)
QUANTILE_STEP = 16
HEAT_MAP_SHARE = 0.5


@dataclass(frozen=True)
class Picture:
    """What one image file shows.

    Attributes:
        thumbnail: The whole image as WebP, at most 160 pixels wide and high.
        width: Of the image as it is shown, in pixels.
        height: Likewise.
        sharpness: Variance of the Laplacian of the grey values in [0, 255].
        brightness: Mean grey value in [0, 1].
        is_deep: Whether its set has images of more than eight bits, which a browser would show dark.
    """

    thumbnail: bytes
    width: int
    height: int
    sharpness: float
    brightness: float
    is_deep: bool = False


def look_at(paths: Sequence[str], *, progress: bool = True) -> tuple[list[Picture | None], dict[str, str]]:
    """Look at every file once.

    Args:
        paths: Image files.
        progress: Whether to show a progress bar.

    Returns:
        What each file shows, ``None`` for one that cannot be read, and why it cannot, by path.
    """
    white = white_level(paths)
    bar = tqdm(paths, desc="pictures", unit="image", leave=False, disable=not progress)
    found = [_look_at_one(path, white) for path in bar]
    unreadable = {path: seen for path, seen in zip(paths, found, strict=True) if isinstance(seen, str)}
    return [seen if isinstance(seen, Picture) else None for seen in found], unreadable


def _look_at_one(path: str, white: int | None) -> Picture | str:
    """Return what a file shows, or why it cannot be read."""
    if printable(path) != path:
        return "its name is not valid UTF-8, so that no list could have it: rename it"
    try:
        image = read_for_display(path, white)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow raises all of these
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    width, height = image.size
    measured = image.convert("L")
    measured.thumbnail((MEASURED_SIDE, MEASURED_SIDE))
    grey = np.asarray(measured, dtype=np.float32)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    sharpness = float(cv2.Laplacian(grey, cv2.CV_32F).var())
    return Picture(encode(image), width, height, sharpness, float(grey.mean()) / 255, white is not None)


def encode(image: Image.Image) -> bytes:
    """Return an image as WebP."""
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=QUALITY)
    return buffer.getvalue()


def flags(pictures: Sequence[Picture]) -> list[list[str]]:
    """Say which images are ``blurred``, ``dark`` or of an ``odd size`` beside the others.

    Args:
        pictures: Of N images.

    Returns:
        The flags of each, mostly none.
    """
    blurred = _far_below([picture.sharpness for picture in pictures], BLURRED)
    dark = _far_below([picture.brightness for picture in pictures], DARK)
    sizes = [(picture.width, picture.height) for picture in pictures]
    found = {"blurred": blurred, "dark": dark, "odd size": _odd_sizes(sizes)}
    return [[name for name, flagged in found.items() if flagged[row]] for row in range(len(pictures))]


def _far_below(values: Sequence[float], factor: float) -> NDArray[np.bool_]:
    """Return what lies far below the median on a log scale, and below ``factor`` of it."""
    logs = np.log(np.maximum(values, 1e-6))
    distance = np.median(logs) - logs
    return (distance > DEVIATIONS * median_abs_deviation(logs, scale="normal")) & (distance > -np.log(factor))


def _odd_sizes(sizes: Sequence[tuple[int, int]]) -> NDArray[np.bool_]:
    """Return which widths or heights lie far from the median, of sizes that few images have."""
    logs = np.log(np.asarray(sizes, dtype=np.float64))
    distance = np.abs(logs - np.median(logs, axis=0))
    far = (distance > DEVIATIONS * median_abs_deviation(logs, axis=0, scale="normal")).any(axis=1)
    _, size, count = np.unique(np.asarray(sizes), axis=0, return_inverse=True, return_counts=True)
    return far & (count[size.ravel()] <= max(COMMON_SIZE * len(sizes), 1))


def overlays(thumbnails: Sequence[bytes], maps: Sequence[NDArray[np.floating]]) -> list[bytes]:
    """Lay each anomaly map over its thumbnail, all on one scale that comes from the maps alone.

    Args:
        thumbnails: Encoded images, N of them.
        maps: Their maps, each of any size ``(h, w)``, of the whole image.

    Returns:
        Encoded images of the thumbnails' sizes.
    """
    some = np.concatenate([values.ravel()[::QUANTILE_STEP] for values in maps]).astype(np.float32)
    low, high = np.quantile(some, COLOUR_QUANTILES)
    span = float(high - low) or 1.0
    laid = []
    for thumbnail, values in zip(thumbnails, maps, strict=True):
        image = Image.open(io.BytesIO(thumbnail)).convert("RGB")
        scaled = cv2.resize(((values.astype(np.float32) - low) / span).clip(0, 1), image.size)
        laid.append(encode(Image.blend(image, apply_colormap((scaled * 255).astype(np.uint8)), HEAT_MAP_SHARE)))
    return laid
