# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""What rows share: how much is measured, images of noise, teachers with random weights, timed epochs."""

import gc
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from anomalib.callbacks import ModelCheckpoint
from anomalib.engine import Engine
from lightning.pytorch import Callback
from PIL import Image

from anomalib_cdd import Cdd, FolderNoisy

EPOCHS = 100
# of EPOCHS; domain students of the default learn in even epochs: e/E = .1 and .6 of these
POINTS = (10, 41, 60, 91)
WRN50 = {"backbone": "wide_resnet50_2.tv_in1k"}
LITE0 = {"backbone": "efficientnet_lite0_pypi", "relative_noise": True}
SWITCHES_OFF: dict[str, Any] = {
    "domain_construction": False,
    "confidence_guidance": False,
    "pseudo_normal": False,
    "confident_distillation": False,
    "regularization": 0.0,
    "feature_noise": 0.0,
}
QUIET: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}


class Setting(NamedTuple):
    """How much is measured: rounds, torch's threads (0 for its own choice), whether sizes are tiny."""

    repeats: int
    threads: int
    quick: bool

    @property
    def side(self) -> int:
        """Side of an image."""
        return 64 if self.quick else 224


class EpochClock(Callback):
    """Takes the seconds of each epoch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._start = 0.0

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.seconds.append(time.perf_counter() - self._start)


def make_images(folder: Path, count: int, side: int) -> FolderNoisy:
    """Write images of noise and return them as a training set, in batches of 16."""
    rng = np.random.default_rng(0)
    (folder / "good").mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "good" / f"{number:04}.png")
    return training_set(folder, min(16, count))


def training_set(folder: Path, batch: int) -> FolderNoisy:
    """Return images that were made before."""
    options: dict[str, Any] = {"test_split_mode": "none", "val_split_mode": "none", "num_workers": 0}
    return FolderNoisy(name="noise", root=folder, normal_dir="good", noise_ratio=0, train_batch_size=batch, **options)


def cdd(setting: Setting, teacher: dict[str, Any], **options: Any) -> Cdd:
    """Return an untrained model for images as they are made."""
    plain: dict[str, Any] = {"pre_trained": False, "audit": False, "evaluator": False, "visualizer": False}
    pre_processor = Cdd.configure_pre_processor((setting.side, setting.side), (setting.side, setting.side))
    return Cdd(**plain, **teacher, pre_processor=pre_processor, post_processor=False, **options)


def epoch_seconds(
    model: Any,
    data: Any,
    folder: Path,
    points: tuple[int, ...] = POINTS,
    callbacks: tuple[Callback, ...] = (),
    **trainer: Any,
) -> list[float]:
    """Train an epoch of warm-up and one at each point of the schedule, in Lightning's own loop; time the latter."""
    if isinstance(model, Cdd):
        epoch, at = model.epoch, (points[0], *points)
        model.epoch = lambda e, epochs: epoch(at[e], EPOCHS)  # type: ignore[method-assign]
    timer = EpochClock()
    callbacks = (timer, ModelCheckpoint(save_top_k=0), *callbacks)
    options: dict[str, Any] = {**QUIET, "accelerator": "cpu", "devices": 1, "callbacks": list(callbacks)} | trainer
    gc.collect()  # trainers and models refer to each other: the last ones would still be there
    engine = Engine(max_epochs=len(points) + 1, default_root_dir=folder, **options)
    engine.fit(model, datamodule=data)
    return timer.seconds[1:]
