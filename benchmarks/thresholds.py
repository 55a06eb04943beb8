# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""What false-alarm rates come of the stated one, from the scores that cells of a grid keep.

``python -m benchmarks.thresholds results/fuad/cells`` prints them with their means over seeds.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from anomalib_cdd.benchmark.scores import Arrays, load
from anomalib_cdd.thresholds.estimators import label_free_pixel_threshold, label_free_threshold
from anomalib_cdd.thresholds.post_processing import FALSE_ALARM_RATE, PIXEL_FALSE_ALARM_RATE

BAND = (0.03, 0.08)


def measure(arrays: Arrays) -> dict[str, float]:
    """Return what the threshold of a cell does to test images that chose nothing.

    Returns:
        ``false_alarms`` and ``found``, shares of good and of bad test images above the threshold, without overlap;
        ``labelled``, the false alarms at the same quantile of those training images that labels call good; with masks
        ``pixel_false_alarms``, the share of good pixels above theirs, to a bin of the histogram.
    """
    scores = arrays["calibration_scores"] if "calibration_scores" in arrays else arrays["train_scores"]
    kept = ~arrays["test_injected"]
    good, bad = (arrays["test_scores"][kept & (arrays["test_labels"] == label)] for label in (0, 1))
    threshold = label_free_threshold(scores, FALSE_ALARM_RATE)
    known = np.quantile(scores[~arrays["train_is_noise"]], 1 - FALSE_ALARM_RATE, method="weibull")
    measures = {
        "false_alarms": (good > threshold).mean(),
        "found": (bad > threshold).mean(),
        "labelled": (good > known).mean(),
    }
    pixels = arrays["calibration_pixels"] if "calibration_pixels" in arrays else arrays.get("train_pixels")
    if pixels is not None and "pixels_normal" in arrays:
        threshold = label_free_pixel_threshold(pixels, scores, PIXEL_FALSE_ALARM_RATE)
        above = arrays["pixels_normal"][arrays["pixel_edges"][:-1] >= threshold].sum()
        measures["pixel_false_alarms"] = above / arrays["pixels_normal"].sum()
    return measures


def measured(folder: Path) -> pd.DataFrame:
    """Return one row a cell: data, model, noise ratio, seed and what :func:`measure` says."""
    rows = []
    for path in sorted(folder.glob("*.json")):
        record, arrays = json.loads(path.read_text(encoding="utf-8")), load(path.with_suffix(".npz"))
        if arrays is not None:
            rows.append({key: record[key] for key in ("data", "model", "noise_ratio", "seed")} | measure(arrays))
    return pd.DataFrame(rows)


def main() -> None:
    """Print the true rates beside the stated ones, the mean over seeds."""
    table = measured(Path(sys.argv[1]))
    means = table.groupby(["data", "model", "noise_ratio"]).mean(numeric_only=True).drop(columns="seed")
    for name in means.columns:
        print(f"\n{name}\n\n{means[name].dropna().unstack().round(3).to_markdown()}")
    for name in ("false_alarms", "labelled"):
        for kind, rates in (("cells", table[name]), ("means over seeds", means[name])):
            print(f"\n{name} from {BAND[0]} to {BAND[1]}: {rates.between(*BAND).sum()} of {len(rates)} {kind}")


if __name__ == "__main__":
    main()
