# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""A picture of twelve synthetic anomalies, to be looked at.

``python -m benchmarks.synthesis FOLDER`` draws each beside its mask (white) on the foreground (grey): six as DTSNet
makes them, six as URD and DMDD do. Without a folder they are on drawn parts: ``--output docs/synthetic_anomalies.jpg``
made the one in the documentation.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import resize, to_pil_image

from anomalib_cdd.models.dtsnet.lightning_model import BETA as DTSNET_BETA
from anomalib_cdd.models.urd.lightning_model import BETA as URD_BETA
from anomalib_cdd.teachers.foreground import foreground_mask
from anomalib_cdd.teachers.synthesis import AnomalySynthesis
from anomalib_cdd.training.image_files import image_files
from anomalib_cdd.training.reading import read_image

COUNT, COLUMNS = 12, 4
GREY = 0.35


def draw(images: Tensor, names: list[str], textures: str | None, foreground: str) -> Tensor:
    """Return the picture of images ``(12, 3, H, W)``, in [0, 1], shape ``(3, 3 H, 8 W)``."""
    half = COUNT // 2
    parts = []
    for beta, two_masks, part in ((DTSNET_BETA, True, slice(0, half)), (URD_BETA, False, slice(half, None))):
        synthesis = AnomalySynthesis(textures, foreground, beta, two_masks)  # type: ignore[arg-type]  # argparse's choices
        parts.append(synthesis(images[part], names[part]))
    anomalous, masks = (torch.cat(part) for part in zip(*parts, strict=True))
    objects = torch.stack([foreground_mask(image, foreground) for image in images])[:, None]  # type: ignore[arg-type]
    shown = torch.where(masks > 0, 1.0, GREY * objects).expand_as(images)
    cells = torch.cat([anomalous, shown], dim=3)
    rows = [torch.cat(list(row), dim=2) for row in cells.split(COLUMNS)]
    return torch.cat(rows, dim=1)


def drawn_parts(size: int) -> Tensor:
    """Return twelve woven ellipses, each of its own size and shade, on a dark ground, ``(12, 3, size, size)``."""
    rows, columns = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 2, indexing="ij")
    high, wide, *shade = torch.empty(5, COUNT, 1, 1).uniform_(0.5, 0.8)
    inside = (rows / high) ** 2 + (columns / wide) ** 2 < 1
    weave = 0.12 * (torch.sin(40 * rows) + torch.sin(30 * columns))
    part = torch.stack([level + weave for level in shade], dim=1)
    noise = 0.02 * torch.randn(COUNT, 3, size, size)
    return (torch.where(inside[:, None], part, torch.tensor(0.15)) + noise).clamp(0, 1)


def main(arguments: list[str] | None = None) -> int:
    """Write the picture."""
    parser = argparse.ArgumentParser("python -m benchmarks.synthesis", description=__doc__)
    parser.add_argument(
        "folder", type=Path, nargs="?", help="images without anomalies, such as bottle/train/good; none: drawn parts"
    )
    parser.add_argument("--output", type=Path, default=Path("results/synthetic_anomalies.jpg"))
    parser.add_argument("--textures", help="folder of textures, such as DTD; without one: other images and noise")
    parser.add_argument("--foreground", choices=["auto", "grabcut", "otsu", "none"], default="auto")
    parser.add_argument("--size", type=int, default=160, help="side of an image in the picture")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.manual_seed(options.seed)
    if options.folder is None:
        images, names = drawn_parts(options.size), [str(number) for number in range(COUNT)]
    else:
        paths = image_files(options.folder)[:COUNT]
        if len(paths) < COUNT:
            parser.error(f"{options.folder} has {len(paths)} images; it takes {COUNT}.")
        images = torch.stack([resize(read_image(path), [options.size, options.size], antialias=True) for path in paths])
        names = [path.name for path in paths]
    picture = draw(images, names, options.textures, options.foreground)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    to_pil_image(picture).save(options.output, quality=85)
    print(options.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
