# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Kill command lines at random moments, start them again, and compare what they end in with an undisturbed run.

``python -m benchmarks.soak`` does it with a grid on two workers and with a fit of CrossPatch on a cleaned training
set, on images of noise. ``pytest -m slow tests/models/cdd/test_interruption.py`` does it with ``Cdd``.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from .workers import grid, records_of

LONGEST = 600.0
CLI = [sys.executable, "-W", "ignore", "-m", "anomalib_cdd"]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser("python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--what", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS), help="what is killed")
    parser.add_argument("--kills", type=int, default=50, help="how often each is killed")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    return parser.parse_args(arguments)


def live(command: list[str], seconds: float, log: Path) -> int:
    """Run a command for so many seconds at most, then kill it; return its exit status."""
    with log.open("a") as file:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return -signal.SIGKILL
        finally:
            process.kill()
            process.wait()


def grid_on_two_workers(folder: Path, images: Path) -> tuple[list[str], Callable[[], Any]]:
    """Return the command of a grid of four cells that writes to ``folder``, and what reads its records."""
    cells = grid(images, epochs=4) | {"seeds": [0, 1]}
    (folder / "grid.yaml").write_text(yaml.safe_dump(cells), encoding="utf-8")
    output = folder / "out"
    command = [*CLI, "fuad", "--config", str(folder / "grid.yaml"), "--output", str(output), "--workers", "2"]
    return command, lambda: records_of(output)


def crosspatch_cleaned(folder: Path, images: Path) -> tuple[list[str], Callable[[], Any]]:
    """Return the command of a fit that leaves a tenth of the images out, and what reads bank and list."""
    cells = grid(images, epochs=1)
    options = cells["models"]["rd"]["init_args"]
    data = cells["data"]["noise"]
    data["init_args"] |= {"clean": {"share": 0.1, "pre_trained": False, "image_size": [64, 64]}}
    config = {
        "model": {
            "class_path": "anomalib_cdd.CrossPatch",
            "init_args": {name: options[name] for name in ("backbone", "pre_trained", "pre_processor")},
        },
        "data": data,
        "default_root_dir": str(folder / "out"),
        "trainer": {"accelerator": "cpu"},
        "seed_everything": 0,
    }
    (folder / "fit.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")

    def result() -> Any:
        [run] = (folder / "out").rglob("latest")
        weights = torch.load(run / "weights" / "lightning" / "model.ckpt", weights_only=True)["state_dict"]
        [left_out] = run.rglob("cleaned.csv")
        return {name: value.tolist() for name, value in weights.items()}, left_out.read_text()

    return [*CLI, "train", "--config", str(folder / "fit.yaml")], result


SUBJECTS = {"grid": grid_on_two_workers, "crosspatch": crosspatch_cleaned}


def soak(subject: str, folder: Path, kills: int, rng: np.random.Generator) -> tuple[int, int]:
    """Kill a subject so many times.

    Returns:
        How many lives it had, and how many of the runs that came to their end differ from the undisturbed one.

    Raises:
        RuntimeError: If it ended by itself in anything but success, or did not end.
    """
    make, images, log = SUBJECTS[subject], folder / "images", folder / "log.txt"
    images.mkdir(parents=True)

    def start(name: str) -> tuple[list[str], Callable[[], Any]]:
        shutil.rmtree(images)  # `grid` writes the same ones
        images.mkdir()
        (folder / name).mkdir()
        return make(folder / name, images)

    command, result = start("whole")
    began = time.monotonic()
    if live(command, LONGEST, log):
        raise RuntimeError(log.read_text()[-2000:])
    seconds, whole = time.monotonic() - began, result()
    killed = lives = different = chain = 0
    while killed < kills:
        chain += 1
        command, result = start(f"chain{chain}")
        status = -signal.SIGKILL
        while status:
            lives, due = lives + 1, killed < kills
            status = live(command, rng.uniform(0, seconds) if due else LONGEST, log)
            killed += due and status == -signal.SIGKILL
            print(f"{subject} {chain}: life {lives} ended with {status}; {killed} of {kills} kills", flush=True)
            if status not in (0, -signal.SIGKILL) or (status and not due):
                raise RuntimeError(log.read_text()[-2000:])
        different += result() != whole
    return lives, different


def main(arguments: list[str] | None = None) -> int:
    """Kill each subject; return 1 if one ended in something else than undisturbed."""
    options, bad = parse(arguments), 0
    for subject in options.what:
        with tempfile.TemporaryDirectory() as name:
            lives, different = soak(subject, Path(name), options.kills, np.random.default_rng(options.seed))
        print(f"{subject}: {options.kills} kills, {lives} lives, {different} ends differ from the undisturbed one")
        bad += different
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
