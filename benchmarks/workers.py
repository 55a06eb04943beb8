# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""The grid by workers against the grid in one process, each of one thread: the whole command's seconds and results.

``python -m benchmarks.workers`` runs twelve small cells both ways, on images of noise, and compares every cell.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from .measuring import Comparison, clock, environment

IMAGES, SIDE = 24, 64
CELLS = 12
TIMED = {"started", "fit_seconds", "inference_seconds", "wall_seconds"}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser("python -m benchmarks.workers", description=__doc__)
    parser.add_argument("--workers", type=int, default=2, help="workers, of one thread each")
    parser.add_argument("--epochs", type=int, default=100, help="of each cell: they make it longer")
    return parser.parse_args(arguments)


def grid(folder: Path, epochs: int) -> dict[str, Any]:
    """Write images of noise, and return the grid: CDD and RD on an untrained Lite0, six seeds."""
    import numpy as np
    from PIL import Image

    from .setting import SWITCHES_OFF

    rng = np.random.default_rng(0)
    for name in ("good", "good_test", "bad"):
        (folder / name).mkdir()
        for number in range(IMAGES if name == "good" else IMAGES // 2):
            pixels = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:03}.png")
    data = {"name": "noise", "root": str(folder), "normal_dir": "good", "normal_test_dir": "good_test"}
    data |= {"abnormal_dir": "bad", "num_workers": 0, "train_batch_size": 8}
    model: dict[str, Any] = {
        "backbone": "efficientnet_lite0_pypi",
        "pre_trained": False,
        "evaluator": False,
        "visualizer": False,
    }
    resize = {"class_path": "torchvision.transforms.v2.Resize", "init_args": {"size": [SIDE, SIDE]}}
    compose = {"class_path": "torchvision.transforms.v2.Compose", "init_args": {"transforms": [resize]}}
    model["pre_processor"] = {
        "class_path": "anomalib.pre_processing.PreProcessor",
        "init_args": {"transform": compose},
    }
    trainer = {"max_epochs": epochs, "accelerator": "cpu"}
    return {
        "seeds": list(range(CELLS // 2)),
        "noise_ratios": [0.1],
        "data": {"noise": {"class_path": "anomalib_cdd.data.FolderNoisy", "init_args": data}},
        "models": {
            name: {"class_path": "anomalib_cdd.Cdd", "init_args": model | options, "trainer": trainer}
            for name, options in (("cdd", {}), ("rd", SWITCHES_OFF))
        },
    }


def run(config: Path, output: Path, *arguments: str) -> dict[str, dict[str, Any]]:
    """Run the grid by the command line; return its records, see :func:`records_of`."""
    command = [sys.executable, "-W", "ignore", "-m", "anomalib_cdd", "fuad", "--config", str(config)]
    command += ["--output", str(output), *arguments]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return records_of(output)


def records_of(output: Path) -> dict[str, dict[str, Any]]:
    """Return the records in a grid's folder by key, without what is timed."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in (output / "cells").glob("*.json")]
    return {record["key"]: {name: record[name] for name in record.keys() - TIMED} for record in records}


def main(arguments: list[str] | None = None) -> int:
    """Run both sides; return 1 if their results differ."""
    options, records = parse(arguments), {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        config = folder / "grid.yaml"
        config.write_text(yaml.safe_dump(grid(folder / "images", options.epochs)), encoding="utf-8")

        def side(label: str, *extra: str) -> float:
            def work() -> None:
                records[label] = run(config, folder / label, *extra)

            return clock(work)

        comparison = Comparison(
            f"{options.workers} workers / one process, {CELLS} cells, one thread each",
            [side("workers", "--workers", str(options.workers))],
            [side("one")],
            aim=0.6,
        )
    same = records["workers"] == records["one"]
    print(json.dumps(comparison.to_dict() | {"same results": same, "environment": environment()}, indent=1))
    return int(not same)


if __name__ == "__main__":
    sys.exit(main())
