# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Generated images, the same in every run: a woven grey texture, good or with a white scratch or a black spot."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

SIZE = 64


class Sample(NamedTuple):
    image: Image.Image
    mask: Image.Image


def make_sample(number: int, kind: str = "good", size: int = SIZE) -> Sample:
    """Woven grey texture with a white scratch or a black spot, and the mask of that defect."""
    rng = np.random.default_rng([number, len(kind)])
    rows, columns = np.mgrid[:size, :size]
    texture = 120 + 30 * np.sin(rows / 3 + rng.uniform(0, 6)) + 30 * np.sin(columns / 4 + rng.uniform(0, 6))
    pixels = np.stack([texture] * 3, axis=-1) + rng.normal(0, 5, (size, size, 3))
    mask = np.zeros((size, size), dtype=bool)
    row, column = rng.integers(size // 4, 3 * size // 4, 2)
    if kind == "scratch":
        mask = (abs(rows - row - (columns - column) // 2) < 3) & (abs(columns - column) < size // 4)
        pixels[mask] = 250
    elif kind == "spot":
        mask = (rows - row) ** 2 + (columns - column) ** 2 < (size // 8) ** 2
        pixels[mask] = 5
    return Sample(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), Image.fromarray((mask * 255).astype(np.uint8)))


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def make_tree(folder: Path, good: str = "good", mask: str = "ground_truth/{kind}/{number:03}_mask.png") -> None:
    """Write ``train/<good>``, ``test/<good>``, ``test/<kind>`` and the masks of an MVTec-like category."""
    for number in range(12):
        save(make_sample(number).image, folder / "train" / good / f"{number:03}.png")
    for number in range(6):
        save(make_sample(100 + number).image, folder / "test" / good / f"{number:03}.png")
    for kind, count in (("scratch", 8), ("spot", 6)):
        for number in range(count):
            sample = make_sample(200 + number, kind)
            save(sample.image, folder / "test" / kind / f"{number:03}.png")
            save(sample.mask, folder / mask.format(kind=kind, number=number))
