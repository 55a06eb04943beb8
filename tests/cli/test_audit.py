# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""``audit`` of a folder: without a model, by a checkpoint, by cross-domain training; and what it says of bad input."""

import csv
import html
import json
import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anomalib.engine import Engine
from anomalib.models import AnomalibModule, Dfkde, Padim, list_models
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import seed_everything
from PIL import Image
from samples import save
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anomalib_cdd import Cdd, FolderNoisy
from anomalib_cdd.__main__ import main
from anomalib_cdd.audit import scores as audit_scores
from anomalib_cdd.cli import audit as audit_command
from anomalib_cdd.cli.audit import get_parser, model_class
from anomalib_cdd.evaluation.predictions import score_dataset

SMALL = {"backbone": "resnet18", "layers": ["layer1"], "n_features": 4, "pre_trained": False, "visualizer": False}


def make_model(kind: str) -> AnomalibModule:
    seed_everything(0, verbose=False)
    steps = Compose([Resize((64, 64), antialias=True), Normalize(mean=[0.5] * 3, std=[0.5] * 3)])
    common: dict[str, Any] = {"pre_processor": PreProcessor(steps), "visualizer": False, "pre_trained": False}
    if kind == "Padim":
        return Padim(backbone="resnet18", layers=["layer1"], n_features=4, **common)
    if kind == "Dfkde":
        return Dfkde(backbone="resnet18", layers=["layer4"], n_pca_components=2, **common)
    return Cdd(backbone="test_resnet", student_width=8, audit=False, **common)


def images_of(folder: Path) -> FolderNoisy:
    return FolderNoisy(
        name="own", root=folder, normal_dir=".", noise_ratio=0, test_split_mode="none", val_split_mode="none",
        train_batch_size=4, eval_batch_size=4, num_workers=0,
    )  # fmt: skip


Trained = tuple[Path, AnomalibModule]


@pytest.fixture(scope="module")
def trained(mvtec_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trained]:
    """Return a function that trains a model on the twelve normal training images, once each."""
    known: dict[str, Trained] = {}

    def fit(kind: str) -> Trained:
        if kind not in known:
            root, model = tmp_path_factory.mktemp(kind), make_model(kind)
            engine = Engine(
                logger=False, accelerator="cpu", devices=1, enable_progress_bar=False, default_root_dir=root,
                max_epochs=2 if kind == "Cdd" else 1,
            )  # fmt: skip
            engine.fit(model, datamodule=images_of(mvtec_root / "bottle" / "train" / "good"))
            known[kind] = next(root.rglob("*.ckpt")), model
        return known[kind]

    return fit


def audit(data: Path, output: Path, *options: str) -> pd.DataFrame:
    main(["audit", "--data", str(data), "--output", str(output), "--batch_size", "4", *options])
    return pd.read_csv(output / "training_scores.csv", keep_default_na=False)


def refusal(*options: object) -> str:
    with pytest.raises(SystemExit) as error:
        main(["audit", *map(str, options)])
    assert "\n" not in str(error.value)
    return str(error.value)


def page_of(output: Path) -> str:
    return (output / "index.html").read_text(encoding="utf-8")


def test_a_bare_folder_is_ranked_without_a_model(mvtec_root: Path, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "parts"
    shutil.copytree(mvtec_root / "bottle" / "train" / "good", folder / "line 1")
    for number in range(3):
        shutil.copy(mvtec_root / "bottle" / "test" / "spot" / f"{number:03}.png", folder / f"bad {number}.png")
    for number in range(3):  # one part, photographed four times, a little brighter each time
        with Image.open(folder / "line 1" / "000.png") as image:
            image.point([min(value + number, 255) for value in range(256)] * 3).save(folder / f"again {number}.png")
    scores = audit(folder, tmp_path / "out")
    assert set(scores["image_path"].head(3)) == {f"bad {number}.png" for number in range(3)}
    assert set(scores["scored_by"]) == {"recurrence"}
    assert set(scores["sample"]) == {"out-of-sample"}
    [same] = [set(group["image_path"]) for number, group in scores.groupby("duplicates") if number != ""]
    assert same == {"line 1/000.png", *(f"again {number}.png" for number in range(3))}
    page = page_of(tmp_path / "out")
    assert "18 images, ranked by recurrence. No model was trained" in page
    assert "Scores are out of sample" in page
    assert str((tmp_path / "out" / "index.html").resolve()) in capsys.readouterr().out


def test_new_images_have_their_percentile_among_the_training_scores(
    trained: Callable[[str], Trained], folder_root: Path, tmp_path: Path
) -> None:
    checkpoint, model = trained("Cdd")
    scores = audit(folder_root / "defect", tmp_path / "out", "--ckpt_path", str(checkpoint))
    assert scores["score"].equals(scores["model_score"])
    assert set(scores["sample"]) == {"out-of-sample"}
    own = model.training_report().scores
    expected = [100 * float((own < score).mean()) for score in scores["score"]]
    assert scores["percentile"].tolist() == pytest.approx(expected, abs=0.01)
    assert f"what share of {len(own)} training images score lower" in page_of(tmp_path / "out")


def test_the_images_of_the_training_have_the_trainings_report(
    trained: Callable[[str], Trained], mvtec_root: Path, tmp_path: Path
) -> None:
    checkpoint, model = trained("Cdd")
    scores = audit(mvtec_root / "bottle" / "train" / "good", tmp_path / "out", "--ckpt_path", str(checkpoint))
    report = model.training_report()
    assert scores["score"].tolist() == pytest.approx(sorted(report.scores.tolist(), reverse=True), rel=1e-5)
    assert set(scores["sample"]) == {"out-of-sample"}
    assert "percentile" not in scores
    assert "standard_score_2" in scores


def test_of_new_images_and_some_that_were_trained_on_the_latter_have_the_trainings_scores(
    trained: Callable[[str], Trained], mvtec_root: Path, tmp_path: Path
) -> None:
    checkpoint, model = trained("Cdd")
    scores = audit(mvtec_root / "bottle", tmp_path / "out", "--ckpt_path", str(checkpoint))
    learned = scores["image_path"].str.startswith("train/good")
    assert learned.sum() == 12
    report = sorted(model.training_report().scores.tolist(), reverse=True)
    assert scores.loc[learned, "score"].tolist() == pytest.approx(report, rel=1e-5)
    assert scores.loc[~learned, "score"].equals(scores.loc[~learned, "model_score"])
    assert scores["sample"].eq("out-of-sample").all()
    assert f"Scores of 12 of the {len(scores)} images are the training" in page_of(tmp_path / "out")


@pytest.mark.parametrize("kind", ["Padim", "Dfkde"])
def test_a_model_of_anomalib_that_keeps_no_scores_says_so(
    trained: Callable[[str], Trained], folder_root: Path, tmp_path: Path, kind: str
) -> None:
    checkpoint, model = trained(kind)
    options = ["--model", kind.lower(), "--ckpt_path", str(checkpoint)]
    scores = audit(folder_root / "defect", tmp_path / "out", *options)
    data = images_of(folder_root / "defect")
    data.setup()
    expected = score_dataset(model, data.train_data, progress=False).scores
    assert scores["score"].tolist() == pytest.approx(sorted(expected.tolist(), reverse=True), rel=1e-4)
    assert set(scores["sample"]) == {"unknown"}
    page = page_of(tmp_path / "out")
    assert "It does not say which images it has learned from" in page
    assert "there are no percentiles" in page


def test_every_model_of_anomalib_is_found_without_being_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        pytest.fail("it was built")

    monkeypatch.setattr(AnomalibModule, "__init__", refuse)
    for case in ("snake", "pascal"):
        names = list_models(case)
        assert len(names) >= 36
        found = {model_class(name) for name in names}
        assert {kind.__name__ for kind in found} == list_models("pascal")
    assert model_class("anomalib_cdd.Cdd") is Cdd
    assert model_class("anomalib.models.Padim") is Padim


def test_cross_domain_training_scores_each_image_by_a_model_that_has_not_seen_it(
    mvtec_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = json.dumps({"class_path": "Padim", "init_args": SMALL, "trainer": {"accelerator": "cpu"}})
    options = ["--model", model, "--domains", "2"]
    data = mvtec_root / "bottle" / "train" / "good"
    scores = audit(data, tmp_path / "out", *options)
    assert len(scores) == 12
    assert set(scores["scored_by"]) == {"Padim, cross-domain training"}
    assert set(scores["sample"]) == {"out-of-sample"}
    page = page_of(tmp_path / "out")
    assert "one of 2 models that was trained without it" in page
    assert '"hasHeatMaps": true' in page
    assert f'"files": "{data.resolve().as_uri()}"' in page
    # a part that is finished is not trained again
    monkeypatch.setattr(Engine, "fit", lambda *args, **kwargs: pytest.fail("trained again"))
    assert audit(data, tmp_path / "out", *options).equals(scores)


def test_the_files_of_a_12_bit_camera_are_not_enlarged_as_a_browser_shows_them_dark(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    for number, values in enumerate(np.random.default_rng(0).uniform(0, 4000, (4, 64, 64)).astype(np.uint16)):
        Image.fromarray(values).save(folder / f"{number}.png")
    audit(folder, tmp_path / "out")
    assert '"files": ""' in page_of(tmp_path / "out")


def test_an_image_that_cannot_be_read_is_named_and_the_others_go_on(
    trained: Callable[[str], Trained], folder_root: Path, tmp_path: Path, caplog: Any, capsys: Any
) -> None:
    folder = tmp_path / "parts"
    shutil.copytree(folder_root / "good", folder)
    whole = (folder / "003.png").read_bytes()
    (folder / "half.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("no image", encoding="utf-8")
    scores = audit(folder, tmp_path / "out", "--model", "Padim", "--ckpt_path", str(trained("Padim")[0]))
    assert sorted(scores["image_path"]) == [f"{number:03}.png" for number in range(12)]
    for name in ("half.png", "text.jpg"):
        assert str(folder / name) in caplog.text
        assert name in page_of(tmp_path / "out")
    assert "12 images (2 more cannot be read)" in capsys.readouterr().out


def test_names_that_are_no_text_or_break_lines(
    trained: Callable[[str], Trained], folder_root: Path, tmp_path: Path, caplog: Any
) -> None:
    folder = tmp_path / "parts"
    shutil.copytree(folder_root / "good", folder)
    (folder / "003.png").rename(folder / "three\r.png")
    (folder / "004.png").rename(folder / os.fsdecode(b"Gr\xf6\xdfe.png"))
    options = ["--model", "Padim", "--ckpt_path", str(trained("Padim")[0]), "--batch_size", "4"]
    main(["audit", "--data", str(folder), "--output", str(tmp_path / "out"), *options])
    with (tmp_path / "out" / "training_scores.csv").open(encoding="utf-8", newline="") as file:
        names = {row["image_path"] for row in csv.DictReader(file, strict=True)}
    assert names == {f"{number:03}.png" for number in range(12) if number not in {3, 4}} | {"three\r.png"}
    assert r"Gr\udcf6\udcdfe.png" in page_of(tmp_path / "out")
    assert "its name is not valid UTF-8" in caplog.text
    audit(folder, tmp_path / "out", *options)  # the list is known as an audit's


def test_a_folder_of_one_image(trained: Callable[[str], Trained], folder_root: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    shutil.copy(folder_root / "good" / "001.png", tmp_path / "one" / "only.png")
    scores = audit(tmp_path / "one", tmp_path / "out", "--ckpt_path", str(trained("Cdd")[0]))
    assert scores["image_path"].tolist() == ["only.png"]
    # one alone has no others to be compared with
    message = refusal("--data", tmp_path / "one", "--output", tmp_path / "none")
    assert "1 images" in message
    assert not (tmp_path / "none").exists()


def test_a_review_beside_the_page_is_shown_by_the_next_audit(
    trained: Callable[[str], Trained], folder_root: Path, tmp_path: Path
) -> None:
    options = ["--model", "Padim", "--ckpt_path", str(trained("Padim")[0])]
    audit(folder_root / "defect", tmp_path / "out", *options)
    review = {"images": {"003.png": "bad", "004.png": "good", "gone.png": "bad"}}
    (tmp_path / "out" / "review.json").write_text(json.dumps(review), encoding="utf-8")
    scores = audit(folder_root / "defect", tmp_path / "out", *options).set_index("image_path")
    assert scores.loc["003.png", "review"] == "bad"
    assert scores.loc["004.png", "review"] == "good"
    assert (scores["review"] == "").sum() == 12
    assert '"003.png": "bad"' in page_of(tmp_path / "out")
    assert "speaks of 1 images more" in page_of(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "review.json").read_text(encoding="utf-8")) == review


def test_a_review_of_another_folder_is_not_applied(
    trained: Callable[[str], Trained],
    folder_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: Any,
    capsys: Any,
) -> None:
    for place in ("a", "b"):
        shutil.copytree(folder_root / "good", tmp_path / place / "good")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(audit_command, "find_duplicates", lambda *args: [])
    output = Path("results/audit/good")
    options = ["--model", "Padim", "--ckpt_path", str(trained("Padim")[0]), "--batch_size", "4"]
    main(["audit", "--data", "a/good", *options])
    review = {"root": str(tmp_path / "a" / "good"), "images": {"003.png": "bad", "gone.png": "bad"}}
    (output / "review.json").write_text(json.dumps(review), encoding="utf-8")
    main(["audit", "--data", "a/../a/good", *options])  # the same folder again
    assert f"1 verdicts were taken over from {output / 'review.json'}" in capsys.readouterr().out
    # another folder of the same name takes its place only when it is told to
    before = page_of(output)
    message = f"{output} has the audit of {tmp_path / 'a' / 'good'}: name another folder by --output, or this one"
    assert message in refusal("--data", "b/good", *options)
    assert page_of(output) == before
    scores = audit(tmp_path / "b" / "good", output, *options)
    assert set(scores["review"]) == {""}
    for text in (caplog.text, html.unescape(page_of(output))):
        assert f"is a review of {tmp_path / 'a' / 'good'} and is not applied to {tmp_path / 'b' / 'good'}" in text
    assert f"The audit of {tmp_path / 'a' / 'good'} in {output} will be replaced" in caplog.text
    assert "0 verdicts were taken over" in capsys.readouterr().out
    # a folder that was moved, and files of before
    (output / "review.json").write_text(json.dumps({"images": review["images"]}), encoding="utf-8")
    scores = audit(tmp_path / "b" / "good", output, *options)
    assert scores.loc[scores["review"] == "bad", "image_path"].tolist() == ["003.png"]


def test_ctrl_c_leaves_what_was_there(
    trained: Callable[[str], Trained], folder_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    options = ["--model", "Padim", "--ckpt_path", str(trained("Padim")[0])]
    audit(folder_root / "defect", tmp_path / "out", *options)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}

    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(audit_scores, "iterate_predictions", interrupt)
    capsys.readouterr()
    with pytest.raises(SystemExit) as error:
        audit(folder_root / "good", tmp_path / "out", *options)
    assert error.value.code == 130
    assert capsys.readouterr().err.strip().splitlines()[-1] == "interrupted: the audit is not whole; start it again"
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ckpt_path": "nowhere.ckpt"}, "nowhere.ckpt: there is no such file"),
        ({"data": "nowhere"}, "nowhere: there is no such folder"),
        ({"data": "empty"}, "--data "),
        ({"data": "unreadable"}, "None of 1 images can be read"),
        ({"model": "Nonsense"}, "--model Nonsense: there is no such model. There are "),
        ({"model": "Padimm"}, "there is no such model, is it Padim? There are "),
        ({"data": "text.ckpt"}, "text.ckpt: this is a file: name its folder"),
        ({"model": "anomalib.models.Nonsense"}, "--model anomalib.models.Nonsense: "),
        ({"model": "no.such.module.Model"}, "--model no.such.module.Model: "),
        ({"model": "os.path"}, "--model os.path: there is no such model"),
        ({"model": '{"init_args": {}}'}, "it takes class_path, init_args and trainer"),
        ({"model": '{"class_path": null}'}, "--model: class_path has to be the name of a class, found None"),
        ({"model": '{"class_path": "Padim", "init_args": 5}'}, "init_args has to be names and values, found 5"),
        ({"model": "./model.ckpt"}, "--model ./model.ckpt: this is a checkpoint: give it as --ckpt_path"),
        ({"model": ".Cdd"}, "--model .Cdd: "),
        ({"model": "Padim"}, "no checkpoint of Padim"),
        ({"ckpt_path": "text.ckpt"}, "text.ckpt"),
        ({"domains": "3"}, "--domains 3 is for a --model that is trained here"),
        ({"output": "reviewed"}, "review.json: it cannot be read as JSON"),
        ({"output": "text.ckpt/deeper"}, "/deeper: [Errno 20] Not a directory"),
        ({"output": "foreign"}, "coco.json is not of an audit, which would need that name"),
        ({"output": "text.ckpt"}, "text.ckpt is a file: write the page into a folder"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    trained: Callable[[str], Trained], mvtec_root: Path, tmp_path: Path, arguments: dict[str, str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "unreadable").mkdir()
    (tmp_path / "unreadable" / "text.png").write_text("no image", encoding="utf-8")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "coco.json").write_text("{}", encoding="utf-8")
    (tmp_path / "reviewed").mkdir()
    (tmp_path / "reviewed" / "review.json").write_text("no JSON", encoding="utf-8")
    (tmp_path / "text.ckpt").write_text("no checkpoint", encoding="utf-8")
    given = {"ckpt_path": str(trained("Cdd")[0]), "data": str(mvtec_root), "output": str(tmp_path / "out")}
    for key, value in arguments.items():
        given[key] = value if key in {"model", "domains"} else str(tmp_path / value)
    assert message in refusal(*[text for key, value in given.items() for text in (f"--{key}", value)])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch_size", "0"], "--batch_size 0: give a number of images, at least 1"),
        (["--domains", "3"], "--domains 3 is for a --model"),
        (["--model", "Padim", "--domains", "1"], "--domains 1: at least 2"),
        (["--model", '{"class_path": "Padim", "init_args": {"nonsense": 1}}'], "--model Padim: "),
        (
            ["--model", json.dumps({"class_path": "Padim", "init_args": SMALL}), "--domains", "9"],
            "too few for 9 domains",
        ),
        (["--backbone", "nonsense"], "--backbone nonsense: timm knows no backbone 'nonsense'"),
        (["--model", "Padim", "--backbone", "resnet18"], "--backbone resnet18 is for an audit without --model"),
        (
            ["--model", json.dumps({"class_path": "Padim", "init_args": SMALL, "trainer": {"max_epoch": 1}})],
            "--model Padim: Trainer.__init__() got an unexpected keyword argument 'max_epoch'",
        ),
    ],
)
def test_bad_input_of_a_training_is_one_line(
    mvtec_root: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    data = mvtec_root / "bottle" / "train" / "good"
    assert message in refusal("--data", data, "--output", tmp_path / "out", *options)


def test_weights_that_cannot_be_fetched_are_the_models(
    mvtec_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_hub(*args: Any, **kwargs: Any) -> None:
        msg = "no hub"
        raise ConnectionError(msg)  # an OSError, as the hub's own are

    monkeypatch.setattr("anomalib.models.image.padim.lightning_model.PadimModel", no_hub)
    data = mvtec_root / "bottle" / "train" / "good"
    assert "--model Padim: no hub" in refusal("--data", data, "--output", tmp_path / "out", "--model", "Padim")


def test_help_says_what_each_way_does(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["audit", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for words in ("--data DATA", "--ckpt_path", "--domains", "nothing is trained", "its review.json is kept"):
        assert words in text


def test_the_documentation_is_what_the_command_takes(
    trained: Callable[[str], Trained], folder_root: Path, tmp_path: Path
) -> None:
    text = (Path(__file__).parents[2] / "docs" / "audit.md").read_text(encoding="utf-8")
    commands = re.findall(r"^\$ anomalib-cdd audit ([^#\n]+)", text, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        assert get_parser().parse_args(shlex.split(command)).data == Path("parts")
    [config] = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "audit.yaml").write_text(config, encoding="utf-8")
    assert get_parser().parse_args(["--config", str(tmp_path / "audit.yaml")]).model["class_path"] == "Stfpm"
    [example] = re.findall(r"```python\n(from anomalib_cdd.*?)```", text, re.DOTALL)
    (tmp_path / "review.json").write_text('{"images": {"003.png": "bad"}}', encoding="utf-8")
    example = example.replace('"parts",', f'"{folder_root / "good"}",').replace("results/audit/parts", str(tmp_path))
    named: dict[str, Any] = {}
    exec(example, named)  # noqa: S102
    named["data"].setup()
    assert len(named["data"].train_data) == 11
    # the files and columns that it lists
    scores = audit(folder_root / "defect", tmp_path / "out", "--ckpt_path", str(trained("Cdd")[0]))
    assert [name for name in scores.columns if f"`{name}`" not in text] == []
    assert [path.name for path in (tmp_path / "out").iterdir() if f"`{path.name}" not in text] == []


LONG = "x" * 300


def test_a_path_that_is_too_long_is_one_line(mvtec_root: Path, tmp_path: Path) -> None:
    assert "File name too long" in refusal("--data", tmp_path / LONG)
    assert "File name too long" in refusal("--data", mvtec_root, "--output", tmp_path / LONG, "--backbone", "resnet18")


def test_a_folder_of_one_image_many_times_over_has_nothing_to_compare(folder_root: Path, tmp_path: Path) -> None:
    for number in range(5):
        save(Image.open(folder_root / "good" / "000.png"), tmp_path / "parts" / f"{number}.png")
    scores = audit(tmp_path / "parts", tmp_path / "out")
    assert scores["score"].nunique() == 1
    assert "All images are near-duplicates of one: there is no other to compare them with" in page_of(tmp_path / "out")


def test_a_full_disk_is_the_outputs(
    trained: Callable[[str], Trained], folder_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("anomalib_cdd.cli.audit.write_results", full)
    model = ["--model", "Padim", "--ckpt_path", trained("Padim")[0]]
    said = refusal("--data", folder_root / "good", "--output", tmp_path / "out", *model)
    assert said == f"error: --output {tmp_path / 'out'}: [Errno 28] No space left on device"


def test_what_fails_in_a_model_that_is_trained_here_keeps_its_name(
    folder_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any, **kwargs: Any) -> None:
        msg = "mat1 and mat2 shapes cannot be multiplied"
        raise RuntimeError(msg)

    monkeypatch.setattr("anomalib_cdd.cli.audit._score", fails)
    model = json.dumps({"class_path": "Padim", "init_args": SMALL})
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        audit(folder_root / "good", tmp_path / "out", "--model", model)
