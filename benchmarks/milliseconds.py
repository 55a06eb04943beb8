# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Inference times of a grid's models, one after another on one machine: the sizes of points in docs/results.svg.

``python -m benchmarks.milliseconds --data_root DIR`` trains a model of each class in ``configs/rivals.yaml`` on
bottles, for one epoch as more change no time, and lets all take turns at a batch of test images in fp32. Nothing else
should run on the machine; OMP_NUM_THREADS sets the threads.
"""

import argparse
import copy
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch
from anomalib.engine import Engine
from anomalib.models import AnomalibModule
from omegaconf import OmegaConf
from torch import Tensor

from anomalib_cdd.benchmark.revision import commit
from anomalib_cdd.cli.entries import build
from anomalib_cdd.training.files import write_text
from anomalib_cdd.version import __version__

from .measuring import take_turns

OUTPUT = Path("experiments/speed/milliseconds.csv")
TRAINER = {"accelerator": "cpu", "max_epochs": 1, "enable_progress_bar": False, "enable_model_summary": False}


def trained(data: dict[str, Any], model: dict[str, Any]) -> tuple[AnomalibModule, Tensor]:
    """Return a model of a grid that has been trained on a data set, and a batch of its test images."""
    data = copy.deepcopy(data)
    data["init_args"] |= {"noise_ratio": 0.1, "noise_seed": 0}
    entry = {"class_path": model["class_path"], "init_args": copy.deepcopy(model["init_args"])}
    datamodule, made, trainer = build(data, entry, {})
    made.post_processor = None
    with TemporaryDirectory() as folder:
        Engine(**trainer | TRAINER, default_root_dir=folder).fit(made, datamodule=datamodule)
    return made.eval(), next(iter(datamodule.test_dataloader())).image


@torch.no_grad()
def measure(data: dict[str, Any], models: dict[str, Any], rounds: int) -> list[dict[str, Any]]:
    """Return a row for each model."""
    ready = {name: trained(data, model) for name, model in models.items()}
    times = take_turns({name: partial(model, images) for name, (model, images) in ready.items()}, rounds)
    rows = []
    for name, seconds in times.items():
        count = len(ready[name][1])
        row = {"model": name, "class_path": models[name]["class_path"], "images": count, "rounds": rounds}
        row |= {"milliseconds": round(1e3 * median(seconds) / count, 2), "least": round(1e3 * min(seconds) / count, 2)}
        rows.append(row | {"most": round(1e3 * max(seconds) / count, 2)})
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser("python -m benchmarks.milliseconds", description=__doc__)
    parser.add_argument("--config", type=Path, default=Path("configs/rivals.yaml"), help="a configuration of `fuad`")
    parser.add_argument("--models", nargs="+", help="which of its models; default: the first of each class")
    parser.add_argument("--data", default="bottle", help="which of its data sets")
    parser.add_argument("--data_root", required=True, help="as for `fuad`")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--rounds", type=int, default=10, help="how often each model is timed")
    options = parser.parse_args(arguments)
    content: Any = OmegaConf.merge(OmegaConf.load(options.config), {"data_root": options.data_root})
    content = OmegaConf.to_container(content, resolve=True)
    models: dict[str, Any] = {}
    for name, model in content["models"].items():
        known = {other["class_path"] for other in models.values()}
        if name in options.models if options.models else model["class_path"] not in known:
            models[name] = model
    made_of = {"anomalib_cdd": __version__, "commit": commit(), "anomalib": version("anomalib")}
    made_of |= {"torch": version("torch"), "threads": torch.get_num_threads()}
    rows = [row | made_of for row in measure(content["data"][options.data], models, options.rounds)]
    write_text(options.output, pd.DataFrame(rows).to_csv(index=False))
    print(pd.DataFrame(rows)[["model", "milliseconds", "least", "most"]].to_string(index=False))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
