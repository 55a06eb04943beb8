# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""A fit leaves its audit behind, for any model; the command makes one of any checkpoint and folder."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anomalib.engine import Engine
from anomalib.models import Dfkde, Padim
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import seed_everything
from PIL import Image
from torchvision.transforms.v2 import CenterCrop, Compose, Normalize, Resize

from anomalib_cdd import Cdd, FolderNoisy, FuadEvaluator, LabelFreePostProcessor, MVTecNoisy
from anomalib_cdd.__main__ import main
from anomalib_cdd.audit import TrainingAudit
from anomalib_cdd.audit import training as audit_training
from anomalib_cdd.evaluation.settings import training_ranking

Fit = Callable[..., Any]


def make_model(name: str = "Cdd", **options: Any) -> Any:
    seed_everything(0, verbose=False)
    steps = [Resize((72, 72), antialias=True), CenterCrop((64, 64)), Normalize(mean=[0.5] * 3, std=[0.5] * 3)]
    common = {"pre_trained": False, "visualizer": False, "pre_processor": PreProcessor(Compose(steps))}
    if name == "Padim":
        return Padim(backbone="resnet18", layers=["layer1"], n_features=4, **common)
    return Cdd(backbone="test_resnet", student_width=8, **common, **options)


def make_data(root: Path, **options: Any) -> MVTecNoisy:
    defaults = {"noise_ratio": 0.25, "val_split_mode": "none", "train_batch_size": 4, "eval_batch_size": 4}
    return MVTecNoisy(**{**defaults, "root": root, "category": "bottle", "num_workers": 0, **options})


@pytest.fixture
def fit(tmp_path: Path) -> Fit:
    def run(model: Any, data: Any = None, *callbacks: Any, max_epochs: int = 2, **kwargs: Any) -> Path:
        engine = Engine(
            logger=False, accelerator="cpu", devices=1, enable_progress_bar=False, enable_model_summary=False,
            max_epochs=max_epochs, default_root_dir=tmp_path / "results", callbacks=list(callbacks) or None,
        )  # fmt: skip
        engine.fit(model, datamodule=data, **kwargs)
        return Path(engine.trainer.default_root_dir) / "audit"

    return run


def images_of(page: Path) -> list[dict[str, Any]]:
    """What the page holds, without a browser."""
    [data] = re.findall(r'<script[^>]*type="application/json"[^>]*>(.*?)</script>', page.read_text("utf-8"), re.DOTALL)
    content = json.loads(data)
    return content["images"] if isinstance(content, dict) else content


def test_a_fit_of_cdd_leaves_scores_and_page(fit: Fit, mvtec_root: Path) -> None:
    model, data = make_model(), make_data(mvtec_root)
    folder = fit(model, data, max_epochs=3)
    scores = pd.read_csv(folder / "training_scores.csv")
    assert len(scores) == len(data.train_data)
    assert scores["rank"].tolist() == list(range(1, 16))
    assert scores["score"].is_monotonic_decreasing
    assert scores["is_noise"].sum() == 3
    ranking = training_ranking(model, data, progress=False)
    assert scores["score"].tolist() == pytest.approx(ranking["score"].tolist(), rel=1e-4)
    root = mvtec_root.resolve()
    assert [str(root / name) for name in scores["image_path"]] == [
        str(Path(path).resolve()) for path in ranking["image_path"]
    ]
    # confidence over epochs, of the right image
    place = {path: i for i, path in enumerate(model.training_history.image_paths)}
    rows = [place[path] for path in ranking["image_path"]]
    for epoch in range(3):
        expected = model.training_history.confidence[epoch][rows].tolist()
        assert scores[f"confidence_{epoch + 1}"].tolist() == pytest.approx(expected, rel=1e-4)
    assert [image["name"] for image in images_of(folder / "index.html")] == scores["image_path"].tolist()


def test_any_model_takes_it_as_a_callback(fit: Fit, mvtec_root: Path) -> None:
    model, data = make_model("Padim"), make_data(mvtec_root)
    folder = fit(model, data, TrainingAudit(), max_epochs=1)
    scores = pd.read_csv(folder / "training_scores.csv")
    assert scores["score"].equals(scores["model_score"])
    assert not [column for column in scores if column.startswith("confidence")]
    assert (folder / "index.html").exists()


def test_a_model_without_maps_has_a_page_without_heat_maps(fit: Fit, mvtec_root: Path) -> None:
    steps = Compose([Resize((64, 64), antialias=True), Normalize(mean=[0.5] * 3, std=[0.5] * 3)])
    model = Dfkde(
        backbone="resnet18", layers=["layer4"], pre_trained=False, n_pca_components=2, visualizer=False,
        pre_processor=PreProcessor(steps), post_processor=LabelFreePostProcessor(), evaluator=FuadEvaluator(),
    )  # fmt: skip
    folder = fit(model, make_data(mvtec_root), TrainingAudit(), max_epochs=1)
    assert len(images_of(folder / "index.html")) == 15
    assert model.post_processor.image_threshold.isfinite()
    assert model.post_processor.pixel_min.isnan()
    [logged] = Engine(logger=False, default_root_dir=folder.parent).test(model, datamodule=make_data(mvtec_root))
    assert set(logged) == {"image_AUROC", "image_AUROC_overlap", "injected_AUROC"}


def test_a_folder_of_one_image_has_a_page(fit: Fit, mvtec_root: Path, tmp_path: Path) -> None:
    checkpoint = next(fit(make_model(audit=False), make_data(mvtec_root), max_epochs=1).parent.rglob("*.ckpt"))
    (tmp_path / "one").mkdir()
    shutil.copy(mvtec_root / "bottle" / "train" / "good" / "001.png", tmp_path / "one" / "only.png")
    main(["audit", "--ckpt_path", str(checkpoint), "--data", str(tmp_path / "one"), "--output", str(tmp_path / "out")])
    assert pd.read_csv(tmp_path / "out" / "training_scores.csv")["image_path"].tolist() == ["only.png"]
    assert len(images_of(tmp_path / "out" / "index.html")) == 1


def test_the_list_that_the_page_writes_is_one_that_the_data_takes(fit: Fit, mvtec_root: Path, tmp_path: Path) -> None:
    folder = fit(make_model(), make_data(mvtec_root), max_epochs=1)
    worst = pd.read_csv(folder / "training_scores.csv").head(4)[["image_path"]]
    worst.to_csv(tmp_path / "exclude.csv", index=False)
    cleaned = make_data(mvtec_root, exclude=tmp_path / "exclude.csv")
    cleaned.setup()
    left = {Path(path).resolve() for path in cleaned.train_data.samples["image_path"]}
    assert len(left) == 15 - 4
    assert left.isdisjoint((mvtec_root / name).resolve() for name in worst["image_path"])


def test_the_list_fits_data_without_a_root_too(fit: Fit, folder_root: Path, tmp_path: Path) -> None:
    def data(**options: Any) -> FolderNoisy:
        return FolderNoisy(
            name="parts", normal_dir=folder_root / "good", abnormal_dir=folder_root / "defect", noise_ratio=0.25,
            val_split_mode="none", train_batch_size=4, eval_batch_size=4, num_workers=0, **options,
        )  # fmt: skip

    folder = fit(make_model(), data(), max_epochs=1)
    worst = pd.read_csv(folder / "training_scores.csv").head(3)[["image_path"]]
    worst.to_csv(tmp_path / "exclude.csv", index=False)
    whole, cleaned = data(), data(exclude=tmp_path / "exclude.csv")
    whole.setup()
    cleaned.setup()
    assert len(cleaned.train_data) == len(whole.train_data) - 3


def test_it_can_be_turned_off_and_a_failure_costs_no_training(
    fit: Fit, mvtec_root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert not fit(make_model(audit=False), make_data(mvtec_root), max_epochs=1).exists()

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(audit_training, "write_page", full)
    with caplog.at_level("ERROR"):
        folder = fit(make_model(), make_data(mvtec_root), max_epochs=1)
    assert "could not be written" in caplog.text
    assert (folder / "training_scores.csv").exists()
    assert list(folder.parent.rglob("*.ckpt"))


def test_a_heat_map_lies_where_the_model_looked(fit: Fit, mvtec_root: Path) -> None:
    """The margins that the crop takes stay as dark as the coldest pixel, and the thumbnail shows the whole image."""
    model, data = make_model(), make_data(mvtec_root)
    fit(model, data, max_epochs=1)
    images = audit_training.TrainingImages(data.train_data, None, 4)
    _, thumbnails, maps = audit_training._look(model, images, progress=False)
    assert len(thumbnails) == len(maps) == 15
    assert all(values.shape == (64, 64) for values in maps)
    for values in maps:
        border = np.concatenate(
            [values[:2].ravel(), values[-2:].ravel(), values[:, :2].ravel(), values[:, -2:].ravel()]
        )
        assert border.max() < values[8:-8, 8:-8].min()


def test_the_command_audits_any_folder(
    fit: Fit, mvtec_root: Path, folder_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model, data = make_model(), make_data(mvtec_root)
    checkpoint = next(fit(model, data).parent.rglob("*.ckpt"))
    # a new folder: the model's own scores
    main(
        [
            "audit",
            "--ckpt_path",
            str(checkpoint),
            "--data",
            str(folder_root / "defect"),
            "--output",
            str(tmp_path / "a"),
        ]
    )
    scores = pd.read_csv(tmp_path / "a" / "training_scores.csv")
    assert set(scores["image_path"]) == {f"{number:03}.png" for number in range(14)}
    assert scores["score"].equals(scores["model_score"])
    assert str((tmp_path / "a" / "index.html").resolve()) in capsys.readouterr().out
    # the folder that it was trained on: what the training said
    train = mvtec_root / "bottle" / "train" / "good"
    own = FolderNoisy(
        name="own", root=train, normal_dir=".", noise_ratio=0, test_split_mode="none", val_split_mode="none",
        train_batch_size=4, eval_batch_size=4, num_workers=0,
    )  # fmt: skip
    model = make_model()
    fit(model, own)
    checkpoint = max((tmp_path / "results").rglob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    main(["audit", "--ckpt_path", str(checkpoint), "--data", str(train), "--output", str(tmp_path / "b")])
    scores = pd.read_csv(tmp_path / "b" / "training_scores.csv")
    assert scores["score"].tolist() == pytest.approx(sorted(model.training_suspicion().values(), reverse=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ckpt_path": "nowhere.ckpt"}, "nowhere.ckpt: there is no such file"),
        ({"data": "nowhere"}, "nowhere: there is no such folder"),
        ({"data": "empty"}, "--data .*empty"),
        ({"model": "Nonsense"}, "--model Nonsense"),
        ({"model": "Padim"}, "no checkpoint of Padim"),
        ({"ckpt_path": "text.ckpt"}, "text.ckpt"),
    ],
)
def test_bad_input_of_the_command_is_one_line(
    fit: Fit, mvtec_root: Path, tmp_path: Path, arguments: dict[str, str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.ckpt").write_text("no checkpoint", encoding="utf-8")
    fit(make_model(audit=False), make_data(mvtec_root), max_epochs=1)
    checkpoint = next((tmp_path / "results").rglob("*.ckpt"))
    given = {"ckpt_path": str(checkpoint), "data": str(mvtec_root), "output": str(tmp_path / "out")}
    for key, value in arguments.items():
        given[key] = value if key == "model" else str(tmp_path / value)
    argv = [text for key, value in given.items() for text in (f"--{key}", value)]
    with pytest.raises(SystemExit, match=message) as error:
        main(["audit", *argv])
    assert "\n" not in str(error.value)


def test_16_bit_images_are_not_white(tmp_path: Path) -> None:
    values = np.linspace(0, 40_000, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert 100 < np.asarray(audit_training._thumbnail(tmp_path / "deep.png")).mean() < 155
