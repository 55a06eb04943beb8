# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""What asking a second image does to a defect in the training set; the life cycle is in ``test_memory_banks.py``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.data import PredictDataset
from anomalib.engine import Engine
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import seed_everything
from PIL import Image
from samples import make_sample, save
from sklearn.metrics import roc_auc_score
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anomalib_cdd import CrossPatch, FolderNoisy, MVTecNoisy
from anomalib_cdd.thresholds.calibration import keeps_patches

Engines = Callable[..., Engine]


def make_model(**options: Any) -> CrossPatch:
    seed_everything(0, verbose=False)
    transform = Compose([Resize((64, 64), antialias=True), Normalize(mean=[0.5] * 3, std=[0.5] * 3)])
    defaults = {"backbone": "test_resnet", "pre_trained": False, "visualizer": False, "audit": False}
    return CrossPatch(**{**defaults, "pre_processor": PreProcessor(transform), **options})


@pytest.fixture
def make_engine(tmp_path: Path) -> Engines:
    def make(**options: Any) -> Engine:
        defaults = {"logger": False, "accelerator": "cpu", "devices": 1, "enable_progress_bar": False}
        defaults |= {"enable_model_summary": False, "default_root_dir": tmp_path / "results"}
        return Engine(**{**defaults, **options})

    return make


@pytest.fixture(scope="session")
def make_data(mvtec_root: Path) -> Callable[..., MVTecNoisy]:
    def make(**options: Any) -> MVTecNoisy:
        defaults = {"root": mvtec_root, "category": "bottle", "noise_ratio": 0.25, "val_split_mode": "none"}
        return MVTecNoisy(**{**defaults, "train_batch_size": 4, "eval_batch_size": 4, "num_workers": 0, **options})

    return make


def raw_scores(model: CrossPatch, paths: list[str]) -> np.ndarray:
    dataset = PredictDataset(Path(paths[0]).parent)
    items = {str(item.image_path): item.image for item in (dataset[i] for i in range(len(dataset)))}
    images = torch.cat([model.pre_processor.transform(items[path][None]) for path in paths])
    with torch.no_grad():
        return model.eval().model(images).pred_score.numpy()


def test_max_patches_bounds_the_bank_evenly(make_data: Callable[..., MVTecNoisy], make_engine: Engines) -> None:
    sizes = {}
    for limit in (None, 45, 7):
        model = make_model(coreset_sampling_ratio=1, max_patches=limit)
        make_engine().fit(model, datamodule=make_data())
        sizes[limit] = tuple(model.model.memory_bank.shape[:2])
    assert sizes == {None: (15, 64), 45: (15, 3), 7: (7, 1)}


def test_the_bank_has_the_means_of_what_each_images_coreset_stands_for() -> None:
    model = make_model(coreset_sampling_ratio=0.5)
    model.image_size = (64, 64)
    # four patches of each image, two and two nearly alike
    first = torch.tensor([[0.0, 0.0], [0.0, 1.0], [8.0, 0.0], [8.0, 1.0]])
    model.fill([first.half(), 20 - first.half()], (2, 2))
    means = torch.tensor([[0.0, 0.5], [8.0, 0.5]])
    assert torch.equal(model.model.memory_bank.sort(dim=1).values, torch.stack([means, (20 - means).flip(0)]))


def test_a_fit_of_one_part_alone_does_not_keep_the_scale_of_an_earlier_one() -> None:
    model = make_model()
    model.model.scale.fill_(7.0)
    assert model.judge([torch.zeros(4, 2)] * 2, torch.zeros(2, 2, dtype=torch.bool), (2, 2)) is None
    assert float(model.model.scale) == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coreset_sampling_ratio": 0}, "coreset_sampling_ratio has to be above 0 and at most 1, found 0"),
        ({"agreeing_images": 0}, "agreeing_images has to be at least 1, found 0"),
        ({"max_patches": 1}, "max_patches has to be at least 2"),
    ],
)
def test_an_option_out_of_range_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(**options)


def test_a_training_image_is_mirrored_for_thresholds_where_it_would_find_itself_alone() -> None:
    assert keeps_patches(make_model(agreeing_images=1))
    assert not keeps_patches(make_model(agreeing_images=2))


def test_a_model_without_a_bank_says_so() -> None:
    with pytest.raises(RuntimeError, match="no memory bank"):
        make_model().eval().model(torch.zeros(1, 3, 64, 64))


def folder_with_defect(folder: Path, copies: int) -> FolderNoisy:
    """20 good images and one with a spot, photographed ``copies`` times with a little noise of the camera."""
    for number in range(20):
        save(make_sample(number).image, folder / "good" / f"{number:02}.png")
    pixels = np.asarray(make_sample(200, "spot").image).astype(float)
    for number in range(copies):
        noisy = pixels + np.random.default_rng(number).normal(0, 1, pixels.shape)
        save(Image.fromarray(noisy.clip(0, 255).astype(np.uint8)), folder / "good" / f"defect_{number}.png")
    return FolderNoisy(
        name="spots",
        root=folder,
        normal_dir="good",
        noise_ratio=0,
        test_split_mode="none",
        val_split_mode="none",
        train_batch_size=4,
        num_workers=0,
    )


@pytest.mark.parametrize("copies", [1, 5])
def test_a_defect_in_the_training_set_is_seen_however_often_it_was_photographed(
    copies: int, make_engine: Engines, tmp_path: Path
) -> None:
    data = folder_with_defect(tmp_path / "data", copies)
    aurocs = {}
    for k in (1, 2):
        model = make_model(
            backbone="efficientnet_lite0_pypi", pre_trained=True, agreeing_images=k, coreset_sampling_ratio=1
        )
        make_engine().fit(model, datamodule=data)
        paths = [str(path) for path in data.train_data.samples["image_path"]]
        is_defect = [Path(path).name.startswith("defect") for path in paths]
        aurocs[k] = roc_auc_score(is_defect, raw_scores(model, paths))
        report = model.training_report()
        reported = dict(zip(report.image_paths, report.scores, strict=True))
        assert roc_auc_score(is_defect, [reported[path] for path in paths]) == 1.0
    # whoever asks the nearest image alone finds the defect's own photograph
    assert aurocs[1] < aurocs[2] == 1.0
