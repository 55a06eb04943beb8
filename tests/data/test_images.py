# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""What a datamodule gives a training: as anomalib where that is right, and an image that cannot be used is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.data import MVTecAD
from PIL import Image
from torchvision.transforms.v2 import Grayscale, RandomHorizontalFlip, Resize

from anomalib_cdd.data import MVTecNoisy

GREY = np.linspace(0, 255, 64 * 64).reshape(64, 64)


@pytest.fixture
def bottle(mvtec_root, tmp_path) -> Path:
    shutil.copytree(mvtec_root, tmp_path / "root")
    return tmp_path / "root" / "bottle"


def noisy(bottle: Path, **kwargs) -> MVTecNoisy:
    datamodule = MVTecNoisy(root=bottle.parent, noise_ratio=0, num_workers=0, val_split_mode="none", **kwargs)
    datamodule.setup()
    return datamodule


def test_ordinary_images_are_those_of_anomalib(bottle):
    plain = MVTecAD(root=bottle.parent)
    plain.setup()
    for mine, theirs in zip(noisy(bottle).test_data, plain.test_data, strict=True):
        for name in ("image", "gt_mask", "gt_label"):
            assert torch.equal(getattr(mine, name), getattr(theirs, name)), name
        assert (mine.image_path, mine.mask_path) == (theirs.image_path, theirs.mask_path)


def test_twelve_bits_fill_the_range_of_training_and_test_images(bottle):
    for path in (bottle / "train").rglob("*.png"):
        Image.fromarray((GREY * 16).astype(np.uint16)).save(path)
    Image.fromarray((GREY * 16).astype(np.uint16)).save(bottle / "test" / "spot" / "000.png")
    data = noisy(bottle)
    row = [Path(name).parts[-2:] for name in data.test_data.samples["image_path"]].index(("spot", "000.png"))
    for item in (data.train_data[0], data.test_data[row]):
        assert item.image.max() == pytest.approx(4080 / 4095)


def test_anomalib_alone_clips_sixteen_bits(bottle):
    # the reason for a reader of our own: should this fail, anomalib has learned it
    Image.fromarray((GREY * 257).astype(np.uint16)).save(bottle / "train" / "good" / "000.png")
    plain = MVTecAD(root=bottle.parent)
    plain.setup()
    assert plain.train_data[0].image.mean() > 0.99


def test_deep_images_are_augmented_with_their_mask(bottle):
    path = bottle / "test" / "spot" / "000.png"
    deep = np.asarray(Image.open(path).convert("L")).astype(np.uint16) * 257
    Image.fromarray(deep).save(path)
    row = [Path(name).parts[-2:] for name in noisy(bottle).test_data.samples["image_path"]].index(("spot", "000.png"))
    plain = noisy(bottle).test_data[row]
    flipped = noisy(bottle, augmentations=RandomHorizontalFlip(p=1)).test_data[row]
    assert torch.equal(flipped.image, plain.image.flip(-1))
    assert torch.equal(flipped.gt_mask, plain.gt_mask.flip(-1))
    assert plain.gt_mask.any()
    assert plain.gt_label.item() == 1


def test_grey_augmentations_leave_three_channels(bottle):
    data = noisy(bottle, augmentations=Grayscale())
    item = data.test_data[0]
    assert item.image.shape == (3, 64, 64)
    assert torch.equal(item.image[0], item.image[2])
    assert next(iter(data.train_dataloader())).image.shape[1:] == (3, 64, 64)


@pytest.mark.parametrize(
    ("content", "workers"),
    [(b"", 0), (b"no image", 0), ("half", 0), (b"", 1)],
    ids=["empty", "no image", "truncated", "in a worker process"],
)
def test_broken_image_is_named(bottle, content, workers):
    path = bottle / "train" / "good" / "004.png"
    path.write_bytes(path.read_bytes()[:3000] if content == "half" else content)
    data = noisy(bottle)
    data.num_workers = workers
    with pytest.raises(ValueError, match=r"cannot read the image .*train/good/004\.png"):
        list(data.train_dataloader())


def test_broken_mask_is_named(bottle):
    (bottle / "ground_truth" / "spot" / "004_mask.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"ground_truth/spot/004_mask\.png"):
        list(noisy(bottle).test_data)


def test_mask_of_another_size_is_named(bottle):
    # all of them, so that a batch could be stacked without complaint
    for path in (bottle / "ground_truth").rglob("*.png"):
        Image.open(path).resize((32, 32)).save(path)
    with pytest.raises(
        ValueError, match=r"mask .*000_mask\.png is \(32, 32\) wide and high, its image .* is \(64, 64\)"
    ):
        list(noisy(bottle).test_dataloader())


def test_missing_mask_is_explained(bottle):
    (bottle / "ground_truth" / "spot" / "004_mask.png").unlink()
    with pytest.raises(ValueError, match=r"images have no mask: .*test/spot/004\.png$"):
        noisy(bottle)


def test_another_file_type_is_explained(bottle):
    for path in (bottle / "test" / "spot").glob("*.png"):
        path.rename(path.with_suffix(".bmp"))
    with pytest.raises(ValueError, match="a file type that this data set takes"):
        noisy(bottle)


def test_hidden_images_are_left_out_of_any_layout(bottle, caplog):
    (bottle / "train" / "good" / "._000.png").write_bytes(b"left behind")
    data = noisy(bottle)
    assert len(data.train_data) == 12
    assert len(data.test_data) == 20
    assert "1 hidden files left out of 13 images" in caplog.text


def test_hidden_files_that_anomalib_takes_for_defects_are_named(bottle):
    hidden = bottle / "test" / "good" / ".ipynb_checkpoints" / "000.png"
    hidden.parent.mkdir()
    shutil.copy(bottle / "test" / "good" / "000.png", hidden)
    with pytest.raises(ValueError, match=r"Remove 1 hidden files .*\.ipynb_checkpoints/000\.png"):
        noisy(bottle)


@pytest.mark.parametrize("name", ["Prüfteile 部品", "/".join(["a" * 100] * 6)])
def test_a_layout_may_lie_anywhere(bottle, tmp_path, name):
    shutil.copytree(bottle.parent, tmp_path / name)
    data = noisy(tmp_path / name / "bottle", train_augmentations=Resize((32, 32)))
    assert Path(data.train_data.samples["image_path"][0]).is_relative_to(tmp_path / name)
    assert data.root == tmp_path / name
    assert next(iter(data.train_dataloader())).image.shape == (12, 3, 32, 32)
    data.write_manifest(tmp_path / "manifest.csv")
    assert (tmp_path / "manifest.csv").read_text().splitlines()[1] == "bottle/train/good/000.png,0"
