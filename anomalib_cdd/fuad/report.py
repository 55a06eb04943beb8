# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""The comparison grid's report: mean and standard deviation over the seeds, no overlap and overlap apart.

One table per data set, noise ratio and setting; the best mean is bold, the second underlined.
"""

import pandas as pd

SETTINGS = {
    "No overlap": ("image_AUROC", "pixel_AUROC", "AUPRO", "PRO"),
    "Overlap": ("image_AUROC_overlap", "pixel_AUROC_overlap", "AUPRO_overlap", "PRO_overlap"),
    "Its own noise": ("injected_AUROC", "noise_AP"),
}
LEGEND = """\
Mean ± standard deviation over the seeds; **best**, <u>second</u>. More is better in every column.

- *No overlap*: the images injected into the training set are not in the test set. *Overlap*: they are. One trained
  model answers both.
- AUPRO is anomalib's: one curve over the whole test set. PRO is RD4AD's: the mean of one curve per anomalous image.
  Both up to a false positive rate of 0.3.
- injected_AUROC: injected images against normal test images. noise_AP: average precision of the training images,
  ranked by their score, against which of them were injected.
- Every row with its exact configuration: `results.csv`.
"""
DECIMALS = 3


def write_report(results: pd.DataFrame, n_cells: int) -> str:
    """Return the report in Markdown.

    Args:
        results: One row per cell that has run: ``data``, ``noise_ratio``, ``model``, ``seed``, ``status``, ``error``
            and the measures.
        n_cells: How many cells the grid has.
    """
    done = results[results["status"] == "done"] if len(results) else results
    failed = results[results["status"] == "failed"] if len(results) else results
    open_cells = n_cells - len(results)
    parts = [
        "# Comparison on training data that is not clean",
        f"{len(done)} of {n_cells} cells finished, {len(failed)} failed, {open_cells} not run yet.",
        LEGEND,
    ]
    if len(done):
        for (data, ratio), group in done.groupby(["data", "noise_ratio"], sort=False):
            parts.append(f"## {data}, noise ratio {ratio:g}")
            parts += [_table(group, setting, names) for setting, names in SETTINGS.items()]
    if len(failed):
        parts.append("## Failed")
        parts += [
            f"- {row['data']}, noise ratio {row['noise_ratio']:g}, {row['model']}, seed {row['seed']}: "
            f"`{str(row['error']).splitlines()[0]}`"
            for row in failed.to_dict("records")
        ]
    return "\n\n".join(part.rstrip() for part in parts if part) + "\n"


def _table(group: pd.DataFrame, setting: str, names: tuple[str, ...]) -> str:
    """Return one table, a row per model; empty if nothing in it was measured."""
    names = tuple(name for name in names if name in group and group[name].notna().any())
    if not names:
        return ""
    models = group.groupby("model", sort=False)
    seeds = models["seed"].nunique()
    means = models[list(names)].mean().round(DECIMALS)
    deviations = models[list(names)].std()
    lines = [
        f"### {setting}",
        "",
        "| model | seeds | " + " | ".join(name.removesuffix("_overlap") for name in names) + " |",
        "|---|---|" + "---|" * len(names),
    ]
    for model in means.index:
        cells = [_cell(means.loc[model, name], deviations.loc[model, name], means[name]) for name in names]
        lines.append(f"| {model} | {seeds[model]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(mean: float, deviation: float, column: pd.Series) -> str:
    """Return ``mean ± deviation``, marked if it is the best or second best of its column as printed."""
    if pd.isna(mean):
        return "-"
    text = f"{mean:.{DECIMALS}f}" + ("" if pd.isna(deviation) else f" ± {deviation:.{DECIMALS}f}")
    ranks = sorted(column.dropna().unique(), reverse=True)
    if len(ranks) > 1 and mean == ranks[0]:
        return f"**{text}**"
    if len(ranks) > 1 and mean == ranks[1]:
        return f"<u>{text}</u>"
    return text
