# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""A Cdd that trains in seconds: an untrained tiny teacher, 64 x 64 images, one thread of loading."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from anomalib.engine import Engine
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import seed_everything
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anomalib_cdd import Cdd, MVTecNoisy

SIZE = (64, 64)


def small_pre_processor() -> PreProcessor:
    return PreProcessor(Compose([Resize(SIZE, antialias=True), Normalize(mean=[0.5] * 3, std=[0.5] * 3)]))


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Cdd]:
    def make(**options: Any) -> Cdd:
        seed_everything(0, verbose=False)
        defaults = {"backbone": "test_resnet", "pre_trained": False, "student_width": 8, "visualizer": False}
        defaults |= {"audit": False}
        return Cdd(**{**defaults, "pre_processor": small_pre_processor(), **options})

    return make


@pytest.fixture(scope="session")
def make_image_model(make_model: Callable[..., Cdd]) -> Callable[..., Cdd]:
    """Make a Cdd with confident images, as the paper has them, in place of confident patches."""
    return partial(make_model, max_confident=0.5, confident_patches=0.0)


@pytest.fixture(scope="session")
def make_data(mvtec_root: Path) -> Callable[..., MVTecNoisy]:
    def make(**options: Any) -> MVTecNoisy:
        defaults = {"root": mvtec_root, "category": "bottle", "noise_ratio": 0.25, "val_split_mode": "none"}
        return MVTecNoisy(**{**defaults, "train_batch_size": 4, "eval_batch_size": 4, "num_workers": 0, **options})

    return make


@pytest.fixture
def make_engine(tmp_path: Path) -> Callable[..., Engine]:
    def make(max_epochs: int = 2, **options: Any) -> Engine:
        defaults = {"logger": False, "accelerator": "cpu", "devices": 1, "enable_progress_bar": False}
        defaults |= {"enable_model_summary": False, "default_root_dir": tmp_path / "results"}
        return Engine(max_epochs=max_epochs, **{**defaults, **options})

    return make
