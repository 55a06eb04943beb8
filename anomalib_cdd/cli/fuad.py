# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""``anomalib-cdd fuad``: models compared on training data that is not clean, models x data x noise ratios x seeds."""

import copy
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from anomalib_cdd.benchmark import run as grid
from anomalib_cdd.benchmark.driver import GridError
from anomalib_cdd.benchmark.plan import Cell, plan
from anomalib_cdd.benchmark.records import CELLS, is_done, read_record
from anomalib_cdd.cli.entries import OF_A_MODEL, Components, ConfigError, Entry, build, resolve_data, resolve_model
from anomalib_cdd.data.clean import Cleaning

# What the grid itself sets, and from which of its keys.
SET_BY_GRID = {
    # a manifest would overrule both ratio and seed
    "data": {"noise_ratio": "noise_ratios", "noise_seed": "seeds", "manifest": "noise_ratios"},
    "models": {"seed": "seeds"},
}


def get_parser() -> ArgumentParser:
    """Return the parser of ``anomalib-cdd fuad``."""
    parser = ArgumentParser(description="Compare models on training data that is not clean: a resumable grid.")
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="YAML file with any of the options below.")
    parser.add_argument("--output", type=Path, default=Path("results/fuad"), help="Folder of the results.")
    parser.add_argument("--seeds", type=list[int], default=[0, 1, 2], help="Seeds of injection and training.")
    parser.add_argument("--noise_ratios", type=list[float], default=[0.1], help="Injected per normal training image.")
    parser.add_argument("--data", type=dict[str, dict], help="Data sets by name: class_path, init_args.")
    parser.add_argument(
        "--models",
        type=dict[str, dict],
        help="Models by name: class_path, init_args, trainer; clean, as of a data set, for this model alone.",
    )
    parser.add_argument("--data_root", type=str | None, help="Replaces ${data_root} in the data sets' init_args.")
    parser.add_argument(
        "--measure_every", type=int | None, help="Also measure every so many epochs, in the course of a training."
    )
    parser.add_argument("--checkpoints", type=bool, default=False, help="Keep each cell's run with its checkpoint.")
    parser.add_argument(
        "--workers", type=int | None, help="Run so many cells at a time on this machine, by Ray; without, one by one."
    )
    parser.add_argument(
        "--ray_address",
        type=str | None,
        help="Run the cells on the Ray cluster at this address, see docs/comparison.md.",
    )
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
    cells = cells_of(config)
    if config.data_root is not None and config.ray_address is None and not Path(config.data_root).is_dir():
        msg = f"--data_root {config.data_root} is no folder. Name the one that the images are in, or make it first."
        raise ConfigError(msg)
    if config.dry_run:
        done = [is_done(read_record(config.output, cell)) for cell in cells]
        for cell, is_over in zip(cells, done, strict=True):
            print("done  " if is_over else "to do ", cell)
        print(f"{len(cells)} cells: {len(cells) - sum(done)} to do, {sum(done)} done")
        return 0
    try:
        (config.output / CELLS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"--output {config.output} cannot be a folder of results: {error}"
        raise ConfigError(msg) from error
    make = partial(build_cell, data_root=config.data_root)
    where = {"workers": config.workers, "ray_address": config.ray_address, "data_root": config.data_root}
    try:
        return grid.run(cells, make, config.output, keep_checkpoints=config.checkpoints, **where)
    except GridError as error:
        raise ConfigError(str(error)) from error


def cells_of(config: Namespace) -> list[Cell]:
    """Check the whole configuration and return its cells, seed by seed.

    Raises:
        ConfigError: Naming the entry and the key at fault.
    """
    for key in ("data", "models", "seeds", "noise_ratios"):
        if not getattr(config, key):
            msg = f"The grid's {key!r} is empty. Give at least one, see configs/fuad.yaml."
            raise ConfigError(msg)
    for key in ("seeds", "noise_ratios"):
        values = getattr(config, key)
        twice = [value for value in values if values.count(value) > 1]
        if twice:
            msg = f"{key} has {twice[0]} more than once: each of its cells would count as many times. Give it once."
            raise ConfigError(msg)
        if below := [value for value in values if not 0 <= value < math.inf]:
            msg = f"{key} has {below[0]}; give numbers from 0."
            raise ConfigError(msg)
    if config.measure_every is not None and config.measure_every < 1:
        msg = f"measure_every is {config.measure_every}; it is a number of epochs, at least 1."
        raise ConfigError(msg)
    if config.workers is not None and config.workers < 1:
        msg = f"workers is {config.workers}; it is a number of processes, at least 1."
        raise ConfigError(msg)
    if config.workers is not None and config.ray_address is not None:
        msg = "workers are of this machine; a cluster at ray_address runs as many cells as it has room for. Give one."
        raise ConfigError(msg)
    data, models, cleaning, contents = {}, {}, {}, {}
    for name, entry in config.data.items():
        _refuse_set_by_grid("data", name, entry)
        data[name] = resolve_data(f"data.{name}", entry)
        filled = fill_data_root(data[name], config.data_root, f"data.{name}")
        clean = filled["init_args"].get("clean") or {}
        contents[f"data.{name}"] = _contents(filled["init_args"], "exclude") | _contents(clean, "weights")
    for name, entry in config.models.items():
        _refuse_set_by_grid("models", name, entry)
        if entry.get("clean") is not None:
            cleaning[name] = _resolve_cleaning(f"models.{name}", entry["clean"])
        models[name] = resolve_model(f"models.{name}", entry, {*OF_A_MODEL, "clean"})
        of_clean = {f"clean.{key}": value for key, value in _contents(cleaning.get(name, {}), "weights").items()}
        contents[f"models.{name}"] = _contents(models[name][0]["init_args"], "weights") | of_clean
    return plan(data, models, config.noise_ratios, config.seeds, config.measure_every, cleaning, contents)


def _contents(arguments: Mapping[str, Any], argument: str) -> dict[str, str]:
    """Return a hash of the file that an argument names: what is in it may change, and its name stay."""
    value = arguments.get(argument)
    if value is None or not Path(value).is_file():  # who reads it says what is wrong
        return {}
    return {argument: sha256(Path(value).read_bytes()).hexdigest()[:16]}


def _resolve_cleaning(name: str, clean: Any) -> Entry:
    try:
        return json.loads(json.dumps(asdict(Cleaning(**clean))))
    except (TypeError, ValueError) as error:
        msg = f"{name}.clean: {error}"
        raise ConfigError(msg) from error


def build_cell(config: dict[str, Any], data_root: str | None = None) -> Components:
    """Instantiate what a cell is made of; the audit of its training set has no place in a grid.

    Args:
        config: A cell's.
        data_root: Replaces ``${data_root}``.
    """
    model, trainer = copy.deepcopy([config["model"], config["trainer"]])  # jsonargparse writes into what it parses
    if "audit" in model["init_args"]:
        model["init_args"]["audit"] = False
    return build(fill_data_root(config["data"], data_root, "data"), model, trainer)


def fill_data_root(entry: Entry, data_root: str | None, name: str) -> Entry:
    """Replace ``${data_root}`` in an entry.

    Raises:
        ConfigError: If it is there and none is given, or another variable is.
    """
    variables = {} if data_root is None else {"data_root": data_root}
    try:
        filled: Any = OmegaConf.to_container(OmegaConf.create(variables | {"entry": entry}), resolve=True)
    except OmegaConfBaseException as error:
        msg = f"{name}: {str(error).splitlines()[0]}. Pass --data_root DIR."
        raise ConfigError(msg) from error
    return filled["entry"]


def _refuse_set_by_grid(kind: str, name: str, entry: dict[str, Any]) -> None:
    for key, instead in SET_BY_GRID[kind].items():
        if key in (entry.get("init_args") or {}):
            msg = f"{kind}.{name}.init_args.{key}: the grid sets it. Use the grid's own {instead!r}."
            raise ConfigError(msg)
