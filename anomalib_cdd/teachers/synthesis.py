# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Synthetic anomalies on the object of an image (DTSNet Eq. 1 and 2; URD makes its own so too).

A mask of Perlin noise, cut to the foreground, is filled with a blend of the image and a texture. Noise and the
textures' augmentations are anomalib's.
"""

import zlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import numpy as np
import torch
from anomalib.data import Batch
from anomalib.data.transforms.utils import extract_transforms_by_type
from anomalib.data.utils.generators.perlin import PerlinAnomalyGenerator, generate_perlin_noise
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import v2

from anomalib_cdd.training.image_files import image_files
from anomalib_cdd.training.reading import read_image

from .foreground import Foreground, foreground_mask

if TYPE_CHECKING:
    from anomalib.data.utils.tiler import Tiler

# of the noise, whose values are in [-1, 1]
MASK_THRESHOLD = 0.5
# the finest noise has 32 cells a side, and a power of two of pixels
SMALLEST_SIDE = 16
# how often a mask that misses the foreground is drawn anew
DRAWS = 10
# share of another image that is taken as a texture, where there is no folder of textures
PATCH_SHARE = (0.05, 0.5)


class AnomalySynthesis:
    """Give images a synthetic anomaly each.

    An image's anomaly follows from the seed of the run (torch's, as ``seed_everything`` sets it), the epoch, the image
    and its file's name, whatever was drawn before; where its texture is a patch of another image, also from the batch.
    The foreground is found once an image and kept, a bit a pixel, as long as the image stays as it is.

    Args:
        source_path: Folder of textures, such as DTD, searched with its subfolders. Without one a texture is, one time
            in two each, a patch of another image of the batch or noise.
        foreground: How the object is found, see :func:`~anomalib_cdd.teachers.foreground.foreground_mask`.
        beta: Bounds of the image's weight in the blend, in [0, 1]; the texture has the rest.
        two_masks: Whether a mask is the union or, one time in two, the intersection of two.

    Raises:
        ValueError: If ``beta`` is no range in [0, 1], or ``foreground`` no way to find the object.
    """

    def __init__(
        self,
        source_path: str | None = None,
        foreground: Foreground = "auto",
        beta: tuple[float, float] = (0.15, 1.0),
        two_masks: bool = True,
    ) -> None:
        if not 0 <= beta[0] <= beta[1] <= 1:
            msg = f"beta is {beta}; it has to be a range in [0, 1]."
            raise ValueError(msg)
        if foreground not in get_args(Foreground):
            msg = f"foreground is {foreground!r}; it has to be one of {', '.join(get_args(Foreground))}."
            raise ValueError(msg)
        self.source_path = source_path
        self.foreground = foreground
        self.beta = beta
        self.two_masks = two_masks
        with torch.random.fork_rng(devices=[]):
            # one of the augmentations draws its threshold now; of the CPU alone, `torch.manual_seed` seeds every device
            torch.default_generator.manual_seed(0)
            self._noise = PerlinAnomalyGenerator()
        self._foregrounds: dict[str, tuple[int, NDArray[np.uint8]]] = {}

    @cached_property
    def textures(self) -> list[Path]:
        """Files of the folder of textures, looked up when the first anomaly is made: a trained model does without.

        Raises:
            FileNotFoundError: If there is no such folder.
            ValueError: If it has no images.
        """
        if self.source_path is None:
            return []
        found = image_files(self.source_path)
        if not found:
            msg = (
                f"The folder of textures {self.source_path} has no images. Leave anomaly_source_path out to do without."
            )
            raise ValueError(msg)
        return found

    def __call__(
        self, images: Tensor, image_ids: Sequence[str] | None = None, epoch: int = 0, transform: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Return the images with an anomaly each, and where it is.

        Args:
            images: Shape ``(B, 3, H, W)``; in [0, 1] before ``transform``'s normalisation.
            image_ids: Names of the images, such as their paths; ``None`` names them by their place in the batch.
            epoch: Number of the epoch: the next one brings other anomalies.
            transform: The pre-processor's transform that the images went through, for its normalisation; ``None`` if
                they are in [0, 1].

        Returns:
            Anomalous images of the same shape and normalisation, equal to ``images`` outside the masks, and masks of
            0 and 1, shape ``(B, 1, H, W)``. A mask is empty where ten draws have missed a small foreground.

        Raises:
            FileNotFoundError: If there is no folder of textures where one was named.
            ValueError: If it has no images, or ``images`` are too small for Perlin noise.
        """
        height, width = images.shape[-2:]
        if min(height, width) <= SMALLEST_SIDE:
            msg = (
                f"Images, or tiles, of {height} x {width} pixels: synthetic anomalies take more than {SMALLEST_SIDE} a "
                "side. Set a larger Resize."
            )
            raise ValueError(msg)
        normalisations: list[Any] = extract_transforms_by_type(transform, v2.Normalize)
        plain = images.detach().float()
        for step in reversed(normalisations):
            mean, std = (torch.tensor(values, device=images.device).view(-1, 1, 1) for values in (step.mean, step.std))
            plain = plain * std + mean
        results = [self._one(plain, i, image_ids[i] if image_ids else str(i), epoch) for i in range(len(images))]
        anomalous, masks = (torch.stack(parts) for parts in zip(*results, strict=True))
        for step in normalisations:
            anomalous = step(anomalous)
        return torch.where(masks > 0, anomalous.to(images.dtype), images), masks.to(images.dtype)

    def of_batch(
        self, batch: Batch, tiler: "Tiler | None", epoch: int, transform: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Give each image of a training batch, or each of its tiles where there is a tiler, an anomaly.

        Args:
            batch: anomalib's, with ``image`` as the pre-processor left it.
            tiler: anomalib's tiler, or ``None``.
            epoch: Number of the epoch.
            transform: The pre-processor's transform.

        Returns:
            Images or tiles, the same with an anomaly each, and masks; see :meth:`__call__`.
        """
        images, known = cast("Tensor", batch.image), cast("Any", batch).image_path
        tiles, paths = tiler.tile(images) if tiler else images, [str(path) for path in known or range(len(images))]
        per = len(tiles) // len(paths)  # tiles of an image follow each other
        names = [f"{paths[i // per]} {i % per}" for i in range(len(tiles))]
        return tiles, *self(tiles, names, epoch, transform)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what was found in images and folders: a torch export pickles its model whole."""
        return {name: value for name, value in self.__dict__.items() if name != "textures"} | {"_foregrounds": {}}

    def _one(self, images: Tensor, i: int, name: str, epoch: int) -> tuple[Tensor, Tensor]:
        """Return image ``i`` of a batch in [0, 1] with an anomaly, and its mask ``(1, H, W)``."""
        image = images[i]
        content = zlib.crc32((image.clamp(0, 1) * 255).round().byte().cpu().numpy().tobytes())
        allowed = self._foreground_of(image, name, content).to(image.device)
        seed = torch.initial_seed()
        with torch.random.fork_rng(devices=[image.device] if image.is_cuda else []):
            # by the file's name and not by its folder: a data set gives the same anomalies wherever it lies
            torch.manual_seed(zlib.crc32(f"{seed} {epoch} {Path(name).name}".encode(), content))
            mask = self._mask(allowed)
            texture = self._texture(images, i)
            low, high = self.beta
            beta = torch.empty(1, device=image.device).uniform_(low, high)
        return torch.where(mask, beta * image + (1 - beta) * texture, image), mask[None].float()

    def _foreground_of(self, image: Tensor, name: str, content: int) -> Tensor:
        kept = self._foregrounds.get(name)
        if kept is None or kept[0] != content:
            found = foreground_mask(image, self.foreground)
            kept = self._foregrounds[name] = content, np.packbits(found.numpy())
        size = image.shape[-2:]
        return torch.from_numpy(np.unpackbits(kept[1], count=size.numel()).astype(bool)).view(size)

    def _mask(self, allowed: Tensor) -> Tensor:
        """Draw a mask within the foreground ``(H, W)`` (DTSNet Eq. 1)."""
        join = self.two_masks and bool(torch.rand(()) > 0.5)
        mask = torch.zeros_like(allowed)
        for _ in range(DRAWS):
            mask = self._blobs(allowed)
            if self.two_masks:
                other = self._blobs(allowed)
                mask = mask | other if join else mask & other
            mask = mask & allowed
            if mask.any():
                break
        return mask

    def _blobs(self, like: Tensor) -> Tensor:
        """Threshold Perlin noise of scale 2^U{0..5} along each axis, turned by up to 90 degrees."""
        noise = generate_perlin_noise(like.shape[0], like.shape[1], device=like.device)
        return self._noise.perlin_rotation_transform(noise[None])[0] > MASK_THRESHOLD

    def _texture(self, images: Tensor, i: int) -> Tensor:
        """Return an augmented texture ``(3, H, W)``, in [0, 1], for image ``i`` of a batch."""
        height, width = images.shape[-2:]
        if self.textures:
            path = self.textures[int(torch.randint(len(self.textures), ()))]
            texture = v2.functional.resize(read_image(path).to(images.device), [height, width], antialias=True)
        elif len(images) > 1 and torch.rand(()) > 0.5:
            other = images[(i + 1 + int(torch.randint(len(images) - 1, ()))) % len(images)]
            texture = v2.RandomResizedCrop((height, width), scale=PATCH_SHARE, antialias=True)(other)
        else:
            noise = [generate_perlin_noise(height, width, device=images.device) for _ in range(3)]
            texture = (torch.stack(noise) + 1) / 2
        return self._noise.augmenters(texture.clamp(0, 1)).clamp(0, 1)
