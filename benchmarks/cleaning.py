# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""How well recurrence finds the bad images of a training set, and what each rule of cleaning leaves.

``python -m benchmarks.cleaning --config configs/fuad.yaml --data_root DIR`` reads the data sets of a grid, draws the
noise of each seed and prints a row for each data set and seed. ``--mvtec DIR`` adds MVTec AD's bottle.
"""

import argparse
import time
from collections.abc import Iterator
from statistics import mean
from typing import Any

from anomalib.data import AnomalibDataModule, get_datamodule
from omegaconf import OmegaConf
from sklearn.metrics import average_precision_score

from anomalib_cdd.cleaning import rules, score_images
from anomalib_cdd.teachers.duplicates import parts_of

HEADER = "| data | seed | images | noise AP | share .1: normals kept, noise left | deviations 2: the same | seconds |"


def data_sets(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and entry of each data set."""
    config = OmegaConf.load(options.config)
    if options.data_root:
        config.data_root = options.data_root
    entries: Any = OmegaConf.to_container(config, resolve=True)
    yield from entries["data"].items()
    if options.mvtec:
        arguments = {"root": options.mvtec, "category": "bottle", "num_workers": 0}
        yield "bottle", {"class_path": "anomalib_cdd.data.MVTecNoisy", "init_args": arguments}


def outcome(picked: Any, is_noise: Any) -> tuple[float, int]:
    """Return the share of normal images that a rule keeps, and how many bad ones it leaves."""
    return float((~picked[~is_noise]).mean()), int((~picked & is_noise).sum())


def measure(datamodule: AnomalibDataModule, options: argparse.Namespace) -> dict[str, Any]:
    """Score one training set and apply the rules."""
    datamodule.setup()
    start = time.perf_counter()
    found = score_images(
        datamodule.train_data,
        backbone=options.backbone,
        image_size=(options.image_size, options.image_size),
        progress=False,
    )
    seconds = time.perf_counter() - start
    is_noise = datamodule.train_data.samples["is_noise"].to_numpy(dtype=bool)
    return {
        "images": len(is_noise),
        "noise": int(is_noise.sum()),
        "ap": float(average_precision_score(is_noise, found.scores)),
        "share": outcome(rules.share(found.scores, 0.1), is_noise),
        "deviations": outcome(rules.deviations(found.scores, 2, parts_of(len(is_noise), found.duplicates)), is_noise),
        "duplicates": len(found.duplicates),
        "seconds": seconds,
    }


def row(name: str, seed: str, rounds: list[dict[str, Any]]) -> str:
    """Return one row of the table, the mean of some rounds."""

    def rule(key: str) -> str:
        kept, left = (mean(each[key][i] for each in rounds) for i in range(2))
        return f"{kept:.3f}, {left:.1f} of {rounds[0]['noise']}"

    ap, seconds = mean(each["ap"] for each in rounds), mean(each["seconds"] for each in rounds)
    values = [name, seed, str(rounds[0]["images"]), f"{ap:.3f}", rule("share"), rule("deviations"), f"{seconds:.0f}"]
    return f"| {' | '.join(values)} |"


def main(arguments: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser("python -m benchmarks.cleaning", description=__doc__)
    parser.add_argument("--config", default="configs/fuad.yaml", help="a configuration of `fuad`")
    parser.add_argument("--data_root", help="as for `fuad`")
    parser.add_argument("--mvtec", help="root of MVTec AD")
    parser.add_argument("--only", nargs="+", help="names of data sets; default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the draw of the noise")
    parser.add_argument("--noise_ratio", type=float, default=0.1)
    parser.add_argument("--backbone", default="efficientnet_lite0_pypi")
    parser.add_argument("--image_size", type=int, default=192)
    options = parser.parse_args(arguments)
    print(HEADER, "|---|---|---|---|---|---|---|", sep="\n", flush=True)
    for name, entry in data_sets(options):
        if options.only and name not in options.only:
            continue
        rounds = []
        for seed in options.seeds:
            noise = {"noise_ratio": options.noise_ratio, "noise_seed": seed, "val_split_mode": "none"}
            entry["init_args"] = {**entry.get("init_args", {}), **noise}
            rounds.append(measure(get_datamodule({"data": entry}), options))
            print(row(name, str(seed), rounds[-1:]), flush=True)
        if len(rounds) > 1:
            print(row(name, "mean", rounds), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
