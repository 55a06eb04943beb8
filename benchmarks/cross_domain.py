# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""What it costs a ranking of training images if models vote on what they have learned from.

``python -m benchmarks.cross_domain --data_root DIR --output experiments/cross_domain`` trains models of three parts of
the data sets of ``configs/cleaning.yaml`` and adds a row for each data set, model and seed to ``results.csv``: noise
AP of the out-of-sample scores, and of the mean over all three models. What is there is not measured again.
"""

import argparse
import copy
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from omegaconf import OmegaConf
from sklearn.metrics import average_precision_score

from anomalib_cdd.benchmark.revision import commit
from anomalib_cdd.cleaning import cross_domain_scores
from anomalib_cdd.cli.entries import build, build_data
from anomalib_cdd.training.files import write_text
from anomalib_cdd.version import __version__

DOMAINS = 3
NAMES = ["data", "noise_ratio", "model", "seed"]


def entries(config: Path, data_root: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the data sets and models of a grid, and Stfpm beside them."""
    content: Any = OmegaConf.to_container(
        OmegaConf.merge(OmegaConf.load(config), {"data_root": data_root}), resolve=True
    )
    models = content["models"]
    kept = ("backbone", "layers", "evaluator", "visualizer", "pre_processor")
    init_args = {name: models["padim"]["init_args"][name] for name in kept}
    models["cdd"]["trainer"]["precision"] = "32-true"
    trainer = models["cdd"]["trainer"]
    models["stfpm"] = {"class_path": "anomalib.models.Stfpm", "init_args": init_args, "trainer": trainer}
    return content["data"], models


def measure(data: dict[str, Any], model: dict[str, Any], folder: Path, ratio: float, seed: int) -> dict[str, float]:
    """Return the noise AP by those that have not learned from an image, and by all."""
    data = copy.deepcopy(data)
    data["init_args"] |= {"noise_ratio": ratio, "noise_seed": seed, "val_split_mode": "none"}
    init_args = model["init_args"] | (
        {"seed": seed, "audit": False} if model["class_path"].startswith("anomalib_cdd") else {}
    )
    datamodule = build_data(copy.deepcopy(data))
    trainer = model.get("trainer") or {}

    def make_model() -> Any:
        return build(
            copy.deepcopy(data), {"class_path": model["class_path"], "init_args": copy.deepcopy(init_args)}, {}
        )[1]

    measures = {}
    for name, in_sample in (("in_sample_noise_AP", True), ("noise_AP", False)):
        options: dict[str, Any] = {"trainer": trainer, "seed": seed, "in_sample": in_sample, "progress": False}
        report = cross_domain_scores(make_model, datamodule, DOMAINS, folder=folder, **options)
        is_noise = datamodule.train_data.samples["is_noise"].to_numpy(dtype=bool)
        measures[name] = float(average_precision_score(is_noise, report.scores))
    return measures


def main(arguments: list[str] | None = None) -> int:
    """Measure what is not in ``results.csv`` yet."""
    parser = argparse.ArgumentParser("python -m benchmarks.cross_domain", description=__doc__)
    parser.add_argument("--config", type=Path, default=Path("configs/cleaning.yaml"), help="a configuration of `fuad`")
    parser.add_argument("--data_root", required=True, help="as for `fuad`")
    parser.add_argument("--output", type=Path, default=Path("results/cross_domain"))
    parser.add_argument("--models", nargs="+", default=["padim", "patchcore", "stfpm", "cdd"])
    parser.add_argument("--data", nargs="+", default=["bottle", "magnetic_tile", "mono_cells"])
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the noise, the parts and the models"
    )
    parser.add_argument("--noise_ratio", type=float, default=0.1)
    options = parser.parse_args(arguments)
    data, models = entries(options.config, options.data_root)
    path = options.output / "results.csv"
    results = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=NAMES)
    for seed, name, model in product(options.seeds, options.data, options.models):
        row = dict(zip(NAMES, (name, options.noise_ratio, model, seed), strict=True))
        if (results[NAMES] == pd.Series(row)).all(axis=1).any():
            continue
        folder = options.output / "parts" / f"{name}_{options.noise_ratio:g}_{model}_{seed}"
        row |= measure(data[name], models[model], folder, options.noise_ratio, seed)
        print(row, flush=True)
        row |= {"domains": DOMAINS, "anomalib_cdd": __version__, "commit": commit(), "anomalib": version("anomalib")}
        row |= {"torch": version("torch"), "threads": torch.get_num_threads()}
        results = pd.concat([results, pd.DataFrame([row])], ignore_index=True)
        write_text(path, results.to_csv(index=False))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
