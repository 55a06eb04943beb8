# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""How well recurrence finds the bad images of a training set, and what each rule of cleaning leaves.

``python -m benchmarks.cleaning --data_root DIR --output experiments/cleaning`` draws the noise of each seed on the data
sets of ``configs/cleaning.yaml`` and adds a row for each data set, noise ratio, seed and rule to ``results.csv``:
no model is trained. What is there is not measured again.
"""

import argparse
import copy
import time
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf
from sklearn.metrics import average_precision_score

from anomalib_cdd.benchmark.revision import commit
from anomalib_cdd.cleaning import score_images
from anomalib_cdd.cleaning.rules import pick
from anomalib_cdd.cli.entries import build_data
from anomalib_cdd.data import Cleaning
from anomalib_cdd.teachers.duplicates import parts_of
from anomalib_cdd.training.files import write_text
from anomalib_cdd.version import __version__

RULES = (
    *(Cleaning(share=share) for share in (0.05, 0.1, 0.2)),
    *(Cleaning(deviations=number) for number in (1.5, 2.0, 2.5, 3.0)),
)
NAMES = ["data", "noise_ratio", "seed", "backbone", "image_size"]


def outcome(
    scores: NDArray[np.float32], part: NDArray[np.int64], is_noise: NDArray[np.bool_], rule: Cleaning
) -> dict[str, Any]:
    """Return what a rule leaves of N images; arguments ``(N,)``, ``part`` as of :func:`rules.deviations`.

    Returns:
        ``rule`` in words, the share ``kept_normals`` of normal images that it keeps and the number ``noise_left`` of
        injected ones.
    """
    left_out = pick(scores, rule, part)
    kept, left = float((~left_out[~is_noise]).mean()), int((is_noise & ~left_out).sum())
    return {"rule": rule.rule, "kept_normals": kept, "noise_left": left}


def measure(data: dict[str, Any], row: dict[str, Any]) -> list[dict[str, Any]]:
    """Score one training set, as ``row`` names it, and apply the rules: a row for each."""
    data = copy.deepcopy(data)
    data["init_args"] |= {"noise_ratio": row["noise_ratio"], "noise_seed": row["seed"], "val_split_mode": "none"}
    datamodule = build_data(data)
    datamodule.setup()
    start = time.perf_counter()
    found = score_images(
        datamodule.train_data, backbone=row["backbone"], image_size=2 * (row["image_size"],), progress=False
    )
    seconds = round(time.perf_counter() - start, 1)
    is_noise = datamodule.train_data.samples["is_noise"].to_numpy(dtype=bool)
    part = parts_of(len(is_noise), found.duplicates)
    known = row | {"images": len(is_noise), "noise": int(is_noise.sum()), "duplicates": len(found.duplicates)}
    known["noise_AP"] = float(average_precision_score(is_noise, found.scores)) if is_noise.any() else float("nan")
    made_of = {"seconds": seconds, "anomalib_cdd": __version__, "commit": commit(), "anomalib": version("anomalib")}
    made_of |= {"torch": version("torch"), "threads": torch.get_num_threads()}
    return [known | outcome(found.scores, part, is_noise, rule) | made_of for rule in RULES]


def main(arguments: list[str] | None = None) -> int:
    """Measure what is not in ``results.csv`` yet."""
    parser = argparse.ArgumentParser("python -m benchmarks.cleaning", description=__doc__)
    parser.add_argument("--config", type=Path, default=Path("configs/cleaning.yaml"), help="a configuration of `fuad`")
    parser.add_argument("--data_root", required=True, help="as for `fuad`")
    parser.add_argument("--output", type=Path, default=Path("results/cleaning"))
    parser.add_argument("--data", nargs="+", help="names of its data sets; default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the draw of the noise")
    parser.add_argument("--noise_ratios", nargs="+", type=float, default=[0.1, 0.0, 0.05, 0.2])
    parser.add_argument("--backbone", default=Cleaning.backbone)
    parser.add_argument("--image_size", type=int, default=Cleaning.image_size[0])
    options = parser.parse_args(arguments)
    content: Any = OmegaConf.merge(OmegaConf.load(options.config), {"data_root": options.data_root})
    data = OmegaConf.to_container(content, resolve=True)["data"]
    path = options.output / "results.csv"
    results = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=NAMES)
    for ratio, name, seed in product(options.noise_ratios, options.data or data, options.seeds):
        row = dict(zip(NAMES, (name, ratio, seed, options.backbone, options.image_size), strict=True))
        if (results[NAMES] == pd.Series(row)).all(axis=1).any():
            continue
        rows = measure(data[name], row)
        shown = [*NAMES[:3], "noise_AP", "rule", "kept_normals", "noise_left"]
        print(pd.DataFrame(rows)[shown].to_string(index=False), flush=True)
        results = pd.concat([results, pd.DataFrame(rows)], ignore_index=True)
        write_text(path, results.to_csv(index=False))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
