# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Patches of several teacher levels with a bounded number of channels.

Pooling channels, the 3 x 3 average and interpolation are all linear. So the channels are mixed
first, level by level at its own size: the concatenation of many levels on the finest grid is never in memory.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from anomalib.data.utils.tiler import ImageUpscaleMode
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from anomalib.data.utils.tiler import Tiler


def channel_pooling(channels: int, pooled: int) -> Tensor:
    """Return the matrix that averages neighbouring channels, as PatchCore's adaptive average pooling does.

    Args:
        channels: Number of channels C.
        pooled: Largest number of channels that is wanted. Where there are no more than that nothing is pooled.

    Returns:
        Shape ``(min(C, pooled), C)``; each row sums to one.
    """
    return F.adaptive_avg_pool1d(torch.eye(channels), min(channels, pooled)).T.contiguous()


def mixed_patches(levels: Sequence[Tensor], mixing: Tensor, size: Sequence[int]) -> Tensor:
    """Return patches: 3 x 3 averages of all levels on one grid, their channels mixed.

    Args:
        levels: Teacher levels, each ``(B, C_l, H_l, W_l)``.
        mixing: Shape ``(D, sum of C_l)``, what is done to the concatenated channels.
        size: Height and width of the grid.

    Returns:
        Shape ``(B, D, *size)``.
    """
    parts = mixing.split([level.shape[1] for level in levels], dim=1)
    mixed = (F.conv2d(level, part[:, :, None, None]) for level, part in zip(levels, parts, strict=True))
    grids = [
        F.interpolate(F.avg_pool2d(level, 3, stride=1, padding=1), size=tuple(size), mode="bilinear") for level in mixed
    ]
    return torch.stack(grids).sum(dim=0)


def in_tiles(tiler: "Tiler | None", images: Tensor, extract: Callable[[Tensor], Tensor], stride: int) -> Tensor:
    """Return the patch grid of whole images, put together from their tiles where there is a tiler.

    Args:
        tiler: anomalib's, or ``None``.
        images: Shape ``(B, 3, H, W)``.
        extract: Gives the grid ``(B, C, h, w)`` of images or tiles.
        stride: Pixels from one patch to the next.

    Returns:
        Shape ``(B, C, h, w)``.

    Raises:
        ValueError: If the tiles' grids do not fit each other, or the tiler stretches images to fill them.
    """
    if tiler is None:
        return extract(images)
    if tiler.mode != ImageUpscaleMode.PADDING:
        msg = "The tiler's mode is interpolation, which stretches a grid of patches to the image. Set mode: padding."
        raise ValueError(msg)
    sides = (tiler.tile_size_h, tiler.tile_size_w, tiler.stride_h, tiler.stride_w)
    if any(side % stride for side in sides) or tiler.remove_border_count:
        msg = (
            f"Tiles of {sides[:2]} at a stride of {sides[2:]} with {tiler.remove_border_count} border pixels removed: "
            f"a patch lies on every {stride}th pixel. Set tile_size and stride to multiples of {stride}, and "
            "remove_border_count to 0."
        )
        raise ValueError(msg)
    grid = tiler.untile(extract(tiler.tile(images)))
    # without the margin that was added to fill the last tiles
    return grid[..., : -(-tiler.input_h // stride), : -(-tiler.input_w // stride)]
