# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""The page of results: ``python -m benchmarks.results`` makes docs/results.md and its picture of a grid's results.csv.

Nothing on the page is written by hand: other rows make other tables, another picture and other advice. The curves of
learning and forgetting that docs/training.md shows are made beside, of the curves.csv of grids of long trainings.
"""

import argparse
import hashlib
import json
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from anomalib_cdd.benchmark.plots import EPOCH_CURVES, PAD, PANELS_A_ROW, Style, curves, styles
from anomalib_cdd.benchmark.tables import finished
from anomalib_cdd.training.files import written_whole

ROOT = Path(__file__).parents[1]
RESULTS = "experiments/four_sets/results.csv"
COURSES = ("experiments/bottle/curves.csv", "experiments/small_sets/curves.csv")
SPEED_OF_EACH = "experiments/speed/milliseconds.csv"
RATIO = 0.1
X, Y = "noise_AP", "image_AUROC_overlap"
COLUMNS = {
    "image_AUROC": "image AUROC, no overlap",
    "image_AUROC_overlap": "overlap",
    "injected_AUROC": "injected AUROC",
    "AUPRO": "AUPRO",
}
AREA = 2.5  # of a marker, in square points for each millisecond
SMALLEST = 25  # that a marker can be seen
SPEED = "../experiments/speed/bench.md"


class Question(NamedTuple):
    """What somebody who chooses a model asks."""

    text: str
    meaning: str
    measure: str
    at_most: bool = False  # at the most noise of the grid rather than at RATIO


QUESTIONS = (
    Question("To tell defects from good parts", "image AUROC with overlap", Y),
    Question("To do so where more of the training images are bad", "the same at noise {most:g}", Y, at_most=True),
    Question("To find the defects that the training set itself holds", "injected AUROC", "injected_AUROC"),
    Question("To see where in the image a defect is", "AUPRO", "AUPRO"),
)


def read(path: Path) -> pd.DataFrame:
    """Read the finished cells of a grid, of those models on a data set that have all of its seeds."""
    done = finished(pd.read_csv(path))
    seeds = done.groupby(["data", "noise_ratio", "model"])["seed"].transform("nunique")
    return done[seeds == done["seed"].nunique()]


def read_speed(path: Path) -> dict[str, float]:
    """Read the milliseconds that an image takes, by the class of a model."""
    rows = pd.read_csv(path)
    return dict(zip(rows["class_path"], rows["milliseconds"], strict=True))


def page(done: pd.DataFrame, speed: dict[str, float], results: str = RESULTS) -> str:
    """Return docs/results.md."""
    return "\n\n".join(_paragraphs(done, speed, results)) + "\n"


def _paragraphs(done: pd.DataFrame, speed: dict[str, float], results: str) -> Iterator[str]:
    shown = done[done["noise_ratio"] == RATIO]
    report = Path(results).with_name("report.md").as_posix()
    yield "# Results"
    yield _wrapped(
        f"`python -m benchmarks.results` makes this page of [{results}](../{results}); nothing on it is written by "
        f"hand. **Version {_listed(done['anomalib_cdd'])} measured these rows, commit {_listed(done['commit'])}**, "
        f"with anomalib {_listed(done['anomalib'])} and torch {_listed(done['torch'])}: "
        f"means ± standard deviations over {done['seed'].nunique()} seeds (what has fewer is in the file alone), last "
        "epoch; no label chose an epoch or a threshold. What the measures are: "
        f"[report.md](../{report}); what the models are and what figures are worth: "
        "[experiments](../experiments/README.md)."
    )
    yield "![Noise AP and image AUROC of each model, by data set](results.svg)"
    yield _wrapped(f"{caption(shown)} {_sizes(shown, speed)}")
    yield "## Which model for what"
    yield _wrapped(
        f"By these figures alone, at noise {RATIO:g} where nothing else is said. A model is *not told apart* from the "
        "best unless the best is ahead of it on every seed; on few seeds even that happens by chance. A model that has "
        "no row on a data set was not measured there on all seeds."
    )
    yield "\n".join(_wrapped(line, "  ") for line in advice(done))
    yield "## How they were trained"
    yield _table(["model", "class", "epochs", "precision", "version", "commit", "cells"], _trained(done))
    yield f"## At noise {RATIO:g}"
    measured = [name for name in COLUMNS if name in shown and shown[name].notna().any()]
    rows = [
        [data, model, *(number(cells[name]) for name in measured)]
        for (data, model), cells in shown.groupby(["data", "model"], sort=False)
    ]
    yield f"<!-- rows of {results} where noise_ratio={RATIO:g}: {' '.join(measured)} -->\n" + _table(
        ["data", "model", *(COLUMNS[name] for name in measured)], rows
    )
    yield _wrapped(
        "Seconds of these fits are in the file and do not compare: the cells ran beside other work. Speed is measured "
        f"in [bench.md]({SPEED})."
    )
    yield _wrapped("Noise AP says how well a model's ranking of the training images finds the injected ones:")
    yield _table(["data", "model", "noise AP", "ranking"], _rankings(shown))
    ratios = sorted(done["noise_ratio"].unique())
    if len(ratios) == 1:
        return
    columns = ["data", "model", *(f"{ratio:g}" for ratio in ratios)]
    yield "## Image AUROC with overlap, over the noise"
    yield _table(columns, _over_noise(done, ratios, Y))
    yield "## False alarms, over the noise"
    yield _wrapped(
        "Share of good test images above the threshold that a user without labels gets "
        "([thresholds](thresholds.md#stated-and-true-rates), which has those of models after `clean`); .05 is stated."
    )
    cleaned = done["config"].map(lambda config: bool(json.loads(config)["data"]["init_args"].get("clean")))
    yield _table(columns, _over_noise(done[~cleaned], ratios, "false_alarms"))


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False, subsequent_indent=indent)


def _listed(values: pd.Series) -> str:
    *others, last = sorted(set(values.astype(str)))
    return f"{', '.join(others)} and {last}" if others else last


def caption(shown: pd.DataFrame) -> str:
    """Say what the picture shows and what it cannot show."""
    is_in = ~_out_of_sample(shown)
    hollow = (
        "Every ranking is in sample: models ranked images that they had learned from, which flatters, and noise AP "
        "does not compare between models."
        if is_in.all()
        else "Hollow points are in sample: the model ranked images that it had learned from, which flatters."
        if is_in.any()
        else "All rankings are out of sample."
    )
    return f"Noise {RATIO:g}; bars are one standard deviation over the seeds. {hollow}"


def _sizes(shown: pd.DataFrame, speed: dict[str, float]) -> str:
    """Say what the sizes of the points are."""
    unknown = sorted({str(row.model) for row in shown.itertuples() if _class(row.config) not in speed})
    without = f" Not timed, and so smallest: {', '.join(unknown)}." if unknown else ""
    return (
        "The larger a point, the more milliseconds an image takes: "
        f"[milliseconds.csv](../{SPEED_OF_EACH}) has them for each class, all at "
        "a batch of 16 images of 160 x 160 pixels, in fp32, on one thread of a machine that did nothing else."
        f"{without}"
    )


def _class(config: str) -> str:
    return str(json.loads(config)["model"]["class_path"])


def advice(done: pd.DataFrame) -> Iterator[str]:
    """Yield a line for each question that the figures answer."""
    most = done["noise_ratio"].max()
    for question in QUESTIONS:
        if question.at_most and most == RATIO:
            continue
        shown = done[done["noise_ratio"] == (most if question.at_most else RATIO)]
        answers = []
        for data, cells in shown.groupby("data", sort=False):
            by_seed = cells.pivot_table(index="seed", columns="model", values=question.measure, sort=False)
            if by_seed.empty:
                continue
            best = str(by_seed.mean().idxmax())
            others = [model for model in by_seed if model != best]
            near = [model for model in others if not _ahead(by_seed, best, model)]
            doubt = f"; not told apart: {', '.join(near)}" if near else ""
            # so much noise is seldom shown to every model
            among = f" of {_listed(by_seed.columns.to_series())}" if question.at_most else ""
            # a line is not broken within a number
            answers.append(
                f"{data} {best}{among} ({number(by_seed[best])}{doubt})".replace(
                    " ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}"
                )
            )
        if answers:
            yield f"- **{question.text}** ({question.meaning.format(most=most)}): {'; '.join(answers)}."


def _ahead(by_seed: pd.DataFrame, best: str, other: str) -> bool:
    difference = (by_seed[best] - by_seed[other]).dropna()
    return bool(len(difference) and (difference > 0).all())


def _trained(done: pd.DataFrame) -> list[list[str]]:
    rows = []
    for model, cells in done.groupby("model", sort=False):
        configs = [json.loads(config) for config in cells["config"]]
        epochs = sorted({str(config["trainer"].get("max_epochs", "its own")) for config in configs})
        kinds = sorted({config["model"]["class_path"] for config in configs})
        known = (_listed(cells[name]) for name in ("precision", "anomalib_cdd", "commit"))
        rows.append([str(model), " and ".join(kinds), " and ".join(epochs), *known, str(len(cells))])
    return rows


def _rankings(shown: pd.DataFrame) -> list[list[str]]:
    rows = []
    for (data, model), cells in shown.groupby(["data", "model"], sort=False):
        is_out = _out_of_sample(cells)
        kind = "out of sample" if is_out.all() else "in sample" if not is_out.any() else "out of sample on some seeds"
        rows.append([data, model, number(cells[X]), kind])
    return rows


def _over_noise(done: pd.DataFrame, ratios: Sequence[float], measure: str) -> list[list[str]]:
    return [
        [data, model, *(number(cells.loc[cells["noise_ratio"] == ratio, measure]) for ratio in ratios)]
        for (data, model), cells in done.groupby(["data", "model"], sort=False)
        if cells["noise_ratio"].nunique() > 1
    ]


def number(values: pd.Series) -> str:
    """Return mean ± standard deviation, ``-`` where nothing was measured, the mean alone of one seed."""
    known = values.dropna()
    if known.empty:
        return "-"
    digits = 0 if known.mean() > 1.001 else 3
    parts = [known.mean(), known.std()] if len(known) > 1 else [known.mean()]
    return " ± ".join(f"{part:.{digits}f}".replace("0.", ".", 1) for part in parts)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" if line[0] != "---" else f"|{'|'.join(line)}|" for line in lines)


def _out_of_sample(cells: pd.DataFrame) -> pd.Series:
    return cells["out_of_sample"].eq(1) if "out_of_sample" in cells else pd.Series(data=False, index=cells.index)


# ------------------------------------------------------------------------------------------ the picture


def picture(done: pd.DataFrame, speed: dict[str, float]) -> Figure:
    """Draw a panel for each data set: noise AP against image AUROC with overlap, a point for each model.

    Args:
        done: What :func:`read` returns.
        speed: Milliseconds an image by class, which the points' areas show.
    """
    shown = done[done["noise_ratio"] == RATIO]
    names, look = shown["data"].unique().tolist(), styles(shown["model"].unique().tolist())
    n_columns = min(len(names), PANELS_A_ROW)
    n_rows = -(-len(names) // PANELS_A_ROW)
    figure = Figure(
        figsize=(3.4 * n_columns + 0.4, 3.0 * n_rows + 0.6), layout=ConstrainedLayoutEngine(w_pad=PAD, h_pad=PAD)
    )
    panels: list[Axes] = list(figure.subplots(n_rows, n_columns, squeeze=False).flat)
    for name, panel in zip(names, panels, strict=False):
        for model, cells in shown[shown["data"] == name].groupby("model", sort=False):
            _point(panel, cells, look[str(model)], speed)
        panel.set_title(name.replace("_", " "), fontsize=11)
        panel.set_xlabel("noise AP", fontsize=9)
        panel.set_ylabel("image AUROC, overlap", fontsize=9)
        panel.tick_params(labelsize=8)
        panel.xaxis.set_major_locator(MaxNLocator(5))
        panel.yaxis.set_major_locator(MaxNLocator(5))
        panel.margins(0.12)
        panel.grid(visible=True, color="#000000", alpha=0.08)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[len(names) :]:
        panel.remove()
    figure.legend(
        handles=_legend(figure, shown, look, speed), loc="outside lower center", ncols=5, frameon=False, fontsize=9
    )
    return figure


def _point(panel: Axes, cells: pd.DataFrame, style: Style, speed: dict[str, float]) -> None:
    if cells[[X, Y]].isna().all().any():
        return  # a model that ranks no training images has no place on the axis
    x, y, x_bar, y_bar = cells[X].mean(), cells[Y].mean(), cells[X].std(), cells[Y].std()
    panel.errorbar(x, y, y_bar, x_bar, fmt="none", ecolor=style.colour, elinewidth=1.1, capsize=2.5, alpha=0.75)
    looks = _looks(cells, style, speed)
    panel.scatter(x, y, zorder=3 + 1 / looks["s"], **looks)  # the small ones above the large


def _legend(figure: Figure, shown: pd.DataFrame, look: dict[str, Style], speed: dict[str, float]) -> list[Any]:
    handles = []
    for model, style in look.items():
        cells = shown[shown["model"] == model]
        taken = speed.get(_class(cells["config"].iloc[0]))
        label = model if taken is None else f"{model}, {taken:.0f} ms"
        handles.append(figure.axes[0].scatter([], [], label=label, **_looks(cells, style, speed)))
    return handles


def _looks(cells: pd.DataFrame, style: Style, speed: dict[str, float]) -> dict[str, Any]:
    face = style.colour if _out_of_sample(cells).all() else "white"
    area = max(SMALLEST, AREA * speed.get(_class(cells["config"].iloc[0]), 0))
    return {"s": area, "marker": style.marker, "facecolor": face, "edgecolor": style.colour, "linewidth": 1.6}


def course(points: pd.DataFrame) -> dict[str, Figure]:
    """Draw the measures of each data set over the epochs, by the data set's name."""
    return {
        str(data): curves(group, styles(group["model"].unique().tolist()), "epoch", EPOCH_CURVES)
        for data, group in points.groupby("data", sort=False)
    }


def fingerprint(path: Path) -> str:
    """Return the hash by which a picture says which results it shows."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(arguments: list[str] | None = None) -> int:
    """Write the page and the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", default=RESULTS, help="results.csv of a grid, relative to the repository")
    parser.add_argument("--speed", default=SPEED_OF_EACH, help="what benchmarks.milliseconds wrote, likewise")
    parser.add_argument("--output", type=Path, default=ROOT / "docs", help="folder of results.md and the pictures")
    parser.add_argument("--courses", nargs="*", default=COURSES, help="curves.csv of grids, relative to the repository")
    options = parser.parse_args(arguments)
    done, speed = read(ROOT / options.results), read_speed(ROOT / options.speed)
    _save(picture(done, speed), options.output / "results.svg", ROOT / options.results)
    for path in options.courses:
        for data, figure in course(pd.read_csv(ROOT / path)).items():
            _save(figure, options.output / f"learning_{data}.svg", ROOT / path)
    with written_whole(options.output / "results.md") as draft:
        draft.write_text(page(done, speed, options.results), encoding="utf-8")
    print(f"{options.output / 'results.md'} and results.svg: {len(done)} cells")
    return 0


def _save(figure: Figure, path: Path, source: Path) -> None:
    metadata = {"Date": None, "Description": fingerprint(source)}
    with written_whole(path) as draft, rc_context({"svg.hashsalt": path.stem}):
        figure.savefig(draft, format="svg", facecolor="white", metadata=metadata)


if __name__ == "__main__":
    raise SystemExit(main())
