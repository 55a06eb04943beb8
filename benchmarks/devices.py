# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Epochs of several processes, one device each: a program of its own, which Lightning starts once a device.

``python -m benchmarks.devices FOLDER '{"devices": 2, "threads": 1, "quick": false}'``
prints the seconds of its epochs in JSON.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from .setting import LITE0, QUIET, Setting, cdd, epoch_seconds, training_set


def main(folder: Path, devices: int, threads: int, quick: bool) -> None:
    """Train epochs at the points of the schedule; the first process prints their seconds."""
    torch.set_num_threads(threads)
    data = training_set(folder, 4 if quick else 16)
    model = cdd(Setting(1, threads, quick), LITE0)
    options: dict[str, Any] = QUIET | {"devices": devices, "strategy": "ddp" if devices > 1 else "auto"}
    seconds = epoch_seconds(model, data, folder / os.environ.get("LOCAL_RANK", "0"), **options)
    if model.global_rank == 0:
        print(json.dumps(seconds))


if __name__ == "__main__":
    main(Path(sys.argv[1]), **json.loads(sys.argv[2]))
