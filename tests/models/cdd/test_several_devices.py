# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Two gloo processes train what one device trains."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from several_devices import train

SCRIPT = Path(__file__).with_name("several_devices.py")
# two ranks that begin a second fit at once race for the same new folder of anomalib's
APART = {"folder_of_rank": {"0": "first", "1": "second"}}
# the paper's confident images in place of patches
IMAGES = {"max_confident": 0.5, "confident_patches": 0.0}
CASES = [
    {"name": "disk", "options": {"cache_memory_gb": 0}, "epochs": 1},
    {"name": "forked", "no_batch_norm": True, "options": {"domain_students": "forked", **IMAGES}, **APART},
    {"name": "uncached", "no_batch_norm": True, "options": {"cache": False}, **APART},
    {
        "name": "persistent",
        "no_batch_norm": True,
        "options": {"domains": [3], "domain_students": "persistent"},
        **APART,
    },
    # gradients are averaged before they are unscaled: the ranks' scalers see the same, and do not drift apart
    {"name": "half", "no_batch_norm": True, "precision": "16-mixed", "epochs": 3, **APART},
    {"name": "rd", "no_batch_norm": True, "options": {"pseudo_normal": False, "domain_construction": False}, **APART},
]
NAMES = [str(case["name"]) for case in CASES]
SECONDS = 300


def start(devices: int, root: Path, output: Path, cases: list[dict[str, Any]]) -> subprocess.Popen:
    output.mkdir(parents=True, exist_ok=True)
    arguments = [sys.executable, str(SCRIPT), str(devices), str(root), str(output), json.dumps(cases)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def ends(mvtec_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of what one device and two devices ended with."""
    output = tmp_path_factory.mktemp("devices")
    (output / "1").mkdir()
    run = start(2, mvtec_root, output / "2", CASES)
    for case in CASES:
        train(1, mvtec_root, output / "1", case)
    said, _ = run.communicate(timeout=SECONDS)
    assert run.returncode == 0, said
    return output


def end(ends: Path, devices: int, name: str, rank: int = 0) -> dict[str, Any]:
    return torch.load(ends / str(devices) / f"{name}.rank{rank}.pt", weights_only=True)


@pytest.mark.parametrize("name", NAMES)
def test_ranks_end_with_the_same_model_and_history(ends: Path, name: str) -> None:
    first, second = end(ends, 2, name), end(ends, 2, name, rank=1)
    for key, value in first["student"].items():
        assert torch.equal(value, second["student"][key]), key
    for key in ("cross_domain", "scale"):
        for ours, theirs in zip(first["history"][key], second["history"][key], strict=True):
            assert torch.equal(ours.nan_to_num(), theirs.nan_to_num())


@pytest.mark.parametrize("name", [name for name in NAMES if name not in {"disk", "half"}])
def test_two_devices_give_the_model_of_one(ends: Path, name: str) -> None:
    # without batch statistics a batch in two shares is the batch; rounding alone differs
    # (Adam's first steps are as long for a gradient that rounding made as for any other: a few weights may differ)
    one, two = end(ends, 1, name)["student"], end(ends, 2, name)["student"]
    apart = torch.cat([(one[key] - two[key]).flatten().abs() for key in one])
    assert apart.quantile(0.95) < 1e-3, (apart.max(), apart.mean())
    assert apart.mean() < 3e-4, (apart.max(), apart.mean())


def test_ranks_write_into_one_results_folder(ends: Path) -> None:
    roots = {end(ends, 2, "disk", rank)["root"] for rank in (0, 1)}
    assert len(roots) == 1
    root = Path(roots.pop())
    assert [folder.name for folder in root.parent.iterdir() if not folder.is_symlink()] == [root.name]
    assert (root.parent / "latest").resolve() == root
    assert list(root.rglob("*.ckpt"))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_dies_ends_the_run(mvtec_root: Path, tmp_path: Path, rank: int) -> None:
    run = start(2, mvtec_root, tmp_path, [{"name": "dead", "dies": rank, "epochs": 3}])
    said, _ = run.communicate(timeout=SECONDS)
    assert run.returncode != 0, said
    pids = [int((tmp_path / f"pid{each}").read_text()) for each in (0, 1)]
    deadline = time.monotonic() + SECONDS
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_training_goes_on_with_another_number_of_devices(ends: Path, mvtec_root: Path, tmp_path: Path) -> None:
    checkpoint = next((ends / "2" / "disk").rglob("*.ckpt"))
    train(1, mvtec_root, tmp_path, {"name": "resumed", "epochs": 2, "ckpt_path": str(checkpoint)})
    resumed = torch.load(tmp_path / "resumed.rank0.pt", weights_only=True)["history"]["cross_domain"]
    assert len(resumed) == 2
    assert torch.equal(resumed[0], end(ends, 2, "disk")["history"]["cross_domain"][0])
