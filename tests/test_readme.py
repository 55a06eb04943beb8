# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""What the README tells people to type is what works."""

import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from pages import PAGES, ROOT, blocks, commands, read, run, type_in

import anomalib_cdd

README = read("README.md")
PYTHON = blocks("README.md", "python")
COMMANDS = commands("README.md")


def typed(start: str) -> str:
    """The README's one command that starts so."""
    [command] = [command for command in COMMANDS if command.startswith(start)]
    return command


def test_own_folder_without_its_most_suspicious_images(
    folder_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder_root / "good", tmp_path / "my" / "folder")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    quiet = 'max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False'
    instead = {"max_epochs=200": quiet, 'root="my/folder"': 'root="my/folder", num_workers=0'}
    instead |= {'{"share": 0.1}': '{"share": 0.1, "image_size": (64, 64)}'}
    run(PYTHON[0], names, **instead)
    assert len(names["data"].train_data) == 11
    results = tmp_path / "results" / "Cdd" / "parts"
    assert next(results.rglob("model.ckpt"))
    assert next(results.rglob("cleaned.csv"))
    assert len(pd.read_csv(next(results.rglob("audit/training_scores.csv")))) == 11
    assert next(results.rglob("audit/index.html"))
    [batch] = names["engine"].predict(names["model"], data_path=folder_root / "defect" / "000.png")
    assert batch.pred_label.dtype == torch.bool

    # what is told of predicting and exporting is told of this model
    shutil.copytree(folder_root / "defect", tmp_path / "some" / "folder")
    predict, export = typed("anomalib predict"), typed("anomalib export")
    type_in(predict)
    assert len(list(results.parent.glob("latest/images/**/*.png"))) == 14
    checkpoint = re.search(r"--ckpt_path (\S+)", predict)
    assert checkpoint is not None
    type_in(export.replace("--ckpt_path ...", checkpoint[0]))
    assert next((tmp_path / "results").rglob("model.onnx"))


def test_a_folder_is_audited(folder_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(folder_root / "good", tmp_path / "my" / "folder")
    monkeypatch.chdir(tmp_path)
    type_in(typed("anomalib-cdd audit"))
    assert (tmp_path / "results" / "audit" / "folder" / "index.html").exists()


def test_what_is_installed_and_made_is_there() -> None:
    others = [command for command in COMMANDS if not command.startswith("anomalib")]
    assert others
    for command in others:
        type_in(command)


def test_any_model_on_the_command_line_leaves_them_out_too(
    folder_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder_root / "good", tmp_path / "my" / "folder")
    monkeypatch.chdir(tmp_path)
    small = "--model.backbone resnet18 --model.layers [layer3] --model.pre_trained false --data.num_workers 0"
    small += " --model.coreset_sampling_ratio 0.01"
    quiet = "--trainer.accelerator cpu --trainer.enable_progress_bar false --data.clean.image_size [64,64]"
    type_in(typed("anomalib-cdd train"), *small.split(), *quiet.split())
    assert len(pd.read_csv(next((tmp_path / "results").rglob("cleaned.csv")))) == 1


def test_a_threshold_for_another_model() -> None:
    names: dict[str, Any] = {}
    small = {"Patchcore(": 'Patchcore(backbone="resnet18", layers=["layer1"], pre_trained=False, '}
    run(PYTHON[1], names, **small)
    assert names["model"].post_processor.false_alarm_rate == 0.05


ROWS = re.compile(r"<!-- rows of (\S+) where noise_ratio=(\S+): (.*) -->\n((?:\|.*\n)+)")
PRINTED = [page for page in PAGES if ROWS.search(read(page))]


@pytest.mark.parametrize("page", PRINTED)
def test_every_table_is_what_its_results_say(page: str) -> None:
    """Mean and standard deviation of each row, digit by digit; the first two columns name it."""
    for path, ratio, measures, table in ROWS.findall(read(page)):
        results = pd.read_csv(ROOT / path).query("noise_ratio == @r", local_dict={"r": float(ratio)})
        cells_of = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
        (first, second, *_), _, *rows = cells_of
        for data, name, *printed in rows:
            cells = results[(results[first] == data) & (results[second] == name)]
            assert sorted(cells["seed"]) == [0, 1, 2], (path, data, name)
            for measure, text in zip(measures.split(), printed, strict=True):
                assert text == as_printed(cells[measure]), (path, data, name, measure)


def test_every_page_that_says_so_has_its_tables_checked() -> None:
    assert set(PRINTED) == {page for page in PAGES if re.search(r"<!-- rows of experiments/\w", read(page))}


def as_printed(values: pd.Series) -> str:
    if values.isna().all():
        return "-"
    digits = 0 if values.mean() > 1.001 else 3
    return " ± ".join(f"{value:.{digits}f}".replace("0.", ".") for value in (values.mean(), values.std()))


def test_no_figure_in_the_readme_stands_outside_such_a_table() -> None:
    text = ROWS.sub("", README).replace("arXiv 2508.18007", "").replace("abs/2508.18007", "")
    assert re.findall(r"\d?\.\d{3}", text) == []


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 140


def test_files_and_names_that_the_readmes_mention_exist() -> None:
    model_readme = Path(anomalib_cdd.models.cdd.__file__).parent / "README.md"
    for name in re.findall(r"`([\w/]+\.(?:yaml|py|ipynb))`", README):
        assert (
            (ROOT / name).exists() or (ROOT / "configs" / name).exists() or (ROOT / "anomalib_cdd" / name).exists()
        ), name
    for name in re.findall(r"`(\w+\.py)`", model_readme.read_text(encoding="utf-8")):
        assert (model_readme.parent / name).exists(), name
