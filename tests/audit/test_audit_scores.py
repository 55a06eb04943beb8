# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Whose scores an audit shows: the training's report first, and a model's own with what is known of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anomalib import LearningType
from anomalib.data import InferenceBatch
from anomalib.models import AnomalibModule
from torch import Tensor, nn

from anomalib_cdd import FolderNoisy
from anomalib_cdd.audit.scores import score_by_model
from anomalib_cdd.training.images import TrainingImages
from anomalib_cdd.training.report import TrainingReport


class Brightness(nn.Module):
    def forward(self, images: Tensor) -> InferenceBatch:
        maps = images.mean(dim=1)
        return InferenceBatch(pred_score=maps.mean(dim=(1, 2)), anomaly_map=maps)


def make_model(report: TrainingReport | None = None, *, reports: bool = True) -> AnomalibModule:
    members: dict[str, Any] = {"trainer_arguments": {}, "learning_type": LearningType.ONE_CLASS}
    if reports:
        members["training_report"] = lambda self: report
    model = type("Fake", (AnomalibModule,), members)(
        pre_processor=False, post_processor=False, evaluator=False, visualizer=False
    )
    model.model = Brightness()
    return model


@pytest.fixture
def images(folder_root: Path) -> TrainingImages:
    data = FolderNoisy(
        name="own", root=folder_root / "good", normal_dir=".", noise_ratio=0, test_split_mode="none",
        val_split_mode="none", num_workers=0,
    )  # fmt: skip
    data.setup()
    return TrainingImages(data.train_data, None, 5)


def paths_of(images: TrainingImages) -> list[str]:
    return [str(path) for path in images.dataset.samples["image_path"]]


def report_of_paths(paths: list[str]) -> TrainingReport:
    scores = np.arange(len(paths), dtype=np.float32)
    return TrainingReport(paths, scores, {"confidence": np.stack([scores, -scores])})


def test_a_report_of_these_images_is_shown_whatever_its_order(images: TrainingImages) -> None:
    paths = paths_of(images)
    scored = score_by_model(make_model(report_of_paths(paths[::-1])), images, progress=False)
    assert scored.image_paths == paths
    assert scored.scores.tolist() == list(range(11, -1, -1))
    assert scored.curves["confidence"][1].tolist() == [-value for value in range(11, -1, -1)]
    assert set(scored.sample) == {"out-of-sample"}
    assert scored.model_scores is not None
    assert 0 < scored.model_scores.min() < scored.model_scores.max() < 1
    assert scored.percentiles is None


@pytest.mark.parametrize("reports", [True, False])
def test_without_a_report_a_models_own_scores_are_in_sample_or_not_known(images: TrainingImages, reports: bool) -> None:
    model = make_model(reports=reports)
    scored = score_by_model(model, images, trained_on=True, progress=False)
    assert scored.scores.tolist() == scored.model_scores.tolist()
    assert set(scored.sample) == {"in-sample"}
    scored = score_by_model(model, images, progress=False)
    assert set(scored.sample) == {"unknown"}
    assert "no percentiles" in scored.notes[-1]


def test_scores_that_are_not_known_of_an_image_are_not_made_up(images: TrainingImages) -> None:
    report = report_of_paths(paths_of(images))
    report.scores[3] = np.nan
    scored = score_by_model(make_model(report), images, progress=False)
    assert scored.scores.tolist() == scored.model_scores.tolist()
    assert set(scored.sample) == {"in-sample"}
    # percentiles are among the eleven that are known, all of them above these scores but the first
    assert scored.percentiles.tolist() == pytest.approx([100 / 11] * 12)


def test_new_images_are_out_of_sample_and_have_percentiles(images: TrainingImages) -> None:
    report = TrainingReport(["elsewhere/a.png", "elsewhere/b.png"], np.array([0.0, 1.0], dtype=np.float32))
    scored = score_by_model(make_model(report), images, progress=False)
    assert set(scored.sample) == {"out-of-sample"}
    assert scored.percentiles.tolist() == [50] * 12
    assert torch.isfinite(torch.from_numpy(scored.scores)).all()
