# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""A fit leaves its audit behind, for any model."""

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
from torchvision.transforms.v2 import CenterCrop, Compose, Normalize, Resize

from anomalib_cdd import Cdd, FolderNoisy, FuadEvaluator, LabelFreePostProcessor, MVTecNoisy
from anomalib_cdd.audit import TrainingAudit, results
from anomalib_cdd.audit.scores import score_by_model
from anomalib_cdd.training.images import TrainingImages

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
    # the training's own report, not the model's scores: each image judged by what has not learned from it
    report = model.training_report()
    order = np.argsort(-report.scores, kind="stable")
    assert scores["score"].tolist() == pytest.approx(report.scores[order].tolist(), rel=1e-4)
    assert set(scores["sample"]) == {"out-of-sample"}
    assert set(scores["scored_by"]) == {"Cdd, training report"}
    root = mvtec_root.resolve()
    assert [str(root / name) for name in scores["image_path"]] == [
        str(Path(report.image_paths[row]).resolve()) for row in order
    ]
    # scores over epochs, of the right image
    for epoch, values in enumerate(report.curves["standard_score"], start=1):
        assert scores[f"standard_score_{epoch}"].tolist() == pytest.approx(
            values[order].tolist(), rel=1e-4, nan_ok=True
        )
    assert [image["name"] for image in images_of(folder / "index.html")] == scores["image_path"].tolist()


def test_the_page_of_a_fit_groups_near_duplicates(fit: Fit, mvtec_root: Path, tmp_path: Path) -> None:
    shutil.copytree(mvtec_root / "bottle", tmp_path / "bottle")
    good = tmp_path / "bottle" / "train" / "good"
    shutil.copy(good / "000.png", good / "again.png")
    folder = fit(make_model("Padim"), make_data(tmp_path, noise_ratio=0), TrainingAudit(), max_epochs=1)
    scores = pd.read_csv(folder / "training_scores.csv").dropna(subset="duplicates")
    assert {Path(name).name for name in scores["image_path"]} == {"000.png", "again.png"}


def test_any_model_takes_it_as_a_callback(fit: Fit, mvtec_root: Path) -> None:
    model, data = make_model("Padim"), make_data(mvtec_root)
    folder = fit(model, data, TrainingAudit(), max_epochs=1)
    scores = pd.read_csv(folder / "training_scores.csv")
    assert scores["score"].equals(scores["model_score"])
    assert set(scores["sample"]) == {"in-sample"}
    assert "in sample, and lenient" in (folder / "index.html").read_text(encoding="utf-8")
    assert not [column for column in scores if column.startswith("standard_score")]
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
        raise RuntimeError(*args[:1])

    monkeypatch.setattr(results, "write_page", full)
    with caplog.at_level("ERROR"):
        folder = fit(make_model(), make_data(mvtec_root), max_epochs=1)
    assert "could not be written" in caplog.text
    assert (folder / "training_scores.csv").exists()
    assert list(folder.parent.rglob("*.ckpt"))


def test_a_heat_map_lies_where_the_model_looked(fit: Fit, mvtec_root: Path) -> None:
    """The margins that the crop takes stay as dark as the coldest pixel."""
    model, data = make_model(), make_data(mvtec_root)
    fit(model, data, max_epochs=1)
    scored = score_by_model(model, TrainingImages(data.train_data, None, 4), progress=False)
    assert scored.maps is not None
    assert len(scored.maps) == 15
    for values in scored.maps:
        assert values.shape == (64, 64)
        border = np.concatenate(
            [values[:2].ravel(), values[-2:].ravel(), values[:, :2].ravel(), values[:, -2:].ravel()]
        )
        assert border.max() < values[8:-8, 8:-8].min()
