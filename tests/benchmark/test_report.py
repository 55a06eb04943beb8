# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""The report says what was measured, marks the best, warns of what does not compare, and holds together as a page."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from anomalib_cdd.benchmark.figures import draw
from anomalib_cdd.benchmark.pages import to_html, to_markdown
from anomalib_cdd.benchmark.report import make_report
from anomalib_cdd.benchmark.tables import ranks


def results(values: dict[str, tuple[float, ...]], **columns: Any) -> pd.DataFrame:
    """Return finished cells of each model with these image AUROCs, one for each seed."""
    rows = [
        {"model": model, "seed": seed, "image_AUROC": value}
        for model, numbers in values.items()
        for seed, value in enumerate(numbers)
    ]
    defaults = {"data": "tiles", "noise_ratio": 0.1, "status": "done", "error": None, "out_of_sample": 1.0}
    return pd.DataFrame(rows).assign(**defaults | columns)


def markdown(frame: pd.DataFrame, n_cells: int = 0) -> str:
    return to_markdown(make_report(frame, n_cells or len(frame)), Path())


def page(frame: pd.DataFrame) -> str:
    return to_html(make_report(frame, len(frame)))


HAND = {"a": (0.8, 0.9), "b": (0.9, 0.9), "c": (0.1, 0.2)}


def test_a_table_by_hand() -> None:
    text = markdown(results(HAND, image_AUROC_overlap=0.5, noise_AP=np.nan, noise_precision=0.25), n_cells=7)
    assert "6 of 7 cells finished, 0 failed, 1 not run yet." in text
    deviation = np.std([0.8, 0.9], ddof=1)
    assert f"| a | 2 | <u>0.850 ± {deviation:.3f}</u> |" in text
    assert "| b | 2 | **0.900 ± 0.000** |" in text
    assert "| c | 2 | 0.150 ± 0.071 |" in text
    assert "| model | seeds | noise_precision |" in text  # nothing was measured of noise_AP
    assert text.index("### No overlap") < text.index("### Overlap") < text.index("### Its own noise")


def test_the_overview_by_hand() -> None:
    text = markdown(results(HAND, image_AUROC_overlap=0.5))
    assert "| data | a | b | c |" in text
    assert "| tiles | <u>0.850</u> / 0.500 / - | **0.900** / 0.500 / - | 0.150 / 0.500 / - |" in text


def test_both_forms_have_the_same_marks() -> None:
    frame = results(HAND, image_AUROC_overlap=0.5)
    html = page(frame)
    assert "<b>0.900 ± 0.000</b>" in html
    assert "<u>0.850 ± 0.071</u>" in html
    assert sorted(re.findall(r"<b>(.*?)</b>", html)) == sorted(re.findall(r"\*\*(.*?)\*\*", markdown(frame)))
    assert sorted(re.findall(r"<u>(.*?)</u>", html)) == sorted(re.findall(r"<u>(.*?)</u>", markdown(frame)))


def test_in_sample_rankings_are_named_and_not_compared() -> None:
    frame = results(HAND, noise_AP=[0.5, 0.5, 0.9, 0.9, 0.4, 0.4])
    frame.loc[frame["model"] == "b", "out_of_sample"] = 0.0
    text = markdown(frame)
    row = {line.split("|")[1].strip(): line.split("|")[-2].strip() for line in text.splitlines() if " | 2 | " in line}
    assert row["a"] == "**0.500 ± 0.000**"
    assert row["b"] == "0.900 ± 0.000 (in-sample)"
    assert row["c"] == "<u>0.400 ± 0.000</u>"
    assert "/ 0.900 (in-sample) |" in text  # in the overview
    assert "(in-sample)" in page(frame)


def test_a_mean_that_is_partly_of_in_sample_rankings_has_no_mark() -> None:
    frame = results(HAND, noise_AP=[0.5, 0.5, 0.9, 0.9, 0.4, 0.4])
    frame.loc[(frame["model"] == "b") & (frame["seed"] == 0), "out_of_sample"] = 0.0
    text = markdown(frame)
    assert "**0.500 ± 0.000**" in text
    assert "| 0.900 ± 0.000 (in-sample) |" in text


def test_seconds_are_whole_and_the_quickest_is_no_best() -> None:
    text = markdown(results(HAND, fit_seconds=[10.0, 11.0, 20.4, 20.4, 5.0, 5.0]))
    assert "| a | 2 | 10 ± 1 |" in text
    assert "| b | 2 | 20 ± 0 |" in text


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ([0.9, 0.8, 0.7], [1, 2, 0]),
        ([0.9, 0.9, 0.7], [1, 1, 2]),
        ([0.90001, 0.9, 0.7], [1, 1, 2]),  # as printed
        ([0.0005, 0.001, 0.0], [1, 1, 2]),  # .0005 is printed as 0.001
        ([0.9, np.nan, 0.7], [1, 0, 2]),
        ([0.9, 0.9], [0, 0]),
        ([0.9], [0]),
        ([np.nan], [0]),
    ],
)
def test_marks(column: list[float], expected: list[int]) -> None:
    assert ranks(column) == expected


def test_cells_that_ran_in_another_precision_than_was_asked_for_are_said_not_to_compare() -> None:
    entries = {kind: {"class_path": "some.thing", "init_args": {}} for kind in ("data", "model")}
    asked = results(HAND, config=json.dumps(entries | {"trainer": {"precision": "bf16-mixed"}}))
    mixed = asked.assign(precision=["bf16-mixed"] + ["32-true"] * (len(asked) - 1))
    for text in (markdown(mixed), page(mixed)):
        assert "Not the precision that was asked for in every cell (a 32-true and bf16-mixed; b 32-true" in text
        assert "tiles: not the precision that was asked for in every cell (a 32-true and bf16-mixed;" in text
    # a memory bank is asked for none
    plain = asked.assign(precision=["32-true"] * len(asked))
    plain.loc[plain["model"] == "a", ["config", "precision"]] = json.dumps(entries | {"trainer": {}}), "bf16-mixed"
    for text in (markdown(plain), page(plain)):
        assert "precision that was asked" not in text


def test_means_over_different_seeds_are_said_not_to_compare() -> None:
    unequal = results({"a": (0.8, 0.9), "b": (0.9,)})
    for text in (markdown(unequal), page(unequal)):
        assert (
            "Not the same seeds for every model (a 0, 1; b 0): means over different seeds are not comparable." in text
        )
        assert "tiles: not the same seeds (a 0, 1; b 0)." in text
    for text in (markdown(results(HAND)), page(results(HAND))):
        assert "the same seeds" not in text


def test_what_failed_is_listed_with_its_cell() -> None:
    frame = results({"a": (0.8, 0.9)})
    frame.loc[1, ["status", "error"]] = "failed", "RuntimeError: no `memory` | left\nand more"
    text, html = markdown(frame), page(frame)
    assert "1 of 2 cells finished, 1 failed, 0 not run yet." in text
    assert "- tiles, noise ratio 0.1, a, seed 1: `RuntimeError: no 'memory' | left`" in text
    assert "tiles, noise ratio 0.1, a, seed 1: <code>RuntimeError: no `memory` | left</code>" in html
    assert "| a | 1 | 0.800 |" in text  # the failed seed counts for nothing


def test_where_every_cell_failed_nothing_is_said_of_what_measured() -> None:
    frame = results({"a": (0.8,)}, anomalib_cdd="0.2", device="cpu").assign(status="failed", error="E")
    assert "Measured with" in markdown(frame.assign(status="done"))
    assert "Measured with" not in markdown(frame) + page(frame)
    assert "<footer>" not in page(frame)


def test_models_keep_the_order_of_the_grid_whichever_cell_failed() -> None:
    frame = results(HAND).sort_values("seed", ignore_index=True)
    frame.loc[0, ["status", "error"]] = "failed", "E"  # a's first
    assert "| data | a | b | c |" in markdown(frame)


def test_noise_ratios_stand_apart_in_rising_order() -> None:
    frame = pd.concat([results(HAND, noise_ratio=ratio) for ratio in (0.1, 0, 0.05)], ignore_index=True)
    headings = [line for line in markdown(frame).splitlines() if line.startswith("## tiles")]
    assert headings == [f"## tiles, noise ratio {ratio}" for ratio in ("0", "0.05", "0.1")]


def test_names_cannot_break_the_report() -> None:
    name = "<script>alert(1)</script>|x"
    frame = results({name: (0.5,)}, data=name)
    assert "<script" not in page(frame) + markdown(frame)
    table = [line for line in markdown(frame).splitlines() if line.startswith("| &lt;script")]
    assert table
    assert all(len(re.findall(r"(?<!\\)\|", line)) in {3, 4} for line in table)


def test_nothing_has_run_yet() -> None:
    assert "0 of 3 cells finished, 0 failed, 3 not run yet." in markdown(pd.DataFrame(), n_cells=3)
    assert "<table>" not in page(pd.DataFrame())


class Page(HTMLParser):
    """What a page links to, names and holds."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.names: list[str] = []
        self.sources: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.links += [given["href"] or ""] if "href" in given else []
        self.sources += [given["src"] or ""] if "src" in given else []
        self.names += [given["id"] or ""] if "id" in given else []
        if tag not in {"meta", "img"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_holds_together_and_needs_no_other_file(make_grid: Any, output: Path) -> None:
    frame = make_grid(data=("tiles", "so|lar <b>"))
    drawn = draw(frame, pd.DataFrame(), output)
    report = make_report(frame, len(frame), drawn)
    parsed = Page(to_html(report))
    assert parsed.open == []
    assert len(parsed.names) == len(set(parsed.names))
    assert {link.removeprefix("#") for link in parsed.links} == set(parsed.names)
    assert len(parsed.sources) == len(drawn.pictures) == 6
    assert all(source.startswith("data:image/") for source in parsed.sources)
    assert "http" not in re.sub(r'"data:[^"]*"', "", to_html(report))


def test_the_markdown_links_every_figure_beside_it(make_grid: Any, output: Path) -> None:
    frame = make_grid(data=("tiles", "so|lar <b>"))
    text = to_markdown(make_report(frame, len(frame), draw(frame, pd.DataFrame(), output)), output)
    linked = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert len(linked) == 6
    assert {output / link for link in linked} == set((output / "figures").iterdir())


def test_a_report_without_figures_says_when_they_come(make_grid: Any, output: Path) -> None:
    frame = make_grid()
    said = "The figures are drawn when the run ends."
    for drawn, expected in ((None, True), (draw(frame, pd.DataFrame(), output), False)):
        report = make_report(frame, len(frame), drawn)
        assert (said in to_html(report)) == (said in to_markdown(report, output)) == expected
