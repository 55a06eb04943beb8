# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Every page of the documentation works as it stands: its Python, its commands, its links, the options it names."""

import inspect
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pandas as pd
import pytest
import yaml
from anomalib.deploy import ExportType
from anomalib.engine import Engine
from anomalib.models import Patchcore
from pages import (
    DOCS,
    MODELS,
    PAGES,
    ROOT,
    anchors,
    arguments_of,
    blocks,
    commands,
    inline_commands,
    links,
    parse,
    read,
    run,
    type_in,
)

import anomalib_cdd
from anomalib_cdd import Cdd, FolderNoisy, read_image
from anomalib_cdd.cli.audit import get_parser, model_class
from anomalib_cdd.cli.entries import resolve_model

QUIET = 'accelerator="cpu", logger=False, enable_progress_bar=False'
SMALL = {"backbone": "resnet18", "layers": ["layer3"], "pre_trained": False}
# what runs a page's blocks, by page: `test_every_block_is_run` fails where there is none
RUN = {"README.md": "tests/test_readme.py"}


def runs(page: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Mark the test that runs all of a page's Python and YAML."""

    def mark(test: Callable[..., None]) -> Callable[..., None]:
        RUN[page] = test.__name__
        return test

    return mark


@pytest.fixture
def parts(folder_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the folder ``parts``: twelve good images, and two bad ones that nobody has labelled."""
    folder = tmp_path / "parts"
    shutil.copytree(folder_root / "good", folder)
    for number in (0, 9):
        shutil.copy(folder_root / "defect" / f"{number:03}.png", folder / f"bad_{number}.png")
    monkeypatch.chdir(tmp_path)
    return folder


@runs("docs/audit.md")
def test_audit(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    untrained, by_model, by_parts = commands("docs/audit.md")
    type_in(untrained)
    files = [name.strip("`/") for row in re.findall(r"^\| (`[^|]*`) \|", read("docs/audit.md"), flags=re.MULTILINE)
             for name in row.split(", ")]  # fmt: skip
    assert len(files) == 6
    assert [name for name in files if not Path("results/audit/parts", name).exists()] == []
    scores = pd.read_csv("results/audit/parts/training_scores.csv")
    assert set(scores["image_path"].head(2)) == {"bad_0.png", "bad_9.png"}

    data = FolderNoisy(
        name="parts", root=parts, normal_dir=".", noise_ratio=0, test_split_mode="none", val_split_mode="none",
        num_workers=0,
    )  # fmt: skip
    engine = Engine(accelerator="cpu", logger=False, enable_progress_bar=False)
    engine.fit(Patchcore(**SMALL, coreset_sampling_ratio=0.01), datamodule=data)
    shutil.copy(next(Path("results").rglob("model.ckpt")), "model.ckpt")
    type_in(by_model)
    assert set(pd.read_csv("results/audit/parts/training_scores.csv")["scored_by"]) == {"Patchcore"}

    small = json.dumps({"class_path": "Padim", "init_args": {**SMALL, "n_features": 4}})
    type_in(by_parts.replace("Padim", f"'{small}'"))
    assert len(list(Path("results/audit/parts/cross_domain").iterdir())) == 3

    [configuration] = blocks("docs/audit.md", "yaml")
    Path("audit.yaml").write_text(configuration)
    config = get_parser().parse_args(["--config", "audit.yaml"])
    assert (config.data, config.domains) == (Path("parts"), 3)
    assert set(config.model) == {"class_path", "init_args", "trainer"}
    assert set(config.model["init_args"]) <= set(arguments_of(model_class(config.model["class_path"])))

    Path("results/audit/parts/review.json").write_text(json.dumps({"images": {"bad_0.png": "bad", "000.png": "good"}}))
    without, in_fiftyone = blocks("docs/audit.md", "python")
    names: dict[str, Any] = {}
    run(without, names)
    names["data"].setup()
    assert len(names["data"].train_data) == 13

    # FiftyOne needs a database: what it is given is there (its own importers read it in audit/test_annotations.py)
    fiftyone = MagicMock()
    monkeypatch.setitem(sys.modules, "fiftyone", fiftyone)
    run(in_fiftyone, names)
    [folder, _], options = fiftyone.Dataset.from_dir.call_args
    assert Path(folder, options["data_path"]).is_file()
    options = names["images"].merge_dir.call_args.kwargs
    assert Path(options["data_path"]).is_dir()
    assert Path(options["labels_path"]).is_file()


@runs("docs/cleaning.md")
def test_cleaning(parts: Path) -> None:
    names: dict[str, Any] = {}
    fit, look, by_training = blocks("docs/cleaning.md", "python")
    small = {"Engine()": f"Engine({QUIET})", "Patchcore(": "Patchcore(coreset_sampling_ratio=0.01, "}
    small |= {'root="parts"': 'root="parts", num_workers=0'}
    run(fit, names, **small)
    assert len(names["data"].train_data) == 13
    left_out = pd.read_csv(next(Path("results").rglob("cleaned.csv")))["image_path"].tolist()
    assert set(left_out) < {"bad_0.png", "bad_9.png"}
    run(look, names)
    assert len(names["found"].scores) == len(names["found"].maps) == 14
    small = {
        'root="parts"': 'root="parts", num_workers=0',
        '"results/domains"': f'"results/domains", trainer=dict({QUIET})',
    }
    run(by_training, names, **small)
    assert len(names["report"].scores) == 14
    assert len(pd.read_csv("left_out.csv")) == 1
    [command] = commands("docs/cleaning.md")
    parse(command.replace(" ... ", " --data.name parts --data.root parts "))


@runs("docs/reading.md")
def test_reading(parts: Path) -> None:
    model = Cdd(backbone="test_resnet", pre_trained=False, student_width=8)
    exported = Engine().export(model, ExportType.OPENVINO, export_root="results")
    for file in Path(exported or "").parent.iterdir():
        shutil.copy(file, file.name)
    shutil.copy(parts / "000.png", "part.png")
    names: dict[str, Any] = {}
    [block] = blocks("docs/reading.md", "python")
    run(block, names, **{"inferencer.predict(": "said = inferencer.predict("})
    assert 0 <= float(np.squeeze(names["said"].pred_score)) <= 1


@runs("docs/thresholds.md")
def test_thresholds() -> None:
    [block] = blocks("docs/thresholds.md", "yaml")
    model, _ = resolve_model("docs/thresholds.md", yaml.safe_load(block)["model"])
    assert model["init_args"]["post_processor"]["init_args"]["false_alarm_rate"] == 0.05


@runs("docs/exports.md")
def test_exports(parts: Path) -> None:
    install, export = commands("docs/exports.md")
    type_in(install)
    assert set(re.findall(r"--(?!model)(\w+)", export)) <= set(inspect.signature(Engine.export).parameters)
    model = Cdd(backbone="test_resnet", pre_trained=False, student_width=8)
    exported = Engine().export(model, ExportType.OPENVINO, export_root="results")
    for file in Path(exported or "").parent.iterdir():
        shutil.copy(file, file.name)
    names: dict[str, Any] = {}
    [block] = blocks("docs/exports.md", "python")
    run(block, names)
    image = read_image(parts / "000.png").permute(1, 2, 0).numpy()
    assert 0 <= float(np.squeeze(names["inferencer"].predict(image).pred_score)) <= 1


def test_rows_of_the_exports_are_what_was_measured() -> None:
    text = read("docs/exports.md")
    measured = pd.read_csv(ROOT / "experiments/exports/results.csv")
    assert text.count(" of 54 |") == len(measured)
    for row in measured.itertuples():
        shown = f"{row.largest_difference:.1e} | {row.labels_that_differ} of {row.images}"
        assert f"| {row.model} | {row.size} | {row.form} | {shown} |" in text


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_run(page: str) -> None:
    languages = set(re.findall(r"^```(\w+)", read(page), flags=re.MULTILINE))
    assert languages <= {"python", "yaml", "console"}
    assert page in RUN or not languages & {"python", "yaml"}, f"no test runs the blocks of {page}"


@pytest.mark.parametrize("page", [page for page in PAGES if page not in RUN])
def test_commands_of_other_pages(page: str) -> None:
    for command in commands(page):
        type_in(command)


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_the_text(page: str, capsys: pytest.CaptureFixture) -> None:
    for command in inline_commands(page):
        if " train " in command or command.startswith("python"):
            parse(command.replace("<category>", "bottle"))
        else:  # such as `anomalib-cdd audit --data FOLDER`
            parse(f"{' '.join(command.split()[:2])} --help")
            assert set(re.findall(r"--\w+", command)) <= set(re.findall(r"--\w+", capsys.readouterr().out))


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.relative_to(ROOT).as_posix()), link


def test_anchors_are_githubs() -> None:
    assert {"results", "few-images-many-steps-small_sets-long_training"} <= anchors("README.md") | anchors(
        "experiments/README.md"
    )


@pytest.mark.parametrize("page", MODELS)
def test_options_of_a_models_page_exist(page: str) -> None:
    text = read(page)
    [name] = set(re.findall(r"--model anomalib_cdd\.(\w+)", text))
    known = arguments_of(getattr(anomalib_cdd, name))
    for table in re.findall(r"^\|[^\n]*\boption\b[^\n]*\n\|[-|]*\n((?:\|.*\n)+)", text, flags=re.MULTILINE):
        named = [word for row in table.splitlines() for word in re.findall(r"`([a-z_]+)`", row.split(" | ")[0])]
        named += [
            w for row in table.splitlines() for w in re.findall(r"`([a-z_]+)`", row.split(" | ")[1]) if w in known
        ]
        assert named
        assert [word for word in named if word not in known] == []


@pytest.mark.parametrize("page", ["README.md", *DOCS])
def test_names_of_this_package_exist(page: str) -> None:
    """Such as `anomalib_cdd.read_image`, and files of the package such as `thresholds/estimators.py`."""
    for dotted in re.findall(r"`anomalib_cdd((?:\.\w+)+)(?:\(.*?\))?`", read(page)):
        thing: Any = anomalib_cdd
        for part in dotted.split(".")[1:]:
            assert hasattr(thing, part), dotted
            thing = getattr(thing, part)
    for file in re.findall(r"`([\w/]+\.(?:py|yaml|ipynb|csv))`", read(page)):
        if "/" in file:
            assert any((ROOT / home / file).exists() for home in ("", "anomalib_cdd", "docs")), file


def test_yaml_of_the_docs_parses() -> None:
    for page in DOCS:
        for block in blocks(page, "yaml"):
            assert isinstance(yaml.safe_load(block), dict)
