# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""``clean`` of a datamodule: what leaves the training set, what is written and kept, and what is refused."""

import csv
import json
import logging
from collections.abc import Callable
from pathlib import Path
from shutil import copytree, ignore_patterns, rmtree
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.data import get_datamodule
from anomalib.engine import Engine
from anomalib.models import Padim
from PIL import Image
from samples import make_sample, save

from anomalib_cdd import CrossPatch, FolderNoisy, MVTecNoisy, cleaning
from anomalib_cdd.data import Cleaning
from anomalib_cdd.teachers.backbones import PYPI_TEACHER, Teacher
from anomalib_cdd.teachers.patches import nearest_distances
from anomalib_cdd.training import source

LOOK = {"image_size": (96, 96)}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where scores are kept: a folder of its own for each test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def make_data(mvtec_root: Path) -> Callable[..., MVTecNoisy]:
    def make(rule: dict[str, Any] | None = None, **options: Any) -> MVTecNoisy:
        defaults = {"root": mvtec_root, "category": "bottle", "noise_ratio": 0.25, "val_split_mode": "none"}
        defaults |= {"clean": Cleaning(**{**LOOK, **(rule or {})}), "num_workers": 0, "train_batch_size": 4}
        return MVTecNoisy(**{**defaults, **options})

    return make


def fit(data: MVTecNoisy, root: Path) -> Path:
    """Fit and return the folder of the results."""
    options = {"logger": False, "accelerator": "cpu", "enable_progress_bar": False, "default_root_dir": root}
    engine = Engine(**options, max_epochs=1)
    engine.fit(Padim(backbone="resnet18", pre_trained=False, n_features=8), datamodule=data)
    return Path(engine.trainer.default_root_dir)


def names(data: MVTecNoisy) -> set[str]:
    return {Path(path).relative_to(data.root).as_posix() for path in data.train_data.samples["image_path"]}


def test_a_fit_leaves_the_noise_out_and_writes_what_exclude_reads(
    make_data: Callable[..., MVTecNoisy], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = make_data(clean=None)
    plain.setup()
    data = make_data({"share": 0.2})
    with caplog.at_level(logging.INFO):
        folder = fit(data, tmp_path / "results")
    assert len(plain.train_data) == 15
    assert len(data.train_data) == 12
    assert data.cleaned.noise_left == 0
    assert data.cleaned.kept_normals == 1.0
    assert "left 3 of 15 training images out" in caplog.text
    assert "Of 3 injected images 3 went, 0 are left; 100.0 % of the normal images are kept" in caplog.text
    with (folder / "cleaned.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["image_path"] for row in rows} == names(plain) - names(data)
    assert [row["is_noise"] for row in rows] == ["1", "1", "1"]
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    # the lists that a fit leaves make the same training set again
    again = make_data(clean=None, exclude=folder / "cleaned.csv", manifest=folder / "manifest.csv")
    again.setup()
    assert names(again) == names(data)
    # and with the same cleaning too: the manifest lists what was drawn
    both = make_data({"share": 0.2}, manifest=folder / "manifest.csv")
    both.setup()
    assert names(both) == names(data)


def test_what_cleaning_and_an_exclude_list_leave_out_is_in_one_list(
    make_data: Callable[..., MVTecNoisy], tmp_path: Path
) -> None:
    plain = make_data(clean=None)
    plain.setup()
    bad = sorted(names(plain))[:2]
    # as the page saves it; an image has been deleted since
    said = dict.fromkeys([*bad, "bottle/train/good/gone.png"], "bad")
    (tmp_path / "review.json").write_text(json.dumps({"images": said}))
    data = make_data({"share": 0.2}, exclude=tmp_path / "review.json")
    folder = fit(data, tmp_path / "results")
    again = make_data(clean=None, exclude=folder / "cleaned.csv")
    again.setup()
    assert names(again) == names(data)
    assert len(again.train_data) == 13 - 2
    with (folder / "cleaned.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["image_path"], row["score"]) for row in rows[-2:]] == [(name, "") for name in bad]


def test_the_test_set_and_injected_data_stay_as_they_were(make_data: Callable[..., MVTecNoisy]) -> None:
    plain, data = make_data(clean=None), make_data()
    for each in (plain, data):
        each.setup()
    assert list(plain.test_data.samples["image_path"]) == list(data.test_data.samples["image_path"])
    assert list(plain.injected_data.samples["image_path"]) == list(data.injected_data.samples["image_path"])


def test_a_test_or_prediction_cleans_nothing(make_data: Callable[..., MVTecNoisy]) -> None:
    data = make_data()
    data.setup("test")
    assert len(data.train_data) == 15
    assert data.cleaned is None
    data.setup("fit")
    left = len(data.train_data)
    assert left < 15
    data.setup("fit")
    assert len(data.train_data) == left


def test_a_second_fit_reads_the_scores_of_the_first_until_an_image_changes(
    mvtec_root: Path, make_data: Callable[..., MVTecNoisy], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    (tmp_path / "own").mkdir()
    for number in range(12):
        save(make_sample(number).image, tmp_path / "own" / "bottle" / "train" / "good" / f"{number:02}.png")
    options = {"root": tmp_path / "own", "noise_ratio": 0, "test_split_mode": "none"}
    known = "scores of 12 training images are known"
    with caplog.at_level(logging.INFO):
        make_data({"share": 0.1}, **options).setup()
        assert known not in caplog.text
        # another rule asks for the same scores
        make_data({"deviations": 3}, **options).setup()
        assert caplog.text.count(known) == 1
        save(make_sample(50).image, tmp_path / "own" / "bottle" / "train" / "good" / "00.png")
        make_data({"share": 0.1}, **options).setup()
        assert caplog.text.count(known) == 1


def test_a_weight_file_may_be_a_path(make_data: Callable[..., MVTecNoisy], tmp_path: Path) -> None:
    weights = tmp_path / "teacher.pth"
    torch.save(Teacher(PYPI_TEACHER, ["blocks.2.1.conv_pwl"]).network.state_dict(), weights)
    found = []
    for given in (weights, str(weights)):
        data = make_data({"weights": given, "layers": ["blocks.2.1.conv_pwl"]})
        data.setup()
        found.append(data.cleaned.scores)
    assert np.array_equal(*found)


@pytest.mark.parametrize("content", [b"", b"half", "short"])
def test_a_damaged_file_of_scores_is_computed_again_with_a_warning(
    make_data: Callable[..., MVTecNoisy], cache: Path, caplog: pytest.LogCaptureFixture, content: bytes | str
) -> None:
    data = make_data()
    data.setup()
    [path] = cache.rglob("*.npz")
    if content == "short":
        np.savez(path, scores=np.zeros(3, dtype=np.float32), part=np.zeros(3, dtype=np.int64), seconds=1.0)
    else:
        path.write_bytes(path.read_bytes()[:100] if content else b"")
    again = make_data()
    again.setup()
    assert f"file of scores {path} is damaged" in caplog.text
    assert names(again) == names(data)
    assert len(np.load(path)["scores"]) == 15


def test_scores_of_other_code_are_not_taken(
    make_data: Callable[..., MVTecNoisy], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_data().setup()
    copy = tmp_path / "changed"
    copytree(source.PACKAGE, copy, ignore=ignore_patterns("__pycache__"))
    monkeypatch.setattr(source, "PACKAGE", copy)
    make_data().setup()
    assert len(list(cache.rglob("*.npz"))) == 1
    with (copy / "cleaning" / "recurrence.py").open("a") as file:
        file.write("LOWEST_SHARE = 0.2\n")
    make_data().setup()
    assert len(list(cache.rglob("*.npz"))) == 2
    monkeypatch.setattr(source, "version", lambda name: "another")
    make_data().setup()
    assert len(list(cache.rglob("*.npz"))) == 3


def test_scores_that_were_read_say_what_they_took_when_they_were_computed(
    make_data: Callable[..., MVTecNoisy], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def compare(*args: Any) -> Any:
        nonlocal now
        now += 100
        return nearest_distances(*args)

    monkeypatch.setattr("time.perf_counter", lambda: now)
    monkeypatch.setattr("anomalib_cdd.cleaning.scorer.nearest_distances", compare)
    saved = []
    for _ in range(3):
        data = make_data()
        data.setup()
        saved.append(data.cleaned.seconds_saved)
    assert saved == [0, 100, 100]


def test_ctrl_c_while_scoring_leaves_no_half_file(
    make_data: Callable[..., MVTecNoisy], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("anomalib_cdd.cleaning.scorer.nearest_distances", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make_data().setup()
    assert not list(cache.rglob("*.np*"))
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"share": 1.0}, "clean: share has to be at least 0 and below 1, found 1.0"),
        ({"deviations": 0}, "clean: deviations has to be above 0, found 0"),
        ({"share": "0.1"}, "clean: share has to be a number of 0 or more, found '0.1'"),
        ({"reference_images": 0}, "clean: reference_images has to be a whole number of 1 or more, found 0"),
        ({"reference_images": 5.5}, "clean: reference_images has to be a whole number of 1 or more, found 5.5"),
        ({"seed": None}, "clean: seed has to be a whole number of 0 or more, found None"),
        ({"layers": "layer1"}, "clean: layers has to be a list of names, found 'layer1'"),
        ({"image_size": None}, "clean: image_size has to be a height and a width of 32 or more, found None"),
        ({"image_size": 192}, "clean: image_size has to be a height and a width of 32 or more, found 192"),
        ({"image_size": [16, 16]}, r"clean: image_size has to be .* found \[16, 16\]"),
        ({"share": 0.1, "deviations": 2}, "exclude each other: give one"),
        ({"shares": 0.1}, "clean: there is no shares; the options are share, deviations"),
        ({"share": 0.95}, "clean: share 0.95 leaves 1 of 15 training images: leave out fewer"),
    ],
)
def test_a_rule_that_cannot_be_is_refused_in_one_line(
    make_data: Callable[..., MVTecNoisy], rule: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_data(clean={**LOOK, **rule}).setup()


@pytest.mark.parametrize("given", [True, 0.1, "yes"])
def test_what_is_no_rule_is_refused_in_one_line(make_data: Callable[..., MVTecNoisy], given: Any) -> None:
    with pytest.raises(ValueError, match=r"clean: give options such as \{'share': 0.1\}"):
        make_data(clean=given)


def test_images_that_are_all_the_same_all_stay(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(12):
        save(make_sample(0).image, tmp_path / "same" / "train" / "good" / f"{number:02}.png")
    arguments = {"name": "same", "root": tmp_path / "same", "normal_dir": "train/good", "noise_ratio": 0}
    arguments |= {"test_split_mode": "none", "val_split_mode": "none", "num_workers": 0}
    # as YAML has it
    arguments["clean"] = {"share": 0.3, "image_size": [64, 64]}
    data = get_datamodule({"data": {"class_path": "anomalib_cdd.FolderNoisy", "init_args": arguments}})
    data.setup()
    assert len(data.train_data) == 12
    assert "all alike, so none is left out" in caplog.text


def test_a_fit_cleans_images_of_12_bits_as_it_reads_them(cache: Path, tmp_path: Path) -> None:
    root = tmp_path / "parts"
    for number in range(12):
        pixels = np.asarray(make_sample(number).image.convert("L")).astype(np.uint16) * 16
        save(Image.fromarray(pixels), root / f"{number:02}.png")
    options = {"name": "parts", "root": root, "normal_dir": ".", "noise_ratio": 0, "test_split_mode": "none"}
    options |= {"val_split_mode": "none", "clean": LOOK | {"share": 0.2}, "num_workers": 0, "train_batch_size": 4}
    scores = []
    for is_fit in (False, True):
        data = FolderNoisy(**options)
        if is_fit:
            rmtree(cache)
            model = CrossPatch(backbone="test_resnet", pre_trained=False, audit=False)
            engine = {"logger": False, "accelerator": "cpu", "enable_progress_bar": False}
            Engine(**engine, default_root_dir=tmp_path / "results").fit(model, datamodule=data)
        else:
            data.setup()
        scores.append(data.cleaned.scores)
    assert np.array_equal(*scores)


def test_few_images_are_cleaned_with_a_warning(
    make_data: Callable[..., MVTecNoisy], caplog: pytest.LogCaptureFixture
) -> None:
    make_data(max_normal=4).setup()
    assert "5 training images are few to say what is usual" in caplog.text


def test_the_command_line_takes_a_rule(mvtec_root: Path, tmp_path: Path) -> None:
    from anomalib_cdd.__main__ import main

    arguments = ["fit", "--model", "Padim", "--model.backbone", "resnet18", "--model.pre_trained", "false"]
    arguments += ["--model.n_features", "8", "--data", "MVTecNoisy", "--data.root", str(mvtec_root)]
    arguments += ["--data.noise_ratio", "0.25", "--data.clean.share", "0.2", "--data.clean.image_size", "[96, 96]"]
    arguments += ["--data.num_workers", "0", "--default_root_dir", str(tmp_path / "results")]
    main([*arguments, "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--trainer.logger", "false"])
    [path] = (tmp_path / "results").rglob("cleaned.csv")
    assert len(path.read_text().splitlines()) == 1 + 3


def test_the_public_names_are_there() -> None:
    assert set(cleaning.__all__) == {"Recurrence", "cross_domain_scores", "judge", "score_images", "write_exclude_list"}
