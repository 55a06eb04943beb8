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

from anomalib_cdd.training.files import written_whole

from . import scores
from .heat_maps import heat_maps
from .plots import EPOCH_CURVES, RATIO_CURVES, curves, histograms, styles
from .tables import compared, finished

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    import pandas as pd
    from matplotlib.figure import Figure

    from .plots import Style

logger = logging.getLogger(__name__)

FOLDER = "figures"
HISTOGRAM_ARRAYS = {"train_suspicion", "train_out_of_sample", "train_is_noise"}
HISTOGRAM_ARRAYS |= {"test_scores", "test_labels", "test_injected"}
HEAT_MAP_ARRAYS = {"example_paths", "example_names", "example_maps", "example_labels"}
HEAT_MAP_CAPTION = (
    "Test images that were not injected, taken at even steps of the test set. The outline is the true mask, where "
    "there is one. Each model has a colour scale of its own, from the median to the 99.9 % quantile of its maps shown: "
    "brightness does not compare between models."
)
WITHOUT_IN_SAMPLE = "Noise AP is of out-of-sample rankings alone."
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
    "course": Kind("Over the epochs", "svg"),
    "histograms": Kind("Scores of images", "svg"),
    "heat_maps": Kind("Heat maps", "png"),
}


class Job(NamedTuple):
    """A figure to be drawn."""

    kind: str
    caption: str
    make: Callable[[], Figure]


def draw(results: pd.DataFrame, course: pd.DataFrame, output: Path) -> Drawn:
    """Draw every figure that the finished cells allow into ``figures``.

    Args:
        results: One row per cell that has run: ``data``, ``noise_ratio``, ``model``, ``seed``, ``status``, ``key``,
            ``config`` and the measures.
        course: One row per measure in the course of a training, see :func:`.records.curves_of`; may be empty.
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
        of_data = course[course["data"] == data] if len(course) else course
        for job in _jobs(group, of_data, cells, arrays, look):
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
    done: pd.DataFrame,
    course: pd.DataFrame,
    cells: pd.DataFrame,
    arrays: Mapping[str, scores.Arrays],
    look: Mapping[str, Style],
) -> Iterator[Job]:
    """Yield the figures of one data set."""
    is_measured = done[[name for name in RATIO_CURVES if name in done]].notna().any(axis=None)
    if done["noise_ratio"].nunique() > 1 and is_measured:
        yield Job("curves", f"{curves_caption(done)} {WITHOUT_IN_SAMPLE}", partial(curves, compared(done), look))
    ratio = cells["noise_ratio"].iloc[0]
    if len(course):
        shown = course[course["noise_ratio"] == ratio]
        caption = f"Noise ratio {ratio:g}. {curves_caption(shown, 'epoch')} Nothing was chosen by these measures."
        yield Job("course", caption, partial(curves, shown, look, "epoch", EPOCH_CURVES))
    where = f"Noise ratio {ratio:g}, seed {cells['seed'].iloc[0]}."
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


def curves_caption(done: pd.DataFrame, along: str = "noise_ratio") -> str:
    """Say what the curves show, and whether all their points are of the same seeds."""
    caption = "Means over the seeds, with bands of one standard deviation."
    if along == "noise_ratio":
        caption += _missing(done)
    points = {point: tuple(sorted(set(part["seed"]))) for point, part in done.groupby([along, "model"])}
    if len(set(points.values())) < 2:
        return caption
    most = max(points.values(), key=len)
    fewer = "; ".join(
        f"{model} at {point:g}: {', '.join(map(str, seeds))}"
        for (point, model), seeds in points.items()
        if seeds != most
    )
    return (
        f"{caption} Not the same seeds at every point, and such means are not comparable: most have "
        f"{', '.join(map(str, most))}, but {fewer}."
    )


def _missing(done: pd.DataFrame) -> str:
    """Name the models that were not measured at every noise ratio, and where they were not."""
    ratios = set(done["noise_ratio"])
    listed = []
    for model, part in done.groupby("model", sort=False):
        lacking = sorted(ratios - set(part["noise_ratio"]))
        if lacking:
            listed.append(f"{model} at {', '.join(f'{ratio:g}' for ratio in lacking)}")
    return f" Not measured: {'; '.join(listed)}." if listed else ""


def _without(models: list[str], kept: Mapping[str, object]) -> str:
    missing = [model for model in models if model not in kept]
    return f" Nothing to show of {', '.join(missing)}." if missing else ""


def save(figure: Figure, path: Path) -> None:
    """Write a figure, whole or not at all; the same figure gives the same bytes."""
    metadata = {"Date": None} if path.suffix == ".svg" else None
    with written_whole(path) as draft, rc_context({"svg.hashsalt": path.name}):
        figure.savefig(draft, format=path.suffix[1:], dpi=DOTS_PER_INCH, facecolor="white", metadata=metadata)


def file_name(data: str) -> str:
    """Return a data set's name as part of a file name; names that differ stay different."""
    safe = re.sub(r"[^\w.-]", "_", data)
    return safe if safe == data else f"{safe}_{hashlib.sha256(data.encode()).hexdigest()[:6]}"


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
