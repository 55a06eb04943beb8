# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Whose scores an audit shows: the training's report first, and a model's own with what is known of them."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anomalib import LearningType
from anomalib.data import InferenceBatch
from anomalib.models import AnomalibModule
from anomalib.pre_processing import PreProcessor
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import CenterCrop, Compose, Resize

from anomalib_cdd import FolderNoisy
from anomalib_cdd.audit.scores import score_by_model
from anomalib_cdd.training.image_files import contents_of
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
    return images_of(folder_root / "good")


def images_of(folder: Path) -> TrainingImages:
    data = FolderNoisy(
        name="own", root=folder, normal_dir=".", noise_ratio=0, test_split_mode="none",
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
    assert scored.scores.tolist() == [0, 1, 2, scored.model_scores[3], *range(4, 12)]
    assert scored.sample == ["out-of-sample"] * 3 + ["in-sample"] + ["out-of-sample"] * 8
    assert "Scores of 11 of the 12 images are the training's" in scored.notes[0]
    assert "learned from 1 of the 12 images" in scored.notes[1]
    assert np.isnan(scored.curves["confidence"][:, 3]).all()
    assert scored.curves["confidence"][0, 4] == 4
    # percentiles are among the eleven that are known; the score of the other lies between the first two
    assert scored.percentiles.tolist() == pytest.approx([100 * place / 11 for place in (0, 1, 2, 1, *range(3, 11))])


def moved_to(folder: Path, images: TrainingImages, *, keep: bool) -> TrainingImages:
    """The same files in another folder, while the old ones are there or not."""
    source = Path(paths_of(images)[0]).parent
    (shutil.copytree if keep else shutil.move)(source, folder)
    return images_of(folder)


def test_a_copy_of_the_training_folder_has_the_trainings_scores(images: TrainingImages, tmp_path: Path) -> None:
    model = make_model(report_of_paths(paths_of(images)))
    copy = moved_to(tmp_path / "copy", images, keep=True)
    new = tmp_path / "copy" / "000.png"  # another image of a known name, and a new one
    Image.effect_noise((64, 64), 50).save(new)
    Image.effect_noise((64, 64), 50).save(tmp_path / "copy" / "zzz.png")
    scored = score_by_model(model, images_of(tmp_path / "copy"), progress=False)
    assert len(copy.dataset) == 12
    assert scored.scores[1:12].tolist() == list(range(1, 12))
    assert scored.scores[[0, 12]].tolist() == scored.model_scores[[0, 12]].tolist()
    assert set(scored.sample) == {"out-of-sample"}
    assert "No training image has the content of the other 2 images" in scored.notes[-2]


@pytest.mark.parametrize("place", ["elsewhere/parts", "elsewhere/others"])
@pytest.mark.parametrize("is_taken_down", [True, False])
def test_a_folder_that_was_moved_is_known_by_what_was_taken_down_or_in_doubt(
    images: TrainingImages, tmp_path: Path, place: str, is_taken_down: bool
) -> None:
    images = moved_to(tmp_path / "parts", images, keep=True)
    paths = paths_of(images)
    report = replace(report_of_paths(paths), contents=contents_of(paths) if is_taken_down else ())
    scored = score_by_model(make_model(report), moved_to(tmp_path / place, images, keep=False), progress=False)
    if is_taken_down:
        assert scored.scores.tolist() == list(range(12))
        assert set(scored.sample) == {"out-of-sample"}
    else:
        assert scored.scores.tolist() == scored.model_scores.tolist()
        assert set(scored.sample) == {"unknown"}
        assert "12 images have paths or names of training images and may differ from them" in scored.notes[1]


def test_tomorrows_folder_has_not_todays_scores(images: TrainingImages, tmp_path: Path) -> None:
    """Its files and their folder have the same names, and today's are gone."""
    images = moved_to(tmp_path / "today" / "good", images, keep=True)
    paths = paths_of(images)
    model = make_model(replace(report_of_paths(paths), contents=contents_of(paths)))
    shutil.rmtree(tmp_path / "today")
    for path in paths:
        other = tmp_path / "tomorrow" / "good" / Path(path).name
        other.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((64, 64), 50).save(other)
    scored = score_by_model(model, images_of(tmp_path / "tomorrow" / "good"), progress=False)
    assert scored.scores.tolist() == scored.model_scores.tolist()
    assert set(scored.sample) == {"out-of-sample"}


def test_a_file_that_was_replaced_is_in_doubt(images: TrainingImages, tmp_path: Path) -> None:
    images = moved_to(tmp_path / "parts", images, keep=True)
    paths = paths_of(images)
    model = make_model(replace(report_of_paths(paths), contents=contents_of(paths)))
    Image.effect_noise((64, 64), 50).save(paths[3])
    scored = score_by_model(model, images_of(tmp_path / "parts"), progress=False)
    assert scored.scores.tolist() == [0, 1, 2, scored.model_scores[3], *range(4, 12)]
    assert scored.sample == ["out-of-sample"] * 3 + ["unknown"] + ["out-of-sample"] * 8


def test_a_part_of_the_training_folder_and_copies_of_it_are_known(images: TrainingImages, tmp_path: Path) -> None:
    images = moved_to(tmp_path / "parts", images, keep=True)
    model = make_model(report_of_paths(paths_of(images)))
    (tmp_path / "parts" / "003.png").unlink()
    shutil.copy(tmp_path / "parts" / "004.png", tmp_path / "parts" / "renamed.png")
    scored = score_by_model(model, images_of(tmp_path / "parts"), progress=False)
    assert scored.scores.tolist() == [0, 1, 2, *range(4, 12), 4]
    assert "Scores are the training's" in scored.notes[0]


def test_contents_are_of_the_whole_file_as_far_as_blocks_tell(tmp_path: Path) -> None:
    whole = bytes(range(256)) * 64
    files = {
        "same": whole, "copy": whole, "first": b"x" + whole[1:], "last": whole[:-1] + b"x", "longer": whole + b"x",
        "middle": whole[:8192] + b"x" + whole[8193:], "empty": b"",
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    found = contents_of([tmp_path / name for name in [*files, "gone"]])
    assert found[0] == found[1]
    assert len(set(found)) == 7
    assert found[-1] == ""


def test_new_images_are_out_of_sample_and_have_percentiles(images: TrainingImages) -> None:
    report = TrainingReport(["elsewhere/a.png", "elsewhere/b.png"], np.array([0.0, 1.0], dtype=np.float32))
    scored = score_by_model(make_model(report), images, progress=False)
    assert set(scored.sample) == {"out-of-sample"}
    assert scored.percentiles.tolist() == [50] * 12
    assert torch.isfinite(torch.from_numpy(scored.scores)).all()


def test_a_heat_map_lies_where_the_model_looked_after_a_resize_of_one_side(tmp_path: Path) -> None:
    """A white square at a quarter of the width of an image twice as wide as high."""
    pixels = np.full((80, 160, 3), 60, dtype=np.uint8)
    pixels[30:50, 50:70] = 255
    for number in range(3):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    model = make_model(reports=False)
    model.pre_processor = PreProcessor(Compose([Resize(40), CenterCrop(32)]))
    scored = score_by_model(model, images_of(tmp_path), progress=False)
    assert scored.maps is not None
    for values in scored.maps:
        assert values.shape == (32, 64)
        rows, columns = np.nonzero(values > 0.6)
        assert 15 <= rows.mean() <= 16.5
        assert 23 <= columns.mean() <= 24.5


def test_maps_beyond_what_two_bytes_hold_are_finite(images: TrainingImages) -> None:
    model = make_model(reports=False)

    def huge(batch: Tensor) -> InferenceBatch:
        maps = batch.mean(dim=1)
        return InferenceBatch(pred_score=maps.mean(dim=(1, 2)), anomaly_map=maps * 1e9)

    model.model.forward = huge
    scored = score_by_model(model, images, progress=False)
    assert scored.maps is not None
    assert np.isfinite(np.stack(scored.maps)).all()
