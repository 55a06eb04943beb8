# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Cells as the grid leaves them, without any training."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd
import pytest
from PIL import Image

if TYPE_CHECKING:
    from pathlib import Path

MAP_SIZE = 28
RESIZED = 32
MODELS = ("cdd", "rd", "patchcore")
CROPPED = {
    "class_path": "anomalib.pre_processing.PreProcessor",
    "init_args": {
        "transform": {
            "class_path": "torchvision.transforms.v2.Compose",
            "init_args": {
                "transforms": [
                    {"class_path": "torchvision.transforms.v2.Resize", "init_args": {"size": [RESIZED, RESIZED]}},
                    {"class_path": "torchvision.transforms.v2.CenterCrop", "init_args": {"size": [MAP_SIZE] * 2}},
                    {"class_path": "torchvision.transforms.v2.Normalize", "init_args": {"mean": [0.5], "std": [0.5]}},
                ]
            },
        }
    },
}


class MakeGrid(Protocol):
    def __call__(
        self,
        data: tuple[str, ...] = ...,
        noise_ratios: tuple[float, ...] = ...,
        models: tuple[str, ...] = ...,
        seeds: tuple[int, ...] = ...,
        masks: bool = ...,
    ) -> pd.DataFrame: ...


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Folder of a grid."""
    (tmp_path / "out" / "cells").mkdir(parents=True)
    return tmp_path / "out"


@pytest.fixture
def make_grid(output: Path, tmp_path: Path) -> MakeGrid:
    """Write what finished cells keep and return their results, seed by seed as the grid does."""

    def _make(
        data: tuple[str, ...] = ("tiles",),
        noise_ratios: tuple[float, ...] = (0.1, 0.0),
        models: tuple[str, ...] = MODELS,
        seeds: tuple[int, ...] = (0, 1),
        masks: bool = True,
    ) -> pd.DataFrame:
        rows = []
        for number, (seed, name, ratio, model) in enumerate(
            (seed, name, ratio, model) for seed in seeds for name in data for ratio in noise_ratios for model in models
        ):
            rng, key = np.random.default_rng(number), f"{number:016x}"
            arrays = kept_arrays(rng, ratio, tmp_path / "images" / name, masks)
            np.savez_compressed(output / "cells" / f"{key}.npz", **arrays)
            cell = {"data": name, "noise_ratio": ratio, "model": model, "seed": seed, "status": "done"}
            config = json.dumps(config_of(model))
            rows.append(cell | {"error": None, "key": key, "config": config} | measures(rng, ratio, masks))
        return pd.DataFrame(rows)

    return _make


def config_of(model: str) -> dict[str, Any]:
    return {
        "data": {"class_path": "anomalib_cdd.data.FolderNoisy", "init_args": {}},
        "model": {"class_path": f"some.{model}", "init_args": {"pre_processor": CROPPED}},
    }


def measures(rng: np.random.Generator, ratio: float, masks: bool) -> dict[str, float]:
    names = ["image_AUROC", "image_AUROC_overlap"]
    names += ["pixel_AUROC", "pixel_AUROC_overlap", "AUPRO", "AUPRO_overlap", "PRO", "PRO_overlap"] if masks else []
    names += ["injected_AUROC", "noise_AP", "noise_precision"] if ratio else []
    return {name: float(rng.uniform(0.5, 1)) for name in names} | {"out_of_sample": 1.0}


def kept_arrays(rng: np.random.Generator, ratio: float, images: Path, masks: bool) -> dict[str, Any]:
    """Return what :func:`anomalib_cdd.benchmark.scores.cell_scores` gathers, of 40 training and 30 test images."""
    n_injected = int(ratio * 40)
    labels, injected = np.arange(30 + n_injected) >= 15, np.arange(30 + n_injected) >= 30
    paths = [images / f"{i}.png" for i in range(3)]
    images.mkdir(parents=True, exist_ok=True)
    for path in paths:
        Image.new("RGB", (60, 40), "grey").save(path)
    arrays = {
        "train_suspicion": rng.normal(np.arange(40 + n_injected) >= 40).astype(np.float32),
        "train_out_of_sample": np.ones(40 + n_injected, dtype=bool),
        "train_is_noise": np.arange(40 + n_injected) >= 40,
        "test_scores": rng.normal(labels.astype(float)).astype(np.float32),
        "test_labels": labels.astype(np.int64),
        "test_injected": injected,
        "example_paths": np.array([str(path) for path in paths]),
        "example_names": np.array([path.name for path in paths]),
        "example_maps": rng.random((3, MAP_SIZE, MAP_SIZE), dtype=np.float32),
        "example_labels": np.array([1, 1, 0]),
    }
    if masks:
        arrays["example_masks"] = np.zeros((3, MAP_SIZE, MAP_SIZE), dtype=bool)
        arrays["example_masks"][:2, 5:12, 8:20] = True
    return arrays
