# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""The tables of the grid's report: means and standard deviations over the seeds, the best and the second best marked.

A table is plain data; ``report.py`` writes it as Markdown and as HTML. Marks go by the numbers as they are printed, so
that equal numbers have equal marks.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

SETTINGS = {
    "No overlap": ("image_AUROC", "pixel_AUROC", "AUPRO", "PRO"),
    "Overlap": ("image_AUROC_overlap", "pixel_AUROC_overlap", "AUPRO_overlap", "PRO_overlap"),
    "Its own noise": ("injected_AUROC", "noise_AP", "noise_precision", "kept_normals", "noise_left"),
    "Threshold without labels": (
        "F1",
        "F1_best",
        "F1_ratio",
        "false_alarms",
        "false_alarm_rate",
        "pixel_F1_ratio",
        "pixel_false_alarms",
        "pixel_false_alarm_rate",
    ),
    "Cost": ("steps", "fit_seconds", "inference_seconds"),
}
# of these more is not better
UNRANKED = {
    "kept_normals",
    "noise_left",
    "F1_best",
    "false_alarms",
    "false_alarm_rate",
    "pixel_false_alarms",
    "pixel_false_alarm_rate",
}
UNRANKED |= set(SETTINGS["Cost"])
# how well the ranking of the training images finds the bad ones
OF_RANKING = ("noise_AP", "noise_precision")
OVERVIEW = ("image_AUROC", "image_AUROC_overlap", "noise_AP")
DECIMALS = 3
DECIMALS_OF = {"steps": 0, "fit_seconds": 0, "inference_seconds": 5}
IN_SAMPLE = "(in-sample)"
MISSING = "-"


@dataclass(frozen=True)
class Value:
    """A number as it is printed: 1 for the best of its column, 2 for the second best, else 0."""

    text: str
    rank: int = 0


@dataclass(frozen=True)
class Table:
    """Rows of cells, each of one value or more; ``notes`` stand below."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[tuple[Value, ...], ...], ...]
    notes: tuple[str, ...] = ()


def finished(results: pd.DataFrame) -> pd.DataFrame:
    """Return the finished cells; data sets and models in the order of the grid, whichever cell came first.

    Args:
        results: Cells that have run, in the order of the grid: ``data``, ``model``, ``status``.
    """
    done = results[results["status"] == "done"]
    for column in ("model", "data"):
        order = results[column].unique().tolist()
        done = done.sort_values(column, key=lambda names, order=order: names.map(order.index), kind="stable")
    return done


def compared(done: pd.DataFrame) -> pd.DataFrame:
    """Return the cells without the measures of in-sample rankings: a model is lenient with what it has learned from.

    Args:
        done: Finished cells; ``out_of_sample`` says which ranking is not by the model's own scores.
    """
    names = [name for name in OF_RANKING if name in done]
    is_out = done["out_of_sample"].eq(1) if "out_of_sample" in done else pd.Series(data=False, index=done.index)
    return done.assign(**{name: done[name].where(is_out) for name in names})


def setting_tables(group: pd.DataFrame) -> list[Table]:
    """Return the tables of one data set at one noise ratio, a row per model; without those that measured nothing.

    Args:
        group: Finished cells: ``model``, ``seed`` and the measures.
    """
    tables = []
    for title, names in SETTINGS.items():
        measured = [name for name in names if name in group and group[name].notna().any()]
        if measured:
            tables.append(_setting_table(group, title, measured))
    return tables


def _setting_table(group: pd.DataFrame, title: str, names: list[str]) -> Table:
    models = group.groupby("model", sort=False)
    means, deviations, seeds = models[names].mean(), models[names].std(), models["seed"].nunique()
    marks = _marks(group, [name for name in names if name not in UNRANKED])
    rows = tuple(
        (
            plain(model),
            plain(seeds[model]),
            *((_value(means.loc[model, name], name, model, marks, deviations.loc[model, name]),) for name in names),
        )
        for model in means.index
    )
    columns = ("model", "seeds", *(name.removesuffix("_overlap") for name in names))
    return Table(title, columns, rows, seed_notes(group) + precision_notes(group))


def overview(group: pd.DataFrame, title: str) -> Table:
    """Return one table of all data sets at one noise ratio: a row per data set, a column per model.

    Args:
        group: Finished cells: ``data``, ``model``, ``seed`` and the measures.
        title: Title of the table.
    """
    models, rows = group["model"].unique().tolist(), []
    for data, part in group.groupby("data", sort=False):
        by_model = part.groupby("model", sort=False)[[name for name in OVERVIEW if name in part]].mean()
        means = by_model.reindex(index=models, columns=list(OVERVIEW))
        marks = _marks(part, [name for name in OVERVIEW if name in part])
        cells = (tuple(_value(means.loc[model, name], name, model, marks) for name in OVERVIEW) for model in models)
        rows.append((plain(data), *cells))
    notes = [
        f"{data}: {note}"
        for data, part in group.groupby("data", sort=False)
        for note in seed_notes(part, short=True) + precision_notes(part, short=True)
    ]
    return Table(title, ("data", *models), tuple(rows), tuple(notes))


def _marks(group: pd.DataFrame, names: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return each model's mark in each measure, by the mean that is printed; one without is not in the comparison.

    That is a model with an in-sample ranking of any seed.
    """
    models = compared(group).groupby("model", sort=False)
    measured = models[list(names)]
    means = measured.mean().where(measured.count().eq(models.size(), axis=0))
    return {
        name: {
            model: mark
            for model, mark, mean in zip(means.index, ranks(means[name]), means[name], strict=True)
            if not pd.isna(mean)
        }
        for name in names
    }


def _value(
    mean: float, name: str, model: str, marks: Mapping[str, Mapping[str, int]], deviation: float = np.nan
) -> Value:
    text = mean_text(mean, deviation, DECIMALS_OF.get(name, DECIMALS))
    of = marks.get(name, {})
    if name in OF_RANKING and text != MISSING and model not in of:
        text = f"{text} {IN_SAMPLE}"
    return Value(text, of.get(model, 0))


def seed_notes(group: pd.DataFrame, short: bool = False) -> tuple[str, ...]:
    """Say which seeds each model was run on, if they are not the same: such means do not compare."""
    seeds = {str(model): tuple(sorted(set(part["seed"]))) for model, part in group.groupby("model", sort=False)}
    if len(set(seeds.values())) < 2:
        return ()
    listed = "; ".join(f"{model} {', '.join(map(str, numbers))}" for model, numbers in seeds.items())
    if short:
        return (f"not the same seeds ({listed}).",)
    return (f"Not the same seeds for every model ({listed}): means over different seeds are not comparable.",)


def precision_notes(group: pd.DataFrame, short: bool = False) -> tuple[str, ...]:
    """Say which precision each model ran in, if cells that were asked for one ran in several: a processor lacked it."""
    if not {"config", "precision"} <= set(group):
        return ()
    asked = group["config"].map(lambda config: (json.loads(config).get("trainer") or {}).get("precision"))
    if (group["precision"].groupby(asked).nunique() < 2).all():
        return ()
    listed = "; ".join(
        f"{model} {' and '.join(sorted(set(part['precision'])))}" for model, part in group.groupby("model", sort=False)
    )
    if short:
        return (f"not the precision that was asked for in every cell ({listed}).",)
    return (f"Not the precision that was asked for in every cell ({listed}): bf16 and fp32 do not compare.",)


def ranks(column: Sequence[float] | pd.Series) -> list[int]:
    """Return 1 for the largest value of a column as printed, 2 for the second largest, else 0; none where all agree."""
    values = np.array([float(f"{value:.{DECIMALS}f}") for value in column])
    order = np.unique(values[~np.isnan(values)])[::-1].tolist()
    if len(order) < 2:
        return [0] * len(values)
    return [order.index(value) + 1 if value in order[:2] else 0 for value in values.tolist()]


def mean_text(mean: float, deviation: float = np.nan, decimals: int = DECIMALS) -> str:
    """Return ``mean ± deviation``; the mean alone where there was one seed."""
    if pd.isna(mean):
        return MISSING
    return f"{mean:.{decimals}f}" + ("" if pd.isna(deviation) else f" ± {deviation:.{decimals}f}")


def plain(text: object) -> tuple[Value, ...]:
    """Return a cell of unmarked text."""
    return (Value(str(text)),)
