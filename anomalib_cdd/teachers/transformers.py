# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Vision transformers of timm as teachers: their blocks' patch tokens as maps, at any multiple of the patch.

Class and register tokens are dropped. Position embeddings are brought to the size of the images outside the graph of
an export: exporters interpolate them by another rule than torch.
"""

from typing import Any

import timm
import torch
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn
from torch.func import functional_call

POSITIONS = "model.pos_embed"


def is_transformer(network: nn.Module) -> bool:
    """Return whether a ``features_only`` network of timm has blocks that all work at one stride."""
    info: Any = network.feature_info
    return hasattr(getattr(network, "model", None), "forward_intermediates") and len(set(info.reduction())) == 1


def block_names(network: Any) -> list[str]:
    """Return the names of all blocks of a ``features_only`` transformer."""
    return [block["module"] for block in network.model.feature_info]


def default_blocks(names: list[str]) -> list[int]:
    """Return the indices of the blocks that end the first three quarters: the last one is fitted to ImageNet's task."""
    return [max(len(names) * quarter // 4 - 1, 0) for quarter in (1, 2, 3)]


class UnfitBackboneError(ValueError):
    """A transformer that timm builds for one image size only."""


class TransformerTeacher(nn.Module):
    """A timm transformer whose position embeddings follow the size of the images.

    Args:
        backbone: timm model name.
        indices: Indices of the blocks to return.
        pre_trained: Whether to fetch weights.

    Attributes:
        feature_info: timm's, of these blocks.
        patch: Side of a patch, in pixels.

    Raises:
        UnfitBackboneError: If timm builds the backbone for one image size only.
    """

    network: Any  # timm's, which is not typed
    positions: Tensor

    def __init__(self, backbone: str, indices: list[int], pre_trained: bool) -> None:
        super().__init__()
        options: dict[str, Any] = {"features_only": True, "exportable": True, "out_indices": indices}
        try:
            self.network = timm.create_model(backbone, pre_trained, dynamic_img_size=True, **options)
        except TypeError as error:
            msg = (
                f"Backbone {backbone!r} takes one size of images only. Choose a transformer whose position embeddings "
                "can be interpolated, such as vit_small_patch14_dinov2."
            )
            raise UnfitBackboneError(msg) from error
        self.backbone = backbone
        self.feature_info = self.network.feature_info
        self.patch: int = self.feature_info.reduction()[0]
        self.native_grid: tuple[int, int] = tuple(self.network.model.patch_embed.grid_size)
        self.register_buffer("positions", torch.empty(0), persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the patch tokens of the blocks as maps.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``.

        Returns:
            One tensor ``(B, C, H / patch, W / patch)`` per block.

        Raises:
            ValueError: If a side is no multiple of the patch.
        """
        height, width = images.shape[-2:]
        if height % self.patch or width % self.patch:
            fitting = [max(round(side / self.patch), 1) * self.patch for side in (height, width)]
            msg = (
                f"Backbone {self.backbone!r} takes images whose sides are multiples of its patch, {self.patch}; these "
                f"are {height} x {width}. Set the pre-processor's size (or the tiles') to {fitting[0]} x {fitting[1]}."
            )
            raise ValueError(msg)
        own = getattr(self.network.model, "pos_embed", None)
        if own is None:  # rotary embeddings alone: they have no size
            return self.network(images)
        if not torch.compiler.is_exporting():
            self._resample(own.detach(), (height // self.patch, width // self.patch))
        return functional_call(self.network, {POSITIONS: self.positions}, (images,))

    @torch.no_grad()
    def _resample(self, own: Tensor, grid: tuple[int, int]) -> None:
        """Interpolate the weights' position embeddings as timm does, and tell timm which grid they are of."""
        transformer = self.network.model
        prefix = 0 if transformer.no_embed_class else transformer.num_prefix_tokens
        self.positions = resample_abs_pos_embed(own, list(grid), list(self.native_grid), num_prefix_tokens=prefix)
        # or it would interpolate them once more
        transformer.patch_embed.set_input_size(img_size=(grid[0] * self.patch, grid[1] * self.patch))

    def native_state(self, state: dict[str, Any]) -> dict[str, Any]:
        """Translate a weight file of a transformer's authors, DINOv2's for one, to timm's names and shapes."""
        transformer = self.network.model
        return checkpoint_filter_fn(state, transformer) if isinstance(transformer, VisionTransformer) else state
