# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""One cell: a model trained once and measured without and with overlap. The grid's folder is not touched here."""

import gc
import math
import platform
import time
import traceback
from collections.abc import Callable
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from anomalib.callbacks import ModelCheckpoint
from anomalib.data import AnomalibDataModule
from anomalib.engine import Engine
from anomalib.models import AnomalibModule
from lightning.pytorch import seed_everything

from anomalib_cdd.evaluation.settings import evaluate
from anomalib_cdd.training.compat import plain_interrupts
from anomalib_cdd.training.precision import computes_in_bf16
from anomalib_cdd.version import __version__

from . import scores
from .course import Course, course_point
from .plan import Cell, Entry
from .records import Record
from .revision import commit

BF16, FP32 = "bf16-mixed", "32-true"
TIMED_BATCHES = 20
QUIET = {"enable_progress_bar": False, "enable_model_summary": False}

Components = tuple[AnomalibDataModule, AnomalibModule, dict[str, Any]]
Build = Callable[[Entry], Components]
"""Makes the data set, the model and the arguments of ``Engine`` of a cell's configuration."""


class Trained(NamedTuple):
    """What a cell's training came to."""

    measures: dict[str, float]
    course: list[dict[str, Any]]
    fit_seconds: float
    inference_seconds: float
    precision: str
    arrays: scores.Arrays


def run_cell(
    cell: Cell, build: Build, runs: Path | None = None, examples: bool = False
) -> tuple[Record, scores.Arrays | None]:
    """Train and measure one cell; a failure is part of its record. Nothing is written but the run, if it is kept.

    Args:
        cell: The cell.
        build: Makes what it is made of.
        runs: Folder that keeps the run, by the cell's key; ``None`` keeps none.
        examples: Whether to keep the heat maps of a few test images.

    Returns:
        The record, and what else the cell keeps; ``None`` of a cell that failed.
    """
    record = _names_of(cell)
    commit()  # of the code as it is loaded, before hours in which the checkout may change
    start, trained, arrays = time.perf_counter(), None, None
    try:
        trained = _train_and_measure(cell, build, runs, examples)
        arrays = trained.arrays
        record["status"] = "done"
    except Exception as error:  # noqa: BLE001  # whatever a model raises, the grid goes on
        record["status"] = "failed"
        record["error"] = _in_utf8(f"{type(error).__name__}: {error}")
        record["traceback"] = _in_utf8(traceback.format_exc())
    gc.collect()
    return record | {
        "measures": _without_nan(trained.measures) if trained else {},
        "course": list(map(_without_nan, trained.course)) if trained else [],
        "fit_seconds": round(trained.fit_seconds, 2) if trained else None,
        "inference_seconds": round(trained.inference_seconds, 5) if trained else None,
        "wall_seconds": round(time.perf_counter() - start, 2),
        "environment": _environment(cell) | {"precision": trained.precision if trained else _precision(cell)},
        "key": cell.key,
        "config": cell.config,
    }, arrays


def lost_record(cell: Cell, error: str, trace: str = "") -> Record:
    """Return the record of a cell of which nothing came back, as little as is known of where it ran."""
    return _names_of(cell) | {
        "status": "failed",
        "error": _in_utf8(error),
        "traceback": _in_utf8(trace),
        "measures": {},
        "course": [],
        "fit_seconds": None,
        "inference_seconds": None,
        "wall_seconds": 0.0,
        "environment": {"anomalib_cdd": __version__, "commit": commit()},
        "key": cell.key,
        "config": cell.config,
    }


def _in_utf8(text: str) -> str:
    """Return text that can be written: it may name a file whose name is not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def _names_of(cell: Cell) -> Record:
    return {
        "data": cell.data,
        "noise_ratio": cell.noise_ratio,
        "model": cell.model,
        "seed": cell.seed,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _train_and_measure(cell: Cell, build: Build, runs: Path | None, examples: bool) -> Trained:
    seed_everything(cell.seed, workers=True, verbose=False)
    datamodule, model, arguments = build(cell.config)
    # the measures are of raw scores
    model.post_processor = None
    trainer: dict[str, Any] = QUIET | arguments
    if "precision" in trainer:
        trainer["precision"] = _precision(cell)
    callbacks = list(trainer.pop("callbacks", None) or [])
    if runs is None:
        callbacks.append(ModelCheckpoint(save_top_k=0))
    every = cell.config.get("measure_every")
    course = Course(datamodule, every) if every else None
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) if runs is None else runs / cell.key
        engine = Engine(callbacks=callbacks + [course] * bool(course), default_root_dir=folder, **trainer)
        start = time.perf_counter()
        with plain_interrupts():
            engine.fit(model, datamodule=datamodule)
        fit_seconds = time.perf_counter() - start - (course.seconds if course else 0)
    # a fit that found the scores of an earlier one cost no less
    fit_seconds += getattr(getattr(datamodule, "cleaned", None), "seconds_saved", 0)
    device = _device(cell)
    evaluation = evaluate(model, datamodule, device=device, progress=False, keep_maps=True)
    measures = evaluation.measures | {"steps": engine.trainer.global_step}
    points = [*course.points, course_point(engine.trainer.current_epoch, measures)] if course else []
    return Trained(
        measures | scores.threshold_measures(evaluation, model, datamodule, device),
        points,
        fit_seconds,
        inference_seconds(model, datamodule, device),
        engine.trainer.precision,
        scores.cell_scores(evaluation, model, datamodule, examples),
    )


@torch.no_grad()
def inference_seconds(model: AnomalibModule, datamodule: AnomalibDataModule, device: torch.device) -> float:
    """Return the seconds an image that the model takes in fp32 for a batch of test images.

    The least of several: whatever else the machine does makes a batch slower, nothing makes it faster.
    """
    home = model.device  # when a fit ends Lightning leaves the model on the CPU
    images = next(iter(datamodule.test_dataloader())).image.to(device)
    model.to(device).eval()
    seconds = []
    for _ in range(1 + TIMED_BATCHES):
        start = time.perf_counter()
        model(images)
        if device.type != "cpu":
            torch.accelerator.synchronize()
        seconds.append(time.perf_counter() - start)
    model.to(home)
    return min(seconds[1:]) / len(images)


def _without_nan(measures: dict[str, Any]) -> dict[str, Any]:
    """Return the measures as JSON can hold them."""
    return {name: None if math.isnan(value) else value for name, value in measures.items()}


def _precision(cell: Cell) -> str:
    """Return what a cell runs in: fp32 where it asks for bf16 and the device would emulate it, hours for minutes."""
    asked = str(cell.config["trainer"].get("precision") or FP32)
    return FP32 if asked == BF16 and not computes_in_bf16(_device(cell)) else asked


def _device(cell: Cell) -> torch.device:
    """Return what a cell's trainer computes on."""
    if str(cell.config["trainer"].get("accelerator")).lower() == "cpu":
        return torch.device("cpu")
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def _environment(cell: Cell) -> dict[str, str]:
    return {
        "anomalib_cdd": __version__,
        "commit": commit(),
        "anomalib": version("anomalib"),
        "torch": version("torch"),
        "python": platform.python_version(),
        "device": _device(cell).type,
        "threads": str(torch.get_num_threads()),
    }
