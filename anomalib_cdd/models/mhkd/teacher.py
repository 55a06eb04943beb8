# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""MHKD's teachers: one map of at most 384 channels at stride 4 (Sec. III-A).

The paper's is EfficientAD's patch description network, which was distilled from patch features of a WideResNet-101. Any
other teacher stands in for it by such patch features of its own: PatchCore's, with their channels pooled.
"""

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from anomalib.models.image.efficient_ad.lightning_model import WEIGHTS_DOWNLOAD_INFO
from anomalib.models.image.efficient_ad.torch_model import MediumPatchDescriptionNetwork
from anomalib.utils.path import get_pretrained_weights_dir
from torch import Tensor, nn

from anomalib_cdd.teachers.backbones import IMAGENET_MEAN, IMAGENET_STD, Teacher
from anomalib_cdd.teachers.mixing import channel_pooling, mixed_patches

logger = logging.getLogger(__name__)

EFFICIENT_AD = "efficientad_medium"
# where anomalib's own EfficientAd leaves the file
EFFICIENT_AD_FILE = Path("efficientad_pretrained_weights", "pretrained_teacher_medium.pth")
CHANNELS = 384
STRIDE = 4


def build_teacher(backbone: str, layers: Sequence[str] | None, pre_trained: bool, weights: str | None) -> nn.Module:
    """Return a frozen teacher whose ``channels`` says how many its map has; arguments as in :class:`Mhkd`."""
    if backbone == EFFICIENT_AD:
        return EfficientAdTeacher(pre_trained, weights)
    teacher = PooledTeacher(Teacher(backbone, layers, pre_trained, weights))
    names = ", ".join(level.name for level in teacher.network.levels)
    logger.info("MHKD's teacher: levels %s of %s, pooled to %d channels.", names, backbone, teacher.channels)
    return teacher


class EfficientAdTeacher(nn.Module):
    """anomalib's medium patch description network, padded so that its map has a place for every fourth pixel.

    Args:
        pre_trained: Whether it is trained; an untrained one is for tests.
        weights: Its file. ``None`` takes the one that anomalib's EfficientAd has left on this machine.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not of this network.
    """

    channels = CHANNELS
    mean: Tensor
    std: Tensor

    def __init__(self, pre_trained: bool, weights: str | None) -> None:
        super().__init__()
        self.network = MediumPatchDescriptionNetwork(CHANNELS, padding=True)
        if pre_trained or weights is not None:
            path = Path(weights) if weights is not None else get_pretrained_weights_dir() / EFFICIENT_AD_FILE
            self.network.load_state_dict(_read(path, self.network.state_dict()))
            logger.info("MHKD's teacher: EfficientAD's patch description network, from %s.", path)
        self.requires_grad_(requires_grad=False)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(B, 3, H, W)``, normalised as ImageNet's, to ``(B, 384, H / 4, W / 4)``."""
        return self.network(images * self.std + self.mean)  # it normalises by itself


def _read(path: Path, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Read the network's tensors from a file."""
    source = f"{EFFICIENT_AD_FILE.name} of {WEIGHTS_DOWNLOAD_INFO.url}"
    if not path.is_file():
        msg = (
            f"There is no EfficientAD teacher at {path}. Nothing is downloaded here: set `weights` to {source}, or "
            "`backbone` to another teacher, such as efficientnet_lite0_pypi."
        )
        raise FileNotFoundError(msg)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a file's bytes lead to
        msg = f"Weight file {path} cannot be read as plain tensors ({type(error).__name__}). It takes {source}."
        raise ValueError(msg) from error
    shapes = {name: getattr(value, "shape", None) for name, value in state.items()} if isinstance(state, dict) else {}
    if shapes != {name: value.shape for name, value in expected.items()}:
        msg = f"Weight file {path} is not an EfficientAD teacher of medium size. It takes {source}."
        raise ValueError(msg)
    return state


class PooledTeacher(nn.Module):
    """The levels of any teacher as one map at stride 4: 3 x 3 averages, joined, with neighbouring channels averaged.

    Args:
        teacher: The frozen teacher.

    Attributes:
        channels: 384, or as many as the levels have together where that is less.
    """

    mixing: Tensor

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.network = teacher
        self.register_buffer(
            "mixing", channel_pooling(sum(level.channels for level in teacher.levels), CHANNELS), persistent=False
        )
        self.channels = len(self.mixing)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images ``(B, 3, H, W)`` to ``(B, channels, H / 4, W / 4)``."""
        size = [math.ceil(side / STRIDE) for side in images.shape[-2:]]
        return mixed_patches(self.network(images), self.mixing, size)
