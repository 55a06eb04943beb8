# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Seconds of CrossPatch and of anomalib's Patchcore for one batch, with the same teacher and as many patches.

``python -m benchmarks.crosspatch`` fills both banks with random numbers, as what they hold does not change the time.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import openvino
import torch
from anomalib.models import Patchcore

from anomalib_cdd import CrossPatch

from .measuring import take_turns

LEVELS = {"efficientnet_lite0_pypi": ["blocks.2.1.conv_pwl", "blocks.4.2.conv_pwl"]}


def make(backbone: str, images: int, patches: int, size: int) -> dict[str, Any]:
    """Return both models with banks of ``images`` x ``patches`` patches."""
    layers = LEVELS.get(backbone, ["layer2", "layer3"])
    common = {"backbone": backbone, "layers": layers, "pre_trained": False, "visualizer": False, "evaluator": False}
    ours, rival = CrossPatch(**common).eval(), Patchcore(**common).eval()
    ours.model.memory_bank = torch.rand(images, patches, ours.model.projection.shape[1])
    rival.model.memory_bank = torch.rand(images * patches, ours.model.projection.shape[0])
    return {"CrossPatch": ours, "Patchcore": rival}


def compiled(model: Any, folder: Path, batch: torch.Tensor) -> Callable[[], Any]:
    """Return a call of the model's OpenVINO export."""
    path = model.to_openvino(folder / type(model).__name__, input_size=tuple(batch.shape[-2:]))
    network, images = openvino.Core().compile_model(path, "CPU"), batch.numpy()
    return lambda: network(images)


@torch.no_grad()
def main(arguments: list[str] | None = None) -> int:
    """Print a row for each backend."""
    parser = argparse.ArgumentParser("python -m benchmarks.crosspatch", description=__doc__)
    parser.add_argument("--backbone", default="efficientnet_lite0_pypi")
    parser.add_argument("--images", type=int, default=100, help="training images in the bank")
    parser.add_argument("--patches", type=int, default=78, help="patches of each: 10 %% of 28 x 28")
    parser.add_argument("--size", type=int, default=224, help="side of the images")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(arguments)
    models = make(options.backbone, options.images, options.patches, options.size)
    batch = torch.rand(options.batch, 3, options.size, options.size)
    print("| backend | CrossPatch, s | Patchcore, s | ratio |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        sides = {
            "torch": {name: lambda model=model: model.model(batch) for name, model in models.items()},
            "OpenVINO": {name: compiled(model, Path(folder), batch) for name, model in models.items()},
        }
        for backend, calls in sides.items():
            times = {name: median(rounds) for name, rounds in take_turns(calls, options.repeats).items()}
            ours, rival = times["CrossPatch"], times["Patchcore"]
            print(f"| {backend} | {ours:.3f} | {rival:.3f} | {ours / rival:.2f} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
