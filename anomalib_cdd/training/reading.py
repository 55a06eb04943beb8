# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""The one way in which image and mask files are read, for training, audit, prediction and pages alike.

Images stand upright (EXIF), more than eight bits keep their scale, soft masks are cut at half, size has a limit of its
own, and what cannot be read is an error with its path. anomalib reads by ``convert("RGB")`` and does none of it.
"""

import logging
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps
from torchvision.transforms.v2.functional import to_dtype, to_image
from torchvision.tv_tensors import Image as ImageTensor
from torchvision.tv_tensors import Mask

logger = logging.getLogger(__name__)

# Pillow's own limit stops at 179 megapixels, below a line-scan camera's 24000 x 8000
MAX_PIXELS = 2**30
BITS = (8, 10, 12, 14, 16)  # of cameras; white is the largest value that such a number holds
WHITE = 65535  # where nothing else is known: what the file format itself can hold
# a mask of these, or of more grey values than labels have, has been smoothed: half of white is its edge
LOSSY = ("JPEG", "MPO", "JPEG2000", "WEBP")
MOST_LABELS = 32
# Pillow's names of what a file holds; BGR;16 is not among them: five or six bits a channel
DEEP_COLOUR = re.compile("(RGB[AXa]?|LA|[RGBA]);16[BLN]?")

_decoding = threading.Lock()  # Pillow's limit is one for the process


def read_image(path: str | Path, white: int = WHITE) -> ImageTensor:
    """Read an image as training, audit and prediction read it; every inferencer of anomalib takes the result.

    Args:
        path: The file.
        white: Value that becomes 1 in images of more than eight bits, ``model.white_level`` of a trained model of this
            package. Brighter values become 1 too. Eight bits are scaled by 1 / 255 whatever it is.

    Returns:
        Upright image of shape ``(3, H, W)``, float32, in [0, 1].

    Raises:
        ValueError: If the file is no image, damaged or larger than :data:`MAX_PIXELS`, or the scale of its values is
            not known; the message names it.
    """
    image, deep = _load(path)
    if deep is None:
        return to_dtype(to_image(image.convert("RGB")), torch.float32, scale=True)
    scaled = torch.from_numpy(np.clip(deep.astype(np.float32) / white, 0, 1))
    return ImageTensor(scaled.expand(3, -1, -1).contiguous())


def read_mask(path: str | Path) -> Mask:
    """Read a mask.

    Args:
        path: The file.

    Returns:
        Upright mask of shape ``(H, W)``, uint8, 1 where there is a defect: any value but 0 where the file holds labels,
        half of white or more where it holds grey values, as a JPEG or a smooth edge has them.

    Raises:
        ValueError: As :func:`read_image`.
    """
    image, deep = _load(path)
    if deep is not None:
        return Mask(torch.from_numpy((deep > 0).any(axis=0)).to(torch.uint8))
    grey = image.convert("L")
    is_soft = image.format in LOSSY or sum(map(bool, grey.histogram())) > MOST_LABELS
    return Mask(torch.from_numpy(np.asarray(grey) >= (128 if is_soft else 1)).to(torch.uint8))


def read_for_display(path: str | Path, white: int | None = None) -> Image.Image:
    """Read an image for a page or a plot, with eight bits, mode ``RGB``.

    Args:
        path: The file.
        white: As for :func:`read_image`; the image's own, as :func:`white_level` has it, where it is not given.

    Raises:
        ValueError: As :func:`read_image`.
    """
    image, deep = _load(path)
    if deep is None:
        return image.convert("RGB")
    white = white or _white_of(int(deep.max()))
    scaled = np.clip(deep.astype(np.float32) * (255 / white), 0, 255).round().astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(scaled, (3, *scaled.shape[1:])).transpose(1, 2, 0)))


def white_level(paths: Iterable[str | Path]) -> int | None:
    """Find what a training set uses of its images' bits, and say so in one line.

    A camera of 12 bits writes files of 16, so the file does not tell.

    Args:
        paths: The training images. A file that cannot be read is passed over: whoever reads it will say so.

    Returns:
        The largest value of the smallest of 8, 10, 12, 14 or 16 bits that holds every value of the images with more
        than eight bits, or ``None`` where there is no such image.
    """
    highest = None
    for path in paths:
        try:
            if not _is_deep(path):
                continue
            highest = max(highest or 0, int(_load(path)[1].max()))  # type: ignore[union-attr]  # it is deep
        except ValueError:
            continue
        if highest >= 2 ** BITS[-2]:
            break  # it is all 16, whatever comes
    if highest is None:
        return None
    white = _white_of(highest)
    bits = white.bit_length()
    logger.info("Grey values of the training images take %d bits (highest %d): white is %d", bits, highest, white)
    return white


def _white_of(highest: int) -> int:
    return next(2**bits - 1 for bits in BITS if highest < 2**bits)


def _is_deep(path: str | Path) -> bool:
    """Return whether a file holds more than eight bits a channel; reads its head alone."""
    with _open(path) as image:
        return _deep_channels(image) is not None


def _load(path: str | Path) -> tuple[Image.Image, NDArray[Any] | None]:
    """Decode a file and turn it upright.

    Returns:
        The image and, if it has more than eight bits, its values ``(1 or 3, H, W)`` in [0, 65535].
    """
    with _open(path) as image:
        channels = _deep_channels(image)
        try:
            if channels == "colour":
                return image, _deep_colour(path, image)
            with _without_pillows_limit():  # a TIFF asks again when it is decoded
                image.load()
            ImageOps.exif_transpose(image, in_place=True)
        except (OSError, SyntaxError, ValueError, EOFError, RuntimeError, cv2.error) as error:  # of a damaged file
            raise _unreadable(path, error) from error
    return image, None if channels is None else _deep_grey(path, image)


@contextmanager
def _without_pillows_limit() -> Iterator[None]:
    """Let Pillow read what :data:`MAX_PIXELS` allows."""
    with _decoding:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _open(path: str | Path) -> Image.Image:
    """Read the head of a file, whatever Pillow's own limit is."""
    try:
        with _without_pillows_limit():
            image = Image.open(path)
            if image.format == "TIFF":  # of a file by its name Pillow maps raw pixels, with the sides of an upright one
                image.close()
                image = Image.open(BytesIO(Path(path).read_bytes()))
    except (OSError, SyntaxError, ValueError, RuntimeError) as error:  # a kind that Pillow does not know, too
        raise _unreadable(path, error) from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        image.close()
        msg = f"the image {path} has {width} x {height} pixels, more than the limit of {MAX_PIXELS}: cut it into tiles"
        raise ValueError(msg)
    return image


def _deep_channels(image: Image.Image) -> str | None:
    """Return ``"grey"`` or ``"colour"`` for an image of more than eight bits that is not decoded yet."""
    if image.mode[0] in "IF":
        return "grey"
    # Pillow has no mode for deep colour, and takes the upper half of each value
    tiles = getattr(image, "tile", [])
    layouts = (tile.args if isinstance(tile.args, str) else str(tile.args[0]) for tile in tiles if tile.args)
    return "colour" if any(DEEP_COLOUR.fullmatch(layout) for layout in layouts) else None


def _deep_grey(path: str | Path, image: Image.Image) -> NDArray[Any]:
    values = np.asarray(image)[None]
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > WHITE:
        found = f"{values.dtype} values in [{values.min()}, {values.max()}]"
        msg = f"the image {path} has {found}: save it with 8 or 16 bits"
        raise ValueError(msg)
    return values


def _deep_colour(path: str | Path, image: Image.Image) -> NDArray[Any]:
    # OpenCV turns a TIFF by itself
    orientation = 1 if image.format == "TIFF" else image.getexif().get(ExifTags.Base.Orientation, 1)
    # not by its path: OpenCV opens none outside ASCII on Windows
    pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        msg = "OpenCV cannot decode it"
        raise ValueError(msg)
    colours = pixels[..., None] if pixels.ndim == 2 else pixels[..., 2::-1]
    return np.stack([_upright(plane, orientation) for plane in np.moveaxis(colours, -1, 0)])


def _upright(plane: NDArray[Any], orientation: int) -> NDArray[Any]:
    image = Image.fromarray(np.ascontiguousarray(plane))
    image.getexif()[ExifTags.Base.Orientation] = orientation
    return np.asarray(ImageOps.exif_transpose(image))


def _unreadable(path: str | Path, error: Exception) -> ValueError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return ValueError(f"cannot read the image {path} ({reason}); replace or remove it")
