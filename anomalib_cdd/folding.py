# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Networks for inference: once it has been trained, batch normalisation is a factor and an offset of a convolution.

Knows no method: any network of convolutions can be folded.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

# what has another rule for its statistics than these is left as it is
NORMALISATIONS = (nn.BatchNorm2d, BatchNormAct2d)
TOLERANCE = 1e-3


@torch.no_grad()
def folded(network: nn.Module, example: Any, dtype: torch.dtype | None = None) -> nn.Module:
    """Return a copy of a network for inference, its batch normalisation folded into the convolutions before it.

    Args:
        network: It returns a tensor or a list of tensors.
        example: Its argument, a tensor or a list of tensors, of any size that it takes.
        dtype: Precision of the copy's weights; ``None`` keeps the network's.

    Returns:
        The copy, in evaluation mode. It agrees with the network up to rounding. A network of which folding would
        make something else, such as one that normalises its weights at every call, comes back with nothing folded.
    """
    plain = copy.deepcopy(network).eval().requires_grad_(requires_grad=False)
    pairs = _pairs(plain, example)
    # fresh statistics are those of no normalisation at all: with others a wrong fold shows
    shaken = _shaken(plain)
    right = _agree(_fold(copy.deepcopy(shaken), pairs)(example), shaken(example))
    network = _fold(plain, pairs) if right else plain
    return network.to(dtype or next(network.parameters()).dtype).to(memory_format=torch.channels_last)


def _pairs(network: nn.Module, example: Any) -> list[tuple[str, str]]:
    """Return the names of each convolution and of the normalisation that takes its output, as a pass shows them."""
    outputs: list[tuple[Tensor, str]] = []
    pairs: list[tuple[str, str]] = []

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            outputs.append((output, name))

        return hook

    def match(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            pairs.extend((convolution, name) for output, convolution in outputs if output is inputs[0])

        return hook

    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d) or (isinstance(module, nn.ConvTranspose2d) and module.groups == 1):
            hooks.append(module.register_forward_hook(keep(name)))
        elif type(module) in NORMALISATIONS and module.track_running_stats:
            hooks.append(module.register_forward_pre_hook(match(name)))
    network(example)
    for hook in hooks:
        hook.remove()
    return pairs


def _shaken(network: nn.Module) -> nn.Module:
    """Return a copy whose normalisations have statistics and weights of their own."""
    shaken = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(0)
    for module in shaken.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.running_mean, module.running_var, module.weight, module.bias):
                if values is not None:
                    values.copy_(0.5 + torch.rand(values.shape, generator=generator))
    return shaken


def _fold(network: nn.Module, pairs: list[tuple[str, str]]) -> nn.Module:
    """Fold normalisations, in place; what else such a module does stays."""
    for convolution, normalisation in pairs:
        conv: Any = network.get_submodule(convolution)
        norm: Any = network.get_submodule(normalisation)
        fused = fuse_conv_bn_eval(conv, norm, transpose=isinstance(conv, nn.ConvTranspose2d))
        conv.weight, conv.bias = fused.weight, fused.bias
        parent, _, name = normalisation.rpartition(".")
        rest = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
        setattr(network.get_submodule(parent), name, rest)
    return network


def _agree(first: Any, second: Any) -> bool:
    pairs = [(first, second)] if isinstance(first, Tensor) else zip(first, second, strict=True)
    return all((a - b).norm() <= TOLERANCE * b.norm() for a, b in pairs)
