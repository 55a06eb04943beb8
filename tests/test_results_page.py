# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""The page of results says what results.csv says, and follows it when it changes."""

from pathlib import Path

import pandas as pd
import pytest
from matplotlib.collections import PathCollection
from pages import ROOT, read

from anomalib_cdd.benchmark.plots import EPOCH_CURVES
from benchmarks import results

REMEDY = "python -m benchmarks.results"


@pytest.fixture
def done() -> pd.DataFrame:
    return results.read(ROOT / results.RESULTS)


@pytest.fixture(scope="module")
def speed() -> dict[str, float]:
    return results.read_speed(ROOT / results.SPEED_OF_EACH)


@pytest.fixture
def plain(done: pd.DataFrame) -> pd.DataFrame:
    """Rows of two models as a version wrote them that had no ranking out of sample."""
    rows = done[done["model"].isin(["cdd", "rd"]) & (done["noise_ratio"] == 0.1)]
    return rows.assign(anomalib_cdd="0.1.0", commit="df9f04d", out_of_sample=0.0)


def grown(done: pd.DataFrame) -> pd.DataFrame:
    """Half a year later: a data set more, and a model that does not rank what it has learned from."""
    more = done[done["model"] == "rd"].assign(model="new", anomalib_cdd="0.9", commit="abc", out_of_sample=1.0)
    more = more.assign(image_AUROC_overlap=lambda cells: cells["image_AUROC_overlap"] + 0.2)
    both = pd.concat([done, more])
    return pd.concat([both, both[both["data"] == "mono_cells"].assign(data="screws")])


def test_the_page_is_of_todays_results(done: pd.DataFrame, speed: dict[str, float]) -> None:
    assert read("docs/results.md") == results.page(done, speed), REMEDY


def test_the_picture_is_of_todays_results() -> None:
    assert results.fingerprint(ROOT / results.RESULTS) in read("docs/results.svg"), REMEDY


def test_each_model_has_its_place_in_the_picture(done: pd.DataFrame, speed: dict[str, float]) -> None:
    means = (
        done[done["noise_ratio"] == 0.1]
        .groupby(["data", "model"], sort=False)[["noise_AP", "image_AUROC_overlap"]]
        .mean()
    )
    panels = results.picture(done, speed).axes
    assert [panel.get_title() for panel in panels] == [name.replace("_", " ") for name in done["data"].unique()]
    for panel, (_, expected) in zip(panels, means.groupby("data", sort=False), strict=True):
        drawn = [tuple(points.get_offsets()[0]) for points in panel.collections if len(points.get_offsets())]
        points = {(round(x, 6), round(y, 6)) for x, y in drawn}
        assert {(round(x, 6), round(y, 6)) for x, y in expected.to_numpy()} <= points


def test_it_says_what_was_not_measured(plain: pd.DataFrame) -> None:
    said = results.caption(plain)
    assert "Every ranking is in sample" in said
    more = results.caption(grown(plain))
    assert "Hollow points are in sample" in more
    assert results.caption(grown(plain).query("model == 'new'")).endswith("All rankings are out of sample.")


def test_new_rows_make_another_page(plain: pd.DataFrame, speed: dict[str, float]) -> None:
    page = results.page(grown(plain), speed)
    assert "**Version 0.1.0 and 0.9 measured these rows, commit abc and df9f04d**" in page.replace("\n", " ")
    assert page.count("| screws | new |") == page.count("| screws | rd |") == 2
    [advice] = [line for line in page.splitlines() if line.startswith("- **To tell defects")]
    assert "new (" in advice
    legend = [text.get_text() for text in results.picture(grown(plain), {}).legends[0].get_texts()]
    assert legend == ["cdd", "rd", "new"]


def test_a_point_is_as_large_as_inference_takes_long(done: pd.DataFrame, speed: dict[str, float]) -> None:
    figure = results.picture(done, {"anomalib.models.Patchcore": 80.0, "anomalib_cdd.CrossPatch": 40.0})
    legend = figure.legends[0]
    texts = [text.get_text() for text in legend.get_texts()]
    assert {"patchcore, 80 ms", "crosspatch_2, 40 ms", "cdd"} <= set(texts)
    areas = {text: float(handle.get_sizes()[0]) for text, handle in zip(texts, legend.legend_handles, strict=True)}
    assert areas["patchcore, 80 ms"] == 2 * areas["crosspatch_2, 40 ms"] > areas["cdd"] > 0
    for panel in figure.axes:
        drawn = {float(each.get_sizes()[0]) for each in panel.collections if isinstance(each, PathCollection)}
        assert drawn == set(areas.values())
    said = results.page(done, {"anomalib_cdd.Cdd": 20.0, "anomalib.models.Patchcore": 80.0})
    assert "Not timed, and so smallest: crosspatch_1, crosspatch_1_cleaned," in said.replace("\n", " ")
    # every class of the grid is timed
    assert "Not timed" not in results.page(done, speed)


def test_more_noise_is_answered_by_those_that_met_it(plain: pd.DataFrame, speed: dict[str, float]) -> None:
    assert "over the noise" not in results.page(plain, speed)
    noisy = plain.assign(noise_ratio=0.2, image_AUROC_overlap=plain["image_AUROC_overlap"] / 2)
    page = results.page(pd.concat([grown(plain), noisy]), speed)
    [advice] = [line for line in page.splitlines() if line.startswith("- **To do so where more")]
    assert " of cdd and rd (" in advice
    table = page.partition("over the noise")[2].partition("## ")[0]
    assert "| new |" not in table
    assert table.count("| cdd |") == table.count("| rd |") == plain["data"].nunique()
    mean = plain.query("data == 'bottle' and model == 'rd'")["image_AUROC_overlap"].mean()
    [row] = [line for line in table.splitlines() if line.startswith("| bottle | rd |")]
    assert [cell.split(" ")[1] for cell in row.split("|")[3:5]] == [f"{x:.3f}"[1:] for x in (mean, mean / 2)]


@pytest.mark.parametrize("course", results.COURSES)
def test_curves_of_learning_are_of_their_file(course: str) -> None:
    points = pd.read_csv(ROOT / course)
    drawn = results.course(points)
    assert list(drawn) == points["data"].unique().tolist()
    for data, figure in drawn.items():
        assert [panel.get_title() for panel in figure.axes] == list(EPOCH_CURVES.values())
        means = points[points["data"] == data].groupby(["model", "epoch"], sort=False)["injected_AUROC"].mean()
        lines = {line.get_label(): line.get_ydata() for line in figure.axes[2].lines}
        for model, values in means.groupby("model", sort=False):
            level = len(values) == 1  # drawn from end to end
            assert list(lines[model]) == pytest.approx([*values, *values] if level else list(values))
        assert results.fingerprint(ROOT / course) in read(f"docs/learning_{data}.svg"), REMEDY


def test_a_model_is_ahead_only_where_it_is_on_every_seed() -> None:
    rows = [
        {"data": "a", "noise_ratio": 0.1, "model": model, "seed": seed, "image_AUROC_overlap": value}
        for model, values in {"best": (0.9, 0.8, 0.9), "near": (0.7, 0.9, 0.6), "far": (0.1, 0.2, 0.3)}.items()
        for seed, value in enumerate(values)
    ]
    blank = {"injected_AUROC": float("nan"), "AUPRO": float("nan")}
    first, *_ = results.advice(pd.DataFrame(rows).assign(**blank))
    assert "a best (.867" in first
    assert "not told apart: near)" in first


def test_the_command_writes_both(tmp_path: Path) -> None:
    assert results.main(["--output", str(tmp_path)]) == 0
    assert (tmp_path / "results.md").read_text(encoding="utf-8") == read("docs/results.md")
    assert (tmp_path / "results.svg").stat().st_size > 10_000
