# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Running a grid: each cell trains one model once and measures it without and with overlap.

What is finished never runs again, what failed is recorded and tried again next time. ``results.csv`` and the report
are written anew after each cell, from the cells of the present grid; what a cell prints goes to ``log.txt``.
"""

import gc
import logging
import math
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
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
from anomalib_cdd.training.files import write_text
from anomalib_cdd.training.precision import computes_in_bf16
from anomalib_cdd.version import __version__

from . import records as kept
from . import scores
from .course import Course, course_point
from .figures import draw
from .pages import to_html, to_markdown
from .plan import Cell, Entry
from .records import Record, is_done
from .report import make_report
from .revision import commit

BF16, FP32 = "bf16-mixed", "32-true"
QUIET = {"enable_progress_bar": False, "enable_model_summary": False}
LOGGERS = ("anomalib", "anomalib_cdd", "lightning.pytorch", "lightning.fabric", "lightning_fabric")

Components = tuple[AnomalibDataModule, AnomalibModule, dict[str, Any]]
Build = Callable[[Entry], Components]
"""Makes the data set, the model and the arguments of ``Engine`` of a cell's configuration."""


class Trained(NamedTuple):
    """What a cell's training came to."""

    measures: dict[str, float]
    course: list[dict[str, Any]]
    fit_seconds: float
    precision: str
    arrays: scores.Arrays


def run(cells: Sequence[Cell], build: Build, output: Path, *, keep_checkpoints: bool = False) -> int:
    """Run the cells that are not finished yet and write the results.

    Args:
        cells: Of the grid.
        build: Makes what a cell is made of.
        output: Folder of the results.
        keep_checkpoints: Whether to keep each cell's run with its checkpoint, in ``runs``.

    Returns:
        How many cells failed.
    """
    records = [kept.read_record(output, cell) for cell in cells]
    todo = [i for i, record in enumerate(records) if not is_done(record)]
    # the screen has one line per cell
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    print(f"{len(cells)} cells, {len(cells) - len(todo)} finished before; results in {output.resolve()}")
    for count, i in enumerate(todo):
        cell = cells[i]
        print(f"[{len(cells) - len(todo) + count + 1}/{len(cells)}] {cell}: ", end="", flush=True)
        examples = cell.seed == min(each.seed for each in cells)
        with _output_to_file(output / "log.txt", str(cell)):
            record, arrays = run_cell(cell, build, output / "runs" if keep_checkpoints else None, examples)
        if arrays is not None:
            scores.save(kept.record_path(output, cell).with_suffix(".npz"), arrays)
        kept.save_record(output, cell, record)
        records[i] = record
        _write_results(output, cells, records)
        left = _seconds_left(cells, records, todo[count + 1 :])
        print(f"{_outcome(record)}; {_duration(left)} left", flush=True)
    _write_results(output, cells, records, figures=True)
    failed = sum(record is not None and record["status"] == "failed" for record in records)
    print(f"{len(cells) - failed} finished, {failed} failed: {(output / 'report.html').resolve()}")
    return failed


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
    record: Record = {
        "data": cell.data,
        "noise_ratio": cell.noise_ratio,
        "model": cell.model,
        "seed": cell.seed,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    start, trained, arrays = time.perf_counter(), None, None
    try:
        trained = _train_and_measure(cell, build, runs, examples)
        arrays = trained.arrays
        record["status"] = "done"
    except Exception as error:  # noqa: BLE001  # whatever a model raises, the grid goes on
        record["status"] = "failed"
        record["error"] = f"{type(error).__name__}: {error}"
        record["traceback"] = traceback.format_exc()
    gc.collect()
    return record | {
        "measures": _without_nan(trained.measures) if trained else {},
        "course": list(map(_without_nan, trained.course)) if trained else [],
        "fit_seconds": round(trained.fit_seconds, 2) if trained else None,
        "wall_seconds": round(time.perf_counter() - start, 2),
        "environment": _environment() | {"precision": trained.precision if trained else _precision(cell)},
        "key": cell.key,
        "config": cell.config,
    }, arrays


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
        engine.fit(model, datamodule=datamodule)
        fit_seconds = time.perf_counter() - start - (course.seconds if course else 0)
    evaluation = evaluate(model, datamodule, progress=False, keep_maps=True)
    measures = evaluation.measures | {"steps": engine.trainer.global_step}
    points = [*course.points, course_point(engine.trainer.current_epoch, measures)] if course else []
    return Trained(
        measures | scores.threshold_measures(evaluation, model, datamodule),
        points,
        fit_seconds,
        engine.trainer.precision,
        scores.cell_scores(evaluation, model, datamodule, examples),
    )


def _without_nan(measures: dict[str, Any]) -> dict[str, Any]:
    """Return the measures as JSON can hold them."""
    return {name: None if math.isnan(value) else value for name, value in measures.items()}


def _precision(cell: Cell) -> str:
    """Return what a cell runs in: fp32 where it asks for bf16 and the device would emulate it, hours for minutes."""
    asked = str(cell.config["trainer"].get("precision") or FP32)
    return FP32 if asked == BF16 and not computes_in_bf16(_device()) else asked


def _device() -> torch.device:
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def _environment() -> dict[str, str]:
    return {
        "anomalib_cdd": __version__,
        "commit": commit(),
        "anomalib": version("anomalib"),
        "torch": version("torch"),
        "python": platform.python_version(),
        "device": _device().type,
        "threads": str(torch.get_num_threads()),
    }


@contextmanager
def _output_to_file(path: Path, title: str) -> Iterator[None]:
    """Append what a cell prints, progress bars and warnings included, to a file: the screen has one line per cell."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handlers = [handler for name in ("", *LOGGERS) for handler in logging.getLogger(name).handlers]
    # a handler keeps the stream that it was made with
    consoles = [
        each for each in handlers if isinstance(each, logging.StreamHandler) and each.stream in (sys.stdout, sys.stderr)
    ]
    with path.open("a", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        print(f"==== {title}", flush=True)
        before = [console.setStream(file) for console in consoles]
        try:
            yield
        finally:
            for console, stream in zip(consoles, before, strict=True):
                console.setStream(stream)


def _write_results(
    output: Path, cells: Sequence[Cell], records: Sequence[Record | None], figures: bool = False
) -> None:
    """Write what there is; the figures take seconds and are drawn once, when the run ends."""
    results, curves = kept.results_of(cells, records), kept.curves_of(cells, records)
    kept.write_tables(output, results, curves)
    report = make_report(results, len(cells), draw(results, curves, output) if figures else None)
    write_text(output / "report.md", to_markdown(report, output))
    write_text(output / "report.html", to_html(report))


def _seconds_left(cells: Sequence[Cell], records: Sequence[Record | None], todo: Sequence[int]) -> float:
    """Sum up what each cell to come took before on the same data and model, or else the mean of all cells."""
    known = [
        (cell, record["wall_seconds"])
        for cell, record in zip(cells, records, strict=True)
        if record is not None and is_done(record)
    ]
    if not known:
        return math.nan if todo else 0.0

    def estimate(cell: Cell) -> float:
        same = [seconds for other, seconds in known if (other.data, other.model) == (cell.data, cell.model)]
        taken = same or [seconds for _, seconds in known]
        return sum(taken) / len(taken)

    return sum(estimate(cells[i]) for i in todo)


def _outcome(record: Record) -> str:
    if record["status"] == "failed":
        return f"FAILED, {record['error'].splitlines()[0][:200]}"
    measures = {name: record["measures"].get(name) for name in ("image_AUROC", "image_AUROC_overlap", "noise_AP")}
    shown = ", ".join(f"{name} {value:.3f}" for name, value in measures.items() if value is not None)
    return f"{shown or 'nothing to measure'}, {_duration(record['wall_seconds'])}"


def _duration(seconds: float) -> str:
    if math.isnan(seconds):
        return "unknown time"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
