# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""The cells of a grid, models x data sets x noise ratios x seeds, and what makes one the same as another: its key."""

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from types import MappingProxyType
from typing import Any

from .revision import fingerprint

Entry = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One training and its measures.

    Attributes:
        data: Name of the data set in the grid.
        noise_ratio: Injected images per normal training image.
        model: Name of the model in the grid.
        seed: Seed of the injection and of the training.
        config: ``data``, ``model`` and ``trainer`` with every default; ``measure_every`` where the training is
            measured in its course, ``contents`` where arguments name files. ``${data_root}`` stays unresolved: a result
            does not depend on where the images lie.
        code: Fingerprint of the code that the results come from.
    """

    data: str
    noise_ratio: float
    model: str
    seed: int
    config: Entry
    code: str = ""

    @property
    def key(self) -> str:
        """Hash of seed, full configuration and code; the names are not part of it."""
        text = json.dumps({"seed": self.seed, "config": self.config, "code": self.code}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __str__(self) -> str:
        return f"{self.data} noise {self.noise_ratio:g} {self.model} seed {self.seed}"


def plan(
    data: Mapping[str, Entry],
    models: Mapping[str, tuple[Entry, Entry]],
    noise_ratios: Sequence[float],
    seeds: Sequence[int],
    measure_every: int | None = None,
    cleaning: Mapping[str, Entry] | None = None,
    contents: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
) -> list[Cell]:
    """Return the cells of a grid, seed by seed.

    Args:
        data: ``class_path`` and ``init_args`` of each data set, with every default.
        models: The same of each model, and the arguments of its trainer.
        noise_ratios: Injected images per normal training image.
        seeds: Of the injection and, where a model has a ``seed`` of its own, of the model.
        measure_every: Epochs between measures in the course of a training; ``None`` measures its end alone.
        cleaning: Before which models, by name, the training set is cleaned, and how: the data sets' ``clean``.
        contents: Hashes of the files that arguments name, by argument, of ``data.<name>`` and ``models.<name>``.
    """
    codes = {name: fingerprint(model["class_path"]) for name, (model, _) in models.items()}
    cells = []
    for seed, name, ratio, model in product(seeds, data, noise_ratios, models):
        config: Entry = copy.deepcopy({"data": data[name], "model": models[model][0], "trainer": models[model][1]})
        config["data"]["init_args"] |= {"noise_ratio": ratio, "noise_seed": seed}
        if cleaning and model in cleaning:
            config["data"]["init_args"]["clean"] = cleaning[model]
        if "seed" in config["model"]["init_args"]:
            config["model"]["init_args"]["seed"] = seed
        if files := {**contents.get(f"data.{name}", {}), **contents.get(f"models.{model}", {})}:
            config["contents"] = files
        if measure_every:
            config["measure_every"] = measure_every
        cells.append(Cell(name, ratio, model, seed, config, codes[model]))
    return cells
