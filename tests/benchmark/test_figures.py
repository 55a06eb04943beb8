# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""The figures show what was measured, alike for every model, and a bad one costs nothing but itself."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib import _pylab_helpers
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex

from anomalib_cdd.benchmark import figures
from anomalib_cdd.benchmark.figures import curves_caption, draw, example_cells, file_name
from anomalib_cdd.benchmark.heat_maps import COLOUR_QUANTILES, frame_of, heat_maps
from anomalib_cdd.benchmark.plots import BINS, EPOCH_CURVES, KIND_COLOURS, RATIO_CURVES, curves, histograms, styles
from anomalib_cdd.benchmark.scores import Arrays, load
from anomalib_cdd.benchmark.tables import compared

MODELS = ["cdd", "rd", "patchcore"]
LOOK = styles(MODELS)


def kept_of(frame: pd.DataFrame, output: Path) -> dict[str, Arrays]:
    """Return what the cells that are shown have kept, by model."""
    return {row["model"]: load(output / "cells" / f"{row['key']}.npz") for row in rows_of(example_cells(frame))}


def models_of(frame: pd.DataFrame) -> dict[str, dict[str, Any]]:
    return {row["model"]: json.loads(row["config"])["model"] for row in rows_of(frame)}


def rows_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return frame.to_dict("records")


# ---------------------------------------------------------------------------------------------------------- curves


def test_curves_are_the_means_and_their_bands_the_deviations(make_grid: Any) -> None:
    frame = make_grid(noise_ratios=(0.2, 0.0, 0.1), seeds=(0, 1, 2))
    panels = {panel.get_title(): panel for panel in curves(frame, LOOK).axes}
    assert list(panels) == list(RATIO_CURVES.values())
    for name, title in RATIO_CURVES.items():
        for line, band in zip(panels[title].lines, panels[title].collections, strict=True):
            of_model = frame[frame["model"] == line.get_label()]
            points = of_model.groupby("noise_ratio")[name].agg(["mean", "std"]).dropna()
            np.testing.assert_allclose(line.get_xdata(), points.index)
            np.testing.assert_allclose(line.get_ydata(), points["mean"])
            edge = band.get_paths()[0].vertices
            for ratio, mean, deviation in points.itertuples():
                at = edge[np.isclose(edge[:, 0], ratio), 1]
                np.testing.assert_allclose([at.min(), at.max()], [mean - deviation, mean + deviation])


def test_without_masks_there_are_no_panels_of_pixels(make_grid: Any) -> None:
    figure = curves(make_grid(masks=False), LOOK)
    assert [panel.get_title() for panel in figure.axes] == list(RATIO_CURVES.values())[:3]


def test_one_noise_ratio_makes_no_curve(make_grid: Any, output: Path) -> None:
    drawn = draw(make_grid(noise_ratios=(0.1,)), pd.DataFrame(), output)
    assert [picture.kind for picture in drawn.pictures] == ["histograms", "heat_maps"]


def test_a_model_of_one_noise_ratio_is_a_point_with_a_bar_and_is_named(make_grid: Any) -> None:
    frame = make_grid(noise_ratios=(0.2, 0.0, 0.1))
    frame = frame[(frame["model"] != "rd") | (frame["noise_ratio"] == 0.1)]
    of_rd = frame[frame["model"] == "rd"]
    figure = curves(frame, LOOK)
    for title, panel in zip(RATIO_CURVES, figure.axes, strict=True):
        bars = [each for each in panel.collections if isinstance(each, LineCollection)]
        [point] = [line for line in panel.lines if line.get_label() == "rd"]
        mean, deviation = of_rd[title].mean(), of_rd[title].std()
        assert point.get_marker() == LOOK["rd"].marker
        np.testing.assert_allclose(point.get_xydata(), [[0.1, mean]])
        [ends] = bars[0].get_segments()
        np.testing.assert_allclose(ends, [[0.1, mean - deviation], [0.1, mean + deviation]])
    assert curves_caption(frame).endswith("Not measured: rd at 0, 0.2.")
    assert "Not measured" not in curves_caption(frame[frame["model"] != "rd"])


@pytest.mark.parametrize("epochs", [6, 60])
def test_the_ticks_of_a_long_training_can_be_read(epochs: int) -> None:
    points = [{"model": "cdd", "seed": 0, "epoch": epoch, "image_AUROC": 0.5} for epoch in range(1, epochs + 1)]
    [panel] = curves(pd.DataFrame(points), LOOK, "epoch", EPOCH_CURVES).axes
    ticks = panel.get_xticks().tolist()
    assert ticks[0] == 1
    assert len(ticks) in range(6, 9)


def test_curves_of_different_seeds_say_so(make_grid: Any) -> None:
    frame = make_grid()
    assert "comparable" not in curves_caption(frame)
    lacking = frame[~((frame["model"] == "rd") & (frame["noise_ratio"] == 0.1) & (frame["seed"] == 1))]
    assert "most have 0, 1, but rd at 0.1: 0." in curves_caption(lacking)


def test_noise_ap_is_drawn_of_rankings_that_compare(make_grid: Any, output: Path) -> None:
    frame = make_grid()
    frame.loc[frame["model"] == "rd", "out_of_sample"] = 0.0
    drawn = draw(frame, pd.DataFrame(), output)
    figure = curves(compared(frame), LOOK)
    lines = {panel.get_title(): [line.get_label() for line in panel.lines] for panel in figure.axes}
    assert lines["Noise AP"] == ["cdd", "patchcore"]
    assert lines["Image AUROC, overlap"] == MODELS
    assert "out-of-sample rankings alone" in drawn.pictures[0].caption
    arrays = kept_of(frame, output)
    arrays["rd"]["train_out_of_sample"][:] = False
    assert [panel.get_xlabel() for panel in histograms(arrays, LOOK).axes[::2]] == ["", "in-sample", ""]


def test_the_course_of_a_training_is_drawn_over_its_epochs(make_grid: Any, output: Path) -> None:
    frame = make_grid()
    rows = [
        {"data": "tiles", "noise_ratio": ratio, "model": model, "seed": seed, "epoch": epoch}
        | dict.fromkeys(EPOCH_CURVES, epoch / 100 + seed / 10 + ratio)
        for ratio in (0.0, 0.1)
        for model, epochs in (("cdd", (25, 50)), ("rd", (25, 50)), ("patchcore", (1,)))
        for seed in (0, 1)
        for epoch in epochs
    ]
    drawn = draw(frame, pd.DataFrame(rows), output)
    assert [picture.kind for picture in drawn.pictures] == ["curves", "course", "histograms", "heat_maps"]
    assert drawn.pictures[1].caption.startswith("Noise ratio 0.1.")
    figure = curves(pd.DataFrame(rows).query("noise_ratio == 0.1"), LOOK, "epoch", EPOCH_CURVES)
    assert [panel.get_title() for panel in figure.axes] == list(EPOCH_CURVES.values())
    for panel in figure.axes:
        lines = {line.get_label(): line for line in panel.lines}
        assert lines["cdd"].get_xdata().tolist() == [25, 50]
        np.testing.assert_allclose(lines["cdd"].get_ydata(), [0.4, 0.65])
        np.testing.assert_allclose(lines["patchcore"].get_ydata(), 0.16)  # level: it trains once


# ------------------------------------------------------------------------------------------ every model, everywhere


def test_every_model_is_in_every_figure_in_its_own_colour(make_grid: Any, output: Path) -> None:
    frame = make_grid()
    arrays = kept_of(frame, output)
    colours = {model: style.colour for model, style in LOOK.items()}
    figure = curves(frame, LOOK)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == MODELS
    for panel in figure.axes:
        assert {line.get_label(): line.get_color() for line in panel.lines} == colours
    rows = [panel.yaxis.label for panel in histograms(arrays, LOOK).axes[::2]]
    assert {label.get_text(): label.get_color() for label in rows} == colours
    columns = [panel.title for panel in heat_maps(arrays, models_of(frame), LOOK).axes[: len(MODELS) + 1]]
    assert {title.get_text(): title.get_color() for title in columns[1:]} == colours


def test_no_two_models_look_alike_and_none_looks_like_a_kind_of_image() -> None:
    look = styles([str(i) for i in range(20)])
    assert len({(style.colour, style.dash) for style in look.values()}) == 20
    assert not {style.colour for style in look.values()} & set(KIND_COLOURS.values())


def test_a_model_that_has_nothing_to_show_is_named(make_grid: Any, output: Path) -> None:
    frame = make_grid()
    key = example_cells(frame).query("model == 'rd'")["key"].item()
    (output / "cells" / f"{key}.npz").unlink()
    captions = {picture.kind: picture.caption for picture in draw(frame, pd.DataFrame(), output).pictures}
    assert all(captions[kind].endswith("Nothing to show of rd.") for kind in ("histograms", "heat_maps"))


# ------------------------------------------------------------------------------------------------------ histograms


def test_the_cells_shown_are_of_the_largest_ratio_that_most_models_finished() -> None:
    rows = [("a", 0.1, 1), ("b", 0.1, 1), ("a", 0.1, 2), ("a", 0.05, 0), ("b", 0.05, 0), ("a", 0.2, 0)]
    frame = pd.DataFrame(rows, columns=["model", "noise_ratio", "seed"])
    assert example_cells(frame).to_numpy().tolist() == [["a", 0.1, 1], ["b", 0.1, 1]]
    assert example_cells(frame[frame["noise_ratio"] != 0.1]).to_numpy().tolist() == [["a", 0.05, 0], ["b", 0.05, 0]]


def test_histograms_are_shares_of_each_kind(make_grid: Any, output: Path) -> None:
    arrays = kept_of(make_grid(), output)
    figure = histograms(arrays, LOOK)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["normal", "injected", "anomalous"]
    titles = [panel.get_title() for panel in figure.axes[:2]]
    assert titles[0].endswith("40 normal, 4 injected")
    assert titles[1].endswith("15 normal, 15 anomalous, 4 injected")
    for row, kept in enumerate(arrays.values()):
        for panel, name in zip(figure.axes[2 * row :], ("train_suspicion", "test_scores"), strict=False):
            assert len(panel.patches) == {"train_suspicion": 2, "test_scores": 3}[name]
            for outline in panel.patches:
                across, up = outline.get_path().vertices.T
                area = abs(np.sum(across[:-1] * up[1:] - across[1:] * up[:-1])) / 2
                np.testing.assert_allclose(area, np.ptp(kept[name]) / BINS, rtol=1e-3)  # shares add up to 1
                assert to_hex(outline.get_edgecolor()).upper() in KIND_COLOURS.values()


# ------------------------------------------------------------------------------------------------------- heat maps


def test_maps_and_image_share_a_frame_that_is_what_the_models_see(make_grid: Any, output: Path) -> None:
    frame = make_grid(noise_ratios=(0.1,))
    figure = heat_maps(kept_of(frame, output), models_of(frame), LOOK)
    inside = (2 / 32, 30 / 32, 30 / 32, 2 / 32)  # 28 of 32 pixels
    image, *maps = (panel.images[0] for panel in figure.axes[: len(MODELS) + 1])
    assert tuple(image.get_extent()) == (0, 1, 1, 0)
    assert all(tuple(shown.get_extent()) == inside for shown in maps)
    for panel in figure.axes:
        assert (*panel.get_xlim(), *panel.get_ylim()) == inside


def test_a_map_is_as_kept_on_a_scale_of_its_model_alone(make_grid: Any, output: Path) -> None:
    frame = make_grid(noise_ratios=(0.1,))
    arrays = kept_of(frame, output)
    arrays["rd"]["example_maps"] = arrays["rd"]["example_maps"] * np.float16(100)
    figure = heat_maps(arrays, models_of(frame), LOOK)
    panels = np.array(figure.axes).reshape(-1, len(MODELS) + 1)
    for column, model in enumerate(MODELS, start=1):
        maps = arrays[model]["example_maps"].astype(np.float32)
        for row, expected in enumerate(maps):
            shown = panels[row, column].images[0]
            np.testing.assert_array_equal(shown.get_array(), expected)
            np.testing.assert_allclose(shown.get_clim(), np.quantile(maps, COLOUR_QUANTILES))


def test_the_outline_encloses_the_mask(make_grid: Any, output: Path) -> None:
    frame = make_grid(noise_ratios=(0.1,))
    figure = heat_maps(kept_of(frame, output), models_of(frame), LOOK)
    panels = np.array(figure.axes).reshape(-1, len(MODELS) + 1)
    for panel in panels[:2].flat:
        corners = np.concatenate([path.vertices for path in panel.collections[0].get_paths()])
        # rows 5 to 11 and columns 8 to 19 of a map that begins at pixel 2 of 32
        np.testing.assert_allclose(corners.min(axis=0), np.array([8 + 2, 5 + 2]) / 32, atol=0.01)
        np.testing.assert_allclose(corners.max(axis=0), np.array([20 + 2, 12 + 2]) / 32, atol=0.01)
    assert not any(panel.collections for panel in panels[2])  # a normal image


def test_without_the_image_files_the_maps_are_shown_alone(make_grid: Any, output: Path) -> None:
    frame = make_grid(noise_ratios=(0.1,))
    for path in output.parent.glob("images/*/*"):
        path.unlink()
    figure = heat_maps(kept_of(frame, output), models_of(frame), LOOK)
    panels = np.array(figure.axes).reshape(-1, len(MODELS) + 1)
    assert all(panel.texts[0].get_text() == "image\nnot found" and not panel.images for panel in panels[:, 0])
    assert all(len(panel.images) == 1 for panel in panels[:, 1:].flat)


def test_a_cell_that_ran_where_the_images_were_before_shares_the_rows(make_grid: Any, output: Path) -> None:
    frame = make_grid(noise_ratios=(0.1,))
    arrays = kept_of(frame, output)
    for model, kept in arrays.items():
        kept["example_names"] = np.array([Path(path).name for path in kept["example_paths"].tolist()])
        if model == MODELS[0]:
            kept["example_paths"] = np.array([f"/before/{name}" for name in kept["example_names"].tolist()])
    figure = heat_maps(arrays, models_of(frame), LOOK)
    assert [len(panel.images) for panel in figure.axes] == [1] * 3 * (len(MODELS) + 1)


def test_a_model_without_an_image_leaves_its_place_empty(make_grid: Any, output: Path) -> None:
    frame = make_grid(noise_ratios=(0.1,))
    arrays = kept_of(frame, output)
    arrays["rd"] |= {name: values[1:] for name, values in arrays["rd"].items() if name.startswith("example_")}
    figure = heat_maps(arrays, models_of(frame), LOOK)
    assert [len(panel.images) for panel in figure.axes] == [1, 1, 0, 1] + [1] * 8


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({"class_path": "anomalib_cdd.Cdd", "init_args": {"pre_processor": True}}, (1 / 16, 15 / 16, 15 / 16, 1 / 16)),
        ({"class_path": "anomalib.models.Patchcore", "init_args": {"pre_processor": True}}, (0, 1, 1, 0)),
        ({"class_path": "some.Model", "init_args": {"pre_processor": False}}, (0, 1, 1, 0)),
        ({"class_path": "some.Model"}, (0, 1, 1, 0)),
    ],
)
def test_the_crop_of_a_pre_processor_that_is_not_written_out(model: dict[str, Any], expected: tuple) -> None:
    assert tuple(frame_of(model)) == expected


@pytest.mark.parametrize(
    ("size", "expected"), [((512, 1024), (9 / 32, 23 / 32, 15 / 16, 1 / 16)), (None, (0, 1, 1, 0))]
)
def test_the_crop_after_a_resize_of_one_side_is_that_of_the_image(size: tuple | None, expected: tuple) -> None:
    steps = [
        {"class_path": name, "init_args": {"size": side}} for name, side in (("v2.Resize", 256), ("v2.CenterCrop", 224))
    ]
    transform = {"class_path": "v2.Compose", "init_args": {"transforms": steps}}
    model = {"class_path": "some.Model", "init_args": {"pre_processor": {"init_args": {"transform": transform}}}}
    assert tuple(frame_of(model, size)) == expected


# --------------------------------------------------------------------------------------------------- what goes wrong


def test_a_damaged_file_is_named_and_the_rest_is_drawn(make_grid: Any, output: Path) -> None:
    frame = make_grid()
    key = example_cells(frame).query("model == 'rd'")["key"].item()
    path = output / "cells" / f"{key}.npz"
    path.write_bytes(path.read_bytes()[:200])
    drawn = draw(frame, pd.DataFrame(), output)
    assert len(drawn.problems) == 1
    assert f"{path} is damaged" in drawn.problems[0]
    assert [picture.kind for picture in drawn.pictures] == ["curves", "histograms", "heat_maps"]
    assert drawn.pictures[1].caption.endswith("Nothing to show of rd.")


def test_a_figure_that_fails_is_named_and_the_others_are_drawn(
    make_grid: Any, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = figures.save

    def fails(figure: Any, path: Path) -> None:
        if "histograms" in path.name:
            msg = "no such font"
            raise RuntimeError(msg)
        save(figure, path)

    monkeypatch.setattr(figures, "save", fails)
    drawn = draw(make_grid(), pd.DataFrame(), output)
    assert [picture.kind for picture in drawn.pictures] == ["curves", "heat_maps"]
    assert "tiles_histograms.svg could not be drawn" in drawn.problems[0]


def test_scores_that_do_not_belong_together_cost_one_figure(make_grid: Any, output: Path) -> None:
    frame = make_grid()
    path = output / "cells" / f"{example_cells(frame)['key'].iloc[0]}.npz"
    np.savez(path, **(load(path) or {}) | {"train_is_noise": np.zeros(3, dtype=bool)})
    [problem] = draw(frame, pd.DataFrame(), output).problems
    assert "histograms.svg could not be drawn" in problem


def test_cells_that_kept_no_scores_have_curves_alone(make_grid: Any, output: Path) -> None:
    frame = make_grid()
    for path in output.glob("cells/*.npz"):
        path.unlink()
    drawn = draw(frame, pd.DataFrame(), output)
    assert [picture.kind for picture in drawn.pictures] == ["curves"]
    assert drawn.problems == ()


def test_the_same_results_give_the_same_files_and_leave_matplotlib_alone(make_grid: Any, output: Path) -> None:
    frame = make_grid()
    first, second = (
        [picture.path.read_bytes() for picture in draw(frame, pd.DataFrame(), output).pictures] for _ in range(2)
    )
    assert first == second
    assert not _pylab_helpers.Gcf.figs
    assert not [path for path in (output / figures.FOLDER).iterdir() if path.name.startswith(".")]


def test_names_of_data_sets_that_are_no_file_names_stay_apart() -> None:
    names = ["tiles", "a/b", "a:b", "a_b", "../a"]
    files = [file_name(name) for name in names]
    assert files[0] == "tiles"
    assert len(set(files)) == len(names)
    assert not any("/" in file or ":" in file for file in files)
