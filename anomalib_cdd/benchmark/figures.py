# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Which figures a grid has, and from which of its cells: they are read, drawn and written here.

A figure is never worth a result: what cannot be read or drawn is named in the report, and the rest goes on.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from matplotlib import rc_context

from . import scores
from .heat_maps import heat_maps
from .plots import curves, histograms, styles
from .tables import finished

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    import pandas as pd
    from matplotlib.figure import Figure

    from .plots import Style

logger = logging.getLogger(__name__)

FOLDER = "figures"
HISTOGRAM_ARRAYS = {"train_suspicion", "train_is_noise", "test_scores", "test_labels", "test_injected"}
HEAT_MAP_ARRAYS = {"example_paths", "example_maps", "example_labels"}
HEAT_MAP_CAPTION = (
    "Test images that were not injected, taken at even steps of the test set. The outline is the true mask, where "
    "there is one. Each model has a colour scale of its own, from the median to the 99.9 % quantile of its maps shown: "
    "brightness does not compare between models."
)
DOTS_PER_INCH = 130


class Picture(NamedTuple):
    """A figure that is drawn: its data set, what stands above and below it, and its file."""

    data: str
    kind: str
    title: str
    caption: str
    path: Path


class Drawn(NamedTuple):
    """The figures, and a line for each thing that could not be read or drawn."""

    pictures: tuple[Picture, ...] = ()
    problems: tuple[str, ...] = ()


class Kind(NamedTuple):
    """A kind of figure."""

    title: str
    ending: str


KINDS = {
    "curves": Kind("Over the noise ratio", "svg"),
    "histograms": Kind("Scores of images", "svg"),
    "heat_maps": Kind("Heat maps", "png"),
}


class Job(NamedTuple):
    """A figure to be drawn."""

    kind: str
    caption: str
    make: Callable[[], Figure]


def draw(results: pd.DataFrame, output: Path) -> Drawn:
    """Draw every figure that the finished cells allow into ``figures``.

    Args:
        results: One row per cell that has run: ``data``, ``noise_ratio``, ``model``, ``seed``, ``status``, ``key``,
            ``config`` and the measures.
        output: The grid's folder; what the cells kept is in its ``cells``.
    """
    pictures: list[Picture] = []
    problems: list[str] = []
    if results.empty:
        return Drawn()
    look = styles(results["model"].unique().tolist())
    for data, group in finished(results).groupby("data", sort=False):
        cells = example_cells(group)
        arrays, damaged = _load(cells, output)
        problems += damaged
        for job in _jobs(group, cells, arrays, look):
            kind = KINDS[job.kind]
            path = output / FOLDER / f"{file_name(str(data))}_{job.kind}.{kind.ending}"
            try:
                save(job.make(), path)
            except Exception as error:  # no figure is worth the results
                problems.append(f"{path} could not be drawn ({_reason(error)}).")
                logger.warning(problems[-1], exc_info=logger.isEnabledFor(logging.DEBUG))
            else:
                pictures.append(Picture(str(data), job.kind, kind.title, job.caption, path))
    return Drawn(tuple(pictures), tuple(problems))


def _jobs(
    done: pd.DataFrame, cells: pd.DataFrame, arrays: Mapping[str, scores.Arrays], look: Mapping[str, Style]
) -> Iterator[Job]:
    """Yield the figures of one data set."""
    if done["noise_ratio"].nunique() > 1:
        yield Job("curves", curves_caption(done), partial(curves, done, look))
    where = f"Noise ratio {cells['noise_ratio'].iloc[0]:g}, seed {cells['seed'].iloc[0]}."
    models = done["model"].unique().tolist()
    kept = {model: values for model, values in arrays.items() if values.keys() >= HISTOGRAM_ARRAYS}
    if kept:
        caption = f"{where} Bars are shares of the images of one kind.{_without(models, kept)}"
        yield Job("histograms", caption, partial(histograms, kept, look))
    kept = {model: values for model, values in arrays.items() if values.keys() >= HEAT_MAP_ARRAYS}
    if kept:
        configs = {row["model"]: json.loads(row["config"])["model"] for row in cells.to_dict("records")}
        caption = f"{where} {HEAT_MAP_CAPTION}{_without(models, kept)}"
        yield Job("heat_maps", caption, partial(heat_maps, kept, configs, look))


def _load(cells: pd.DataFrame, output: Path) -> tuple[dict[str, scores.Arrays], list[str]]:
    """Return what each model's cell has kept, and a line for each file that is damaged."""
    arrays, damaged = {}, []
    for row in cells.to_dict("records"):
        path = output / "cells" / f"{row['key']}.npz"
        try:
            kept = scores.load(path)
        except Exception as error:  # noqa: BLE001  # a damaged file raises whatever its bytes lead to
            damaged.append(
                f"{path} is damaged ({_reason(error)}). Delete it and {row['key']}.json: the cell then runs again."
            )
            logger.warning(damaged[-1])
            continue
        if kept is not None:
            arrays[row["model"]] = kept
    return arrays, damaged


def example_cells(done: pd.DataFrame) -> pd.DataFrame:
    """Choose the cells whose images are shown: one per model, all of one noise ratio and one seed.

    The largest noise ratio among those that most models have finished, and there the lowest seed.

    Args:
        done: Finished cells of one data set.
    """
    models = done.groupby("noise_ratio")["model"].nunique()
    at_ratio = done[done["noise_ratio"] == max(models[models == models.max()].index)]
    return at_ratio[at_ratio["seed"] == at_ratio["seed"].min()]


def curves_caption(done: pd.DataFrame) -> str:
    """Say what the curves show, and whether all their points are of the same seeds."""
    caption = "Means over the seeds, with bands of one standard deviation."
    points = {point: tuple(sorted(set(part["seed"]))) for point, part in done.groupby(["noise_ratio", "model"])}
    if len(set(points.values())) < 2:
        return caption
    most = max(points.values(), key=len)
    fewer = "; ".join(
        f"{model} at {ratio:g}: {', '.join(map(str, seeds))}"
        for (ratio, model), seeds in points.items()
        if seeds != most
    )
    return (
        f"{caption} Not the same seeds at every point, and such means are not comparable: most have "
        f"{', '.join(map(str, most))}, but {fewer}."
    )


def _without(models: list[str], kept: Mapping[str, object]) -> str:
    missing = [model for model in models if model not in kept]
    return f" Nothing to show of {', '.join(missing)}." if missing else ""


def save(figure: Figure, path: Path) -> None:
    """Write a figure, whole or not at all; the same figure gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    metadata = {"Date": None} if path.suffix == ".svg" else None
    with rc_context({"svg.hashsalt": path.name}):
        figure.savefig(temporary, format=path.suffix[1:], dpi=DOTS_PER_INCH, facecolor="white", metadata=metadata)
    temporary.replace(path)


def file_name(data: str) -> str:
    """Return a data set's name as part of a file name; names that differ stay different."""
    safe = re.sub(r"[^\w.-]", "_", data)
    return safe if safe == data else f"{safe}_{hashlib.sha256(data.encode()).hexdigest()[:6]}"


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
