# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Grey values come out as they are, and an image that cannot be used is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.data import MVTecAD
from PIL import Image
from torchvision.transforms.v2 import RandomHorizontalFlip

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
        assert torch.equal(mine.image, theirs.image)
        assert torch.equal(mine.gt_mask, theirs.gt_mask)


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(GREY.astype(np.uint8)),
        Image.fromarray(GREY.astype(np.uint8)).convert("P"),
        Image.fromarray(GREY.astype(np.uint8)).convert("LA"),
        Image.fromarray((GREY * 257).astype(np.uint16)),
        Image.fromarray((GREY * 257).astype(np.int32)),
    ],
    ids=["grey", "palette", "grey and alpha", "sixteen bits", "sixteen bits in 32"],
)
def test_grey_images_keep_their_scale(bottle, image):
    image.save(bottle / "train" / "good" / "000.png", format="TIFF" if image.mode == "I" else "PNG")
    item = noisy(bottle).train_data[0]
    assert item.image.shape == (3, 64, 64)
    assert item.image.dtype == torch.float32
    expected = torch.from_numpy(GREY / 255).float().expand(3, -1, -1)
    torch.testing.assert_close(item.image.as_subclass(torch.Tensor), expected, atol=1 / 255, rtol=0)


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


@pytest.mark.parametrize("values", [np.full((64, 64), 0.5, np.float32), np.full((64, 64), 70_000, np.int32)])
def test_grey_values_of_unknown_scale_are_refused(bottle, values):
    Image.fromarray(values).save(bottle / "train" / "good" / "000.png", format="TIFF")
    with pytest.raises(ValueError, match=r"train/good/000\.png has .* save it with 8 or 16 bits"):
        noisy(bottle).train_data[0]


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
    with pytest.raises(ValueError, match="Does every anomalous test image have its ground truth mask"):
        noisy(bottle)
