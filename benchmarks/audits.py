# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""What a look at a folder without training costs, by its number of images."""

import resource
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

from .measuring import Comparison, clock
from .setting import Setting, make_images

COUNTS = (250, 500, 1000)


def audit(setting: Setting, folder: Path) -> list[Comparison]:
    """`anomalib-cdd audit --data`, the whole command, and its growth with twice the images of 256 x 256, Lite0."""
    counts, side = ((12, 24), 64) if setting.quick else (COUNTS, 256)
    comparisons, seconds = [], {}
    for count in counts:
        images = folder / str(count)
        make_images(images, count, side)
        command = [sys.executable, "-m", "anomalib_cdd", "audit", "--data", str(images), "--output", f"{images}_page"]
        seconds[count] = clock(lambda command=command: subprocess.run(command, check=True, capture_output=True))
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9  # the largest child's so far
        aims = (600, 4) if count == COUNTS[-1] else (None, None)
        comparisons += [
            Comparison(f"{count:,} images", [seconds[count]], aim=aims[0]),
            Comparison(f"{count:,} images, peak memory", [peak], aim=aims[1], unit="GB"),
        ]
    comparisons += [
        Comparison(f"{many:,} images / {few:,}", [seconds[many]], [seconds[few]], aim=2.1)
        for few, many in pairwise(counts)
    ]
    return comparisons
