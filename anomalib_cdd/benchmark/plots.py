# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Curves over the noise ratio (the paper's Fig. 3) or the epochs, and histograms of image scores (Fig. 4).

Figures are objects of their own: matplotlib's global state is not touched. A model has the same colour, marker and
line in every figure; the colours are Okabe and Ito's, which the colour-blind can tell apart.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from .scores import Arrays

RATIO_CURVES = {
    "image_AUROC": "Image AUROC, no overlap",
    "image_AUROC_overlap": "Image AUROC, overlap",
    "noise_AP": "Noise AP",
    "pixel_AUROC": "Pixel AUROC, no overlap",
    "AUPRO": "AUPRO, no overlap",
}
EPOCH_CURVES = {
    "image_AUROC": "Image AUROC, no overlap",
    "image_AUROC_overlap": "Image AUROC, overlap",
    "injected_AUROC": "Injected AUROC",
}
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")
DASHES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# kinds of images, in colours that no model has
KIND_COLOURS = {"normal": "#9A9A9A", "anomalous": "#000000", "injected": "#D55E00"}
BINS = 24
PANELS_A_ROW = 3
MOST_TICKS = 8
PAD = 0.09  # inches


class Style(NamedTuple):
    """How a model is drawn."""

    colour: str
    dash: str
    marker: str


def styles(models: Sequence[str]) -> dict[str, Style]:
    """Give each model of a grid its colour, line and marker, by its place in the grid."""
    lines = [(colour, dash) for dash, colour in product(DASHES, COLOURS)]
    return {model: Style(*lines[i % len(lines)], marker=MARKERS[i % len(MARKERS)]) for i, model in enumerate(models)}


def curves(
    done: pd.DataFrame, look: Mapping[str, Style], along: str = "noise_ratio", titles: Mapping[str, str] = RATIO_CURVES
) -> Figure:
    """Draw each measure of one data set over the noise ratio: means over the seeds, bands of one standard deviation.

    A model that has one point alone is a marker with a bar; over the epochs, one that trains for one, a level line.

    Args:
        done: ``model``, ``seed``, the measures and what they are drawn along, of one data set.
        look: How each model is drawn.
        along: The column of the horizontal axis.
        titles: The measures and what stands above their panels.
    """
    names = [name for name in titles if name in done and done[name].notna().any()]
    n_rows = -(-len(names) // PANELS_A_ROW)
    n_columns = min(len(names), PANELS_A_ROW)
    figure = Figure(
        figsize=(3.2 * n_columns + 0.4, 2.9 * n_rows + 0.5), layout=ConstrainedLayoutEngine(w_pad=PAD, h_pad=PAD)
    )
    panels = list(figure.subplots(n_rows, n_columns, squeeze=False).flat)
    for name, panel in zip(names, panels, strict=False):
        for model, group in done.groupby("model", sort=False):
            _curve(panel, group, name, along, str(model), look[str(model)])
        panel.set_title(titles[name], fontsize=11)
        panel.set_xlabel(along.replace("_", " "))
        ticks = sorted(done[along].unique())
        panel.set_xticks(ticks[:: -(-len(ticks) // MOST_TICKS)])
        _plain_axes(panel)
    for panel in panels[len(names) :]:
        panel.remove()
    figure.legend(*_handles(figure.axes), loc="outside lower center", ncols=4, frameon=False)
    return figure


def _curve(panel: Axes, group: pd.DataFrame, name: str, along: str, model: str, style: Style) -> None:
    points = group.groupby(along)[name].agg(["mean", "std"]).dropna(subset=["mean"])
    if points.empty:
        return
    ratios, means = points.index.to_numpy(), points["mean"].to_numpy()
    deviations = points["std"].fillna(0).to_numpy()
    if len(points) == 1 and along == "epoch":
        panel.axhline(means.item(), ls=style.dash, color=style.colour, label=model)
        return
    panel.plot(ratios, means, style.dash, color=style.colour, marker=style.marker, markersize=5, label=model)
    if len(points) == 1:  # a band has no width there
        panel.vlines(ratios, means - deviations, means + deviations, color=style.colour)
        return
    panel.fill_between(ratios, means - deviations, means + deviations, color=style.colour, alpha=0.18, linewidth=0)


def histograms(arrays: Mapping[str, Arrays], look: Mapping[str, Style]) -> Figure:
    """Draw how each model scores the training images (left) and the test images (right); a row per model.

    Args:
        arrays: What each model's cell has kept, see :func:`.scores.cell_scores`; of one data set, ratio and seed.
        look: How each model is drawn.
    """
    figure = Figure(figsize=(8, 2 * len(arrays) + 1), layout=ConstrainedLayoutEngine(w_pad=PAD, h_pad=PAD))
    axes = figure.subplots(len(arrays), 2, squeeze=False)
    for (model, kept), (train, test) in zip(arrays.items(), axes, strict=True):
        is_noise, injected, labels = kept["train_is_noise"], kept["test_injected"], kept["test_labels"]
        _histogram(train, kept["train_suspicion"], {"normal": ~is_noise, "injected": is_noise})
        kinds = {"normal": (labels == 0) & ~injected, "anomalous": (labels == 1) & ~injected, "injected": injected}
        _histogram(test, kept["test_scores"], kinds)
        train.set_ylabel(model, color=look[model].colour, fontweight="bold", fontsize=11)
        if not kept["train_out_of_sample"].all():
            train.set_xlabel("in-sample", fontsize=8)
        if train is axes[0, 0]:
            counts = _counts({"normal": ~is_noise, "injected": is_noise})
            train.set_title(f"training images, by suspicion\n{counts}", fontsize=10)
            test.set_title(f"test images, by score\n{_counts(kinds)}", fontsize=10)
    figure.supylabel("share of the images of a kind", fontsize=9)
    figure.legend(*_handles(figure.axes), loc="outside lower center", ncols=3, frameon=False)
    return figure


def _histogram(panel: Axes, scores: NDArray, kinds: Mapping[str, NDArray[np.bool_]]) -> None:
    """Draw each kind of images as shares of its own number: the injected ones are few."""
    edges = np.histogram_bin_edges(scores, BINS).tolist()
    for kind, chosen in kinds.items():
        if not chosen.any():
            continue
        panel.hist(
            scores[chosen],
            edges,
            weights=np.full(chosen.sum(), 1 / chosen.sum()),
            label=kind,
            histtype="step" if kind == "anomalous" else "stepfilled",
            alpha=1 if kind == "anomalous" else 0.6,
            color=KIND_COLOURS[kind],
            linewidth=1.3,
        )
    _plain_axes(panel)


def _counts(kinds: Mapping[str, NDArray[np.bool_]]) -> str:
    return ", ".join(f"{chosen.sum()} {kind}" for kind, chosen in kinds.items() if chosen.any())


def _plain_axes(panel: Axes) -> None:
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=9)
    panel.grid(visible=True, color="#000000", alpha=0.08)
    panel.set_axisbelow(True)


def _handles(panels: Sequence[Axes]) -> tuple[list, list[str]]:
    """Return one legend entry per name over all panels."""
    by_name = {
        name: handle for panel in panels for handle, name in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    return list(by_name.values()), list(by_name)
