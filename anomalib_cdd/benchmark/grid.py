# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""The comparison grid of fully unsupervised anomaly detection: models x data sets x noise ratios x seeds.

A cell trains one model once and measures it without and with overlap. Each finished cell is a JSON file named by the
hash of its full configuration, so that a grid can be stopped, extended and resumed: what is finished never runs
again, what failed is recorded and tried again next time. ``results.csv`` and the report are written anew after each
cell from the cells of the present grid; what a cell prints goes to ``log.txt``.
"""

import copy
import gc
import hashlib
import json
import logging
import math
import os
import platform
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch
from anomalib.callbacks import ModelCheckpoint
from anomalib.engine import Engine
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace
from lightning.pytorch import seed_everything
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from anomalib_cdd.cli.entries import ConfigError, build, resolve_data, resolve_model
from anomalib_cdd.evaluation.settings import evaluate
from anomalib_cdd.thresholds.post_processing import FALSE_ALARM_RATE
from anomalib_cdd.training.precision import computes_in_bf16

from . import scores
from .figures import draw
from .pages import to_html, to_markdown
from .report import make_report

# What the grid itself sets, and from which of its keys.
SET_BY_GRID = {"data": {"noise_ratio": "noise_ratios", "noise_seed": "seeds"}, "models": {"seed": "seeds"}}
# Options that came after results that are still good: at these values they change nothing and are not hashed.
WITHOUT_EFFECT: dict[str, dict[str, Any]] = {
    "data": {"exclude": None},
    "model": {
        "audit": True,
        "domain_passes": 1,
        "domain_statistics": "running",
        "domain_parallel": True,
        "autocast": "off",
    },
}
BF16, FP32 = "bf16-mixed", "32-true"
QUIET = {"enable_progress_bar": False, "enable_model_summary": False}

# What a cell's record has to have, and of which kind.
RECORD_FIELDS: dict[str, Any] = {"key": str, "wall_seconds": int | float, "environment": dict, "config": dict}
OUTCOME_FIELDS: dict[str, dict[str, Any]] = {"done": {"measures": dict}, "failed": {"error": str}}


@dataclass(frozen=True)
class Cell:
    """One training and its measures.

    Attributes:
        data: Name of the data set in the grid.
        noise_ratio: Injected images per normal training image.
        model: Name of the model in the grid.
        seed: Seed of the injection and of the training.
        config: Full configuration, defaults included; ``${data_root}`` stays unresolved, so that a result does not
            depend on where the images lie.
    """

    data: str
    noise_ratio: float
    model: str
    seed: int
    config: dict[str, Any]

    @property
    def key(self) -> str:
        """Hash of the full configuration; the names are not part of it."""
        config = copy.deepcopy(self.config)
        for part, options in WITHOUT_EFFECT.items():
            for name, value in options.items():
                if config[part]["init_args"].get(name) == value:
                    config[part]["init_args"].pop(name, None)
        if _asked_precision(config) != FP32:
            # the model's own choice is for a trainer that makes none
            config["model"]["init_args"].pop("autocast", None)
        text = json.dumps({"seed": self.seed, "config": config}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __str__(self) -> str:
        return f"{self.data} noise {self.noise_ratio:g} {self.model} seed {self.seed}"


def get_parser() -> ArgumentParser:
    """Return the parser of ``anomalib-cdd fuad``."""
    parser = ArgumentParser(description="Compare models on training data that is not clean: a resumable grid.")
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="YAML file with any of the options below.")
    parser.add_argument("--output", type=Path, default=Path("results/fuad"), help="Folder of the results.")
    parser.add_argument("--seeds", type=list[int], default=[0, 1, 2], help="Seeds of injection and training.")
    parser.add_argument("--noise_ratios", type=list[float], default=[0.1], help="Injected per normal training image.")
    parser.add_argument("--data", type=dict[str, dict], help="Data sets by name: class_path, init_args.")
    parser.add_argument("--models", type=dict[str, dict], help="Models by name: class_path, init_args, trainer.")
    parser.add_argument("--data_root", type=str | None, help="Replaces ${data_root} in the data sets' init_args.")
    parser.add_argument("--checkpoints", type=bool, default=False, help="Keep each cell's run with its checkpoint.")
    parser.add_argument("--dry-run", "--dry_run", dest="dry_run", action="store_true", help="List the cells and stop.")
    return parser


def run(config: Namespace) -> int:
    """Run the cells that are not finished yet and write the results.

    Args:
        config: What :func:`get_parser` parses.

    Returns:
        How many cells failed.

    Raises:
        ConfigError: If the configuration is wrong, before anything runs.
    """
    cells = plan(config)
    folder = _folder(config)
    records = [_read_record(folder, cell) for cell in cells]
    todo = [i for i, record in enumerate(records) if not _is_done(record)]
    if config.dry_run:
        for i, cell in enumerate(cells):
            print("to do " if i in todo else "done  ", cell)
        return 0
    # the screen has one line per cell
    for name in ("anomalib", "anomalib_cdd", "lightning.pytorch", "lightning.fabric", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    print(f"{len(cells)} cells, {len(cells) - len(todo)} finished before; results in {config.output.resolve()}")
    for count, i in enumerate(todo):
        print(f"[{len(cells) - len(todo) + count + 1}/{len(cells)}] {cells[i]}: ", end="", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        with _output_to_file(config.output / "log.txt", str(cells[i])):
            records[i] = record = _run_cell(cells[i], config)
        _write_atomically(folder / f"{cells[i].key}.json", json.dumps(record, indent=1))
        _write_results(config.output, cells, records)
        left = _seconds_left(cells, records, todo[count + 1 :])
        print(f"{_outcome(record)}; {_duration(left)} left", flush=True)
    _write_results(config.output, cells, records, figures=True)
    failed = sum(record is not None and record["status"] == "failed" for record in records)
    print(f"{len(cells) - failed} finished, {failed} failed: {(config.output / 'report.html').resolve()}")
    return failed


def _folder(config: Namespace) -> Path:
    return config.output / "cells"


def plan(config: Namespace) -> list[Cell]:
    """Check the whole configuration and return its cells, seed by seed.

    Raises:
        ConfigError: Naming the entry and the key at fault.
    """
    for key in ("data", "models", "seeds", "noise_ratios"):
        if not getattr(config, key):
            msg = f"The grid's {key!r} is empty. Give at least one, see configs/fuad.yaml."
            raise ConfigError(msg)
    data, models = {}, {}
    for name, entry in config.data.items():
        _refuse_set_by_grid("data", name, entry)
        data[name] = resolve_data(f"data.{name}", entry)
        _fill_data_root(data[name], config.data_root, f"data.{name}")
    for name, entry in config.models.items():
        _refuse_set_by_grid("models", name, entry)
        models[name] = resolve_model(f"models.{name}", entry)
    cells = []
    for seed, name, ratio, model in product(config.seeds, data, config.noise_ratios, models):
        cell_config = copy.deepcopy({"data": data[name], "model": models[model][0], "trainer": models[model][1]})
        cell_config["data"]["init_args"] |= {"noise_ratio": ratio, "noise_seed": seed}
        if "seed" in cell_config["model"]["init_args"]:
            cell_config["model"]["init_args"]["seed"] = seed
        cells.append(Cell(name, ratio, model, seed, cell_config))
    return cells


def _refuse_set_by_grid(kind: str, name: str, entry: dict[str, Any]) -> None:
    for key, instead in SET_BY_GRID[kind].items():
        if key in (entry.get("init_args") or {}):
            msg = f"{kind}.{name}.init_args.{key}: the grid sets it. Use the grid's own {instead!r}."
            raise ConfigError(msg)


def _fill_data_root(entry: dict[str, Any], data_root: str | None, name: str) -> dict[str, Any]:
    variables = {} if data_root is None else {"data_root": data_root}
    try:
        filled: Any = OmegaConf.to_container(OmegaConf.create(variables | {"entry": entry}), resolve=True)
    except OmegaConfBaseException as error:
        msg = f"{name}: {str(error).splitlines()[0]}. Pass --data_root DIR."
        raise ConfigError(msg) from error
    return filled["entry"]


def _run_cell(cell: Cell, config: Namespace) -> dict[str, Any]:
    """Train and measure; a failure is part of the record."""
    record: dict[str, Any] = {
        "data": cell.data,
        "noise_ratio": cell.noise_ratio,
        "model": cell.model,
        "seed": cell.seed,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    start = time.perf_counter()
    try:
        record["measures"], record["fit_seconds"], arrays = _train_and_measure(cell, config)
        scores.save(_folder(config) / f"{cell.key}.npz", arrays)
        record["status"] = "done"
    except Exception as error:  # noqa: BLE001  # whatever a model raises, the grid goes on
        record["status"] = "failed"
        record["error"] = f"{type(error).__name__}: {error}"
        record["traceback"] = traceback.format_exc()
    record["wall_seconds"] = round(time.perf_counter() - start, 2)
    gc.collect()
    chosen = cell.config["model"]["init_args"].get("autocast") == "auto" and _precision(cell) == FP32
    computed = f"{FP32}, autocast" if chosen and computes_in_bf16(_device()) else _precision(cell)
    environment = _environment() | {"precision": computed}
    return record | {"key": cell.key, "config": cell.config, "environment": environment}


def _train_and_measure(cell: Cell, config: Namespace) -> tuple[dict[str, float | None], float, scores.Arrays]:
    seed_everything(cell.seed, workers=True, verbose=False)
    filled = _fill_data_root(cell.config, config.data_root, f"data.{cell.data}")
    if "audit" in filled["model"]["init_args"]:
        filled["model"]["init_args"]["audit"] = False
    components = build(**filled)
    # the measures are of raw scores
    components.model.post_processor = None
    trainer: dict[str, Any] = QUIET | components.trainer
    if "precision" in trainer:
        trainer["precision"] = _precision(cell)
    callbacks = list(trainer.pop("callbacks", None) or [])
    if not config.checkpoints:
        callbacks.append(ModelCheckpoint(save_top_k=0))
    with TemporaryDirectory() as scratch:
        root = config.output / "runs" / cell.key if config.checkpoints else Path(scratch)
        engine = Engine(callbacks=callbacks, default_root_dir=root, **trainer)
        start = time.perf_counter()
        engine.fit(components.model, datamodule=components.datamodule)
        fit_seconds = round(time.perf_counter() - start, 2)
        evaluation = evaluate(components.model, components.datamodule, progress=False, keep_maps=True)
    arrays = scores.cell_scores(
        evaluation, components.model, components.datamodule, examples=cell.seed == min(config.seeds)
    )
    measured = evaluation.measures | scores.threshold_measures(arrays)
    # JSON has no NaN
    measures = {name: None if math.isnan(value) else value for name, value in measured.items()}
    return measures, fit_seconds, arrays


def _asked_precision(config: dict[str, Any]) -> str:
    return str(config["trainer"].get("precision") or FP32)


def _precision(cell: Cell) -> str:
    """Return what a cell runs in: fp32 where it asks for bf16 and the device would emulate it, hours for minutes."""
    asked = _asked_precision(cell.config)
    return FP32 if asked == BF16 and not computes_in_bf16(_device()) else asked


def _device() -> torch.device:
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def _environment() -> dict[str, str]:
    return {
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
    with path.open("a", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        print(f"==== {title}", flush=True)
        yield


def _read_record(folder: Path, cell: Cell) -> dict[str, Any] | None:
    path = folder / f"{cell.key}.json"
    for place in (folder.parent, folder):
        if place.is_file():
            msg = f"{place} is a file where the grid's results need a folder. Move it, or give another --output."
            raise ConfigError(msg)
    try:
        if not path.exists():
            return None
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # not JSON, not text
        raise _not_a_record(path, str(error)) from error
    wrong = _what_is_wrong(record, cell.key)
    if wrong:
        raise _not_a_record(path, wrong)
    return record | {"measures": _judged(record["measures"], path)} if _is_done(record) else record


def _judged(measures: dict[str, float | None], path: Path) -> dict[str, float | None]:
    """Measure the thresholds of a cell that ran under another default, or before there were any."""
    if measures.get("false_alarm_rate") == FALSE_ALARM_RATE:
        return measures
    try:
        arrays = scores.load(path.with_suffix(".npz"))
    except ValueError:  # the report names it
        arrays = None
    return measures | (scores.threshold_measures(arrays) if arrays else {})


def _not_a_record(path: Path, why: str) -> ConfigError:
    msg = f"{path} is not the record of a cell: {why}. Nothing was changed. Delete it and the cell runs again."
    return ConfigError(msg)


def _what_is_wrong(record: Any, key: str) -> str:
    """Say why this is not what :func:`_run_cell` wrote for a cell; empty if it is."""
    if not isinstance(record, dict):
        return "it holds no mapping"
    status = record.get("status")
    if not isinstance(status, str) or status not in OUTCOME_FIELDS:
        return f"its status is {status!r} and neither {' nor '.join(OUTCOME_FIELDS)}"
    fields = RECORD_FIELDS | OUTCOME_FIELDS[status]
    missing = [name for name, kind in fields.items() if not isinstance(record.get(name), kind)]
    if missing:
        return f"its {missing[0]!r} is missing or of the wrong kind"
    if record["key"] != key:
        return f"its key is {record['key']!r}"
    if not all("class_path" in (record["config"].get(part) or {}) for part in ("data", "model")):
        return "its 'config' names no data or no model"
    numbers = record.get("measures", {}).values()
    return "" if all(isinstance(value, int | float | None) for value in numbers) else "a measure is not a number"


def _is_done(record: dict[str, Any] | None) -> bool:
    return record is not None and record["status"] == "done"


def _write_atomically(path: Path, text: str) -> None:
    """Write beside and rename: a killed run leaves the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _write_results(
    output: Path, cells: list[Cell], records: list[dict[str, Any] | None], figures: bool = False
) -> None:
    """Write what there is; the figures take seconds and are drawn once, when the run ends."""
    rows = [
        {
            "data": cell.data,
            "noise_ratio": cell.noise_ratio,
            "model": cell.model,
            "seed": cell.seed,
            "status": record["status"],
            **record.get("measures", {}),
            "fit_seconds": record.get("fit_seconds"),
            "wall_seconds": record["wall_seconds"],
            "error": record.get("error"),
            "precision": _asked_precision(record["config"]),  # of a cell that ran before it was recorded
            **record["environment"],
            "key": record["key"],
            "config": json.dumps(record["config"], sort_keys=True),
        }
        for cell, record in zip(cells, records, strict=True)
        if record is not None
    ]
    results = pd.DataFrame(rows)
    _write_atomically(output / "results.csv", results.to_csv(index=False))
    report = make_report(results, len(cells), draw(results, output) if figures else None)
    _write_atomically(output / "report.md", to_markdown(report, output))
    _write_atomically(output / "report.html", to_html(report))


def _seconds_left(cells: list[Cell], records: list[dict[str, Any] | None], todo: list[int]) -> float:
    """Sum up what each cell to come took before on the same data and model, or else the mean of all cells."""
    known = [
        (cell, record["wall_seconds"])
        for cell, record in zip(cells, records, strict=True)
        if record is not None and _is_done(record)
    ]
    if not known:
        return math.nan if todo else 0.0

    def estimate(cell: Cell) -> float:
        same = [seconds for other, seconds in known if (other.data, other.model) == (cell.data, cell.model)]
        taken = same or [seconds for _, seconds in known]
        return sum(taken) / len(taken)

    return sum(estimate(cells[i]) for i in todo)


def _outcome(record: dict[str, Any]) -> str:
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
