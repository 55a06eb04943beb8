# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Folders of one's own: which files are images, whose a mask is, and what is said of a folder that does not fit."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from anomalib_cdd.data import FolderNoisy, PredictImages
from anomalib_cdd.data.folder import pair_masks
from anomalib_cdd.training.image_files import image_files


@pytest.fixture
def parts(folder_root: Path, tmp_path: Path) -> Path:
    """12 good images, 14 bad ones with masks of the same names."""
    shutil.copytree(folder_root, tmp_path / "parts")
    return tmp_path / "parts"


def folder(root: Path, **options: Any) -> FolderNoisy:
    defaults = {"name": "parts", "root": root, "normal_dir": "good", "noise_ratio": 0, "num_workers": 0}
    data = FolderNoisy(**{**defaults, "val_split_mode": "none", **options})
    data.setup()
    return data


def with_masks(root: Path, **options: Any) -> FolderNoisy:
    return folder(root, **{"normal_test_dir": "good_test", "abnormal_dir": "defect", "mask_dir": "mask", **options})


def pairs(data: FolderNoisy) -> dict[str, str]:
    samples = data.test_data.samples
    bad = samples[samples["label_index"] == 1]
    return {Path(i).name: Path(m).name for i, m in zip(bad["image_path"], bad["mask_path"], strict=True)}


def keep(root: Path, subset: str, names: dict[str, str]) -> None:
    """Keep some files, under other names."""
    kept = {old: (root / subset / old).read_bytes() for old in names}
    shutil.rmtree(root / subset)
    for old, new in names.items():
        path = root / subset / new
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(kept[old])


# --- files


def test_what_is_left_behind_is_no_image(parts: Path, caplog: pytest.LogCaptureFixture) -> None:
    (parts / "good" / "._1.png").write_bytes(b"left behind")
    (parts / "good" / "Thumbs.db").write_bytes(b"left behind")
    (parts / "good" / ".ipynb_checkpoints").mkdir()
    shutil.copy(parts / "good" / "000.png", parts / "good" / ".ipynb_checkpoints" / "000-checkpoint.png")
    data = folder(parts, test_split_mode="none")
    assert len(data.train_data) == 12
    (line,) = caplog.messages
    assert "3 files left out, 2 of them hidden and 1 no images by their names" in line
    caplog.clear()
    assert len(PredictImages(parts / "good")) == 12
    assert len(caplog.messages) == 1


def test_links_to_folders_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for folder in ("parts", "more"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / folder / f"{folder}.png")
    (tmp_path / "parts" / "linked").symlink_to(tmp_path / "more", target_is_directory=True)
    assert [path.name for path in image_files(tmp_path / "parts")] == ["parts.png"]
    assert f"links to folders are not followed, such as {tmp_path / 'parts' / 'linked'}" in caplog.text


def test_a_hidden_folder_above_is_not_the_images_own(parts: Path, tmp_path: Path) -> None:
    shutil.copytree(parts, tmp_path / ".cache" / "parts")
    assert len(folder(tmp_path / ".cache" / "parts", test_split_mode="none").train_data) == 12
    assert len(PredictImages(tmp_path / ".cache" / "parts" / "good")) == 12


@pytest.mark.parametrize("name", ["Prüfteile 部品", "/".join(["long" * 30] * 5)])
def test_any_path(parts: Path, tmp_path: Path, name: str) -> None:
    home = tmp_path / name
    home.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(parts, home)
    (home / "good" / "000.png").rename(home / "good" / "Größe 1.png")
    data = with_masks(home, noise_ratio=0.25)
    assert sum(len(batch.image_path) for batch in data.train_dataloader()) == 12 + 3
    data.write_manifest(tmp_path / "manifest.csv")
    assert "good/Größe 1.png,0" in (tmp_path / "manifest.csv").read_text(encoding="utf-8")
    assert len(with_masks(home, manifest=tmp_path / "manifest.csv").train_data) == 15
    assert PredictImages(home / "good" / "Größe 1.png")[0].image.shape == (3, 64, 64)


def test_endings_are_those_asked_for(parts: Path) -> None:
    shutil.copy(parts / "good" / "000.png", parts / "good" / "012.BMP")
    assert len(folder(parts, test_split_mode="none", extensions=(".bmp",)).train_data) == 1
    with pytest.raises(ValueError, match="extensions have to start with a dot, found 'bmp'"):
        folder(parts, extensions=("bmp",))


def test_a_folder_that_does_not_fit_is_named(parts: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*parts/nowhere"):
        folder(parts, normal_dir="nowhere")
    (parts / "empty").mkdir()
    with pytest.raises(ValueError, match=r"there is no image in .*parts/empty"):
        folder(parts, normal_dir="empty")
    with pytest.raises(ValueError, match=r"there is no image in .*parts/empty"):
        PredictImages(parts / "empty")
    with pytest.raises(FileNotFoundError, match=r"there is no file or folder .*parts/nowhere"):
        PredictImages(parts / "nowhere")


def test_a_link_to_nowhere_is_named(parts: Path) -> None:
    (parts / "good" / "999.png").symlink_to(parts / "gone.png")
    with pytest.raises(FileNotFoundError, match=r"good/999\.png is a link to nowhere"):
        folder(parts)


def test_an_empty_abnormal_dir(parts: Path, caplog: pytest.LogCaptureFixture) -> None:
    (parts / "none").mkdir()
    data = with_masks(parts, abnormal_dir="none")
    assert not data.test_data.has_anomalous
    assert any("There is no image in" in line and "none" in line for line in caplog.messages)
    with pytest.raises(ValueError, match=r"noise_ratio=0\.1, but the test set has no anomalous image"):
        with_masks(parts, abnormal_dir="none", noise_ratio=0.1)


def test_the_only_bad_image_is_injected(parts: Path, caplog: pytest.LogCaptureFixture) -> None:
    keep(parts, "defect", {"000.png": "000.png"})
    keep(parts, "mask", {"000.png": "000.png"})
    data = with_masks(parts, noise_ratio=0.1)
    assert len(data.injected_data) == 1
    assert not data.test_data.has_anomalous
    assert any("the test set has none left to measure on" in line for line in caplog.messages)
    assert len(list(data.test_dataloader())) == 1


# --- masks

NUMBERS = {"000.png": "1.png", "001.png": "2.png", "002.png": "10.png"}


@pytest.mark.parametrize(
    "masks",
    [
        ("001.png", "002.png", "010.png"),
        ("1.png", "2.png", "10.png"),
        ("1_mask.png", "2_mask.png", "10_mask.png"),
        ("mask-1.png", "mask-2.png", "mask-10.png"),
        ("defect_01.png", "defect_02.png", "defect_10.png"),
        ("1.mask.png", "02.png", "10.png"),
    ],
)
def test_masks_go_with_images_by_name_or_number(parts: Path, masks: tuple[str, ...]) -> None:
    keep(parts, "defect", NUMBERS)
    keep(parts, "mask", dict(zip(NUMBERS, masks, strict=True)))
    data = with_masks(parts)
    assert pairs(data) == dict(zip(NUMBERS.values(), masks, strict=True))
    assert data.task == "segmentation"
    assert all(item.gt_mask.any() for item in data.test_data if item.gt_label == 1)


def test_the_closest_name_wins(parts: Path) -> None:
    keep(parts, "defect", {"000.png": "1.png", "001.png": "2_1.png"})
    keep(parts, "mask", {"000.png": "1_mask.png", "001.png": "2_1_mask.png"})
    assert pairs(with_masks(parts)) == {"1.png": "1_mask.png", "2_1.png": "2_1_mask.png"}


def test_folders_of_kinds_keep_their_masks_apart(parts: Path) -> None:
    names = {"000.png": "spot/0.png", "001.png": "scratch/0.png"}
    keep(parts, "defect", names)
    keep(parts, "mask", names)
    for options in ({}, {"abnormal_dir": ["defect/spot", "defect/scratch"], "mask_dir": ["mask/spot", "mask/scratch"]}):
        samples = with_masks(parts, **options).test_data.samples
        bad = samples[samples["label_index"] == 1]
        for image, mask in zip(bad["image_path"], bad["mask_path"], strict=True):
            assert Path(image).parent.name == Path(mask).parent.name


def test_an_image_without_a_mask_is_named_and_the_pairs_shown(parts: Path) -> None:
    keep(parts, "defect", NUMBERS)
    keep(parts, "mask", {"000.png": "1.png", "002.png": "10.png"})
    message = (
        r"no mask: .*defect/2\.png\. Masks left: none\. Pairs by name or number: 1\.png - 1\.png, 10\.png - 10\.png"
    )
    with pytest.raises(ValueError, match=message):
        with_masks(parts)


def test_names_that_tell_nothing_are_shown(parts: Path) -> None:
    keep(parts, "defect", {"000.png": "a.png", "001.png": "b.png"})
    keep(parts, "mask", {"000.png": "x.png", "001.png": "y.png"})
    with pytest.raises(ValueError, match=r"no mask: .*a\.png, .*b\.png\. Masks left: x\.png, y\.png\. .* none"):
        with_masks(parts)


def test_a_mask_is_one_image_s(parts: Path) -> None:
    keep(parts, "defect", {"000.png": "1.png", "001.png": "01.png"})
    keep(parts, "mask", {"000.png": "001.png"})
    with pytest.raises(ValueError, match=r"share one: .*01\.png, .*1\.png"):
        with_masks(parts)


def test_masks_without_an_image_are_said(parts: Path, caplog: pytest.LogCaptureFixture) -> None:
    keep(parts, "defect", NUMBERS)
    assert len(pairs(with_masks(parts, normal_test_dir=None, mask_dir="good"))) == 3  # 001, 002, 010
    assert any("9 masks belong to no image" in line for line in caplog.messages)


@pytest.mark.parametrize("options", [{"abnormal_dir": "defect"}, {"normal_test_dir": "good_test"}])
def test_folders_within_each_other_are_refused(parts: Path, options: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"are in the training set and in the test set, such as (defect|good_test)/"):
        folder(parts, normal_dir=".", **options)


def test_an_image_is_not_tested_on_as_normal_and_as_anomalous(parts: Path) -> None:
    with pytest.raises(ValueError, match=r"^14 images are in abnormal_dir and in normal_test_dir, such as .*defect/"):
        folder(parts, abnormal_dir="defect", normal_test_dir=["good_test", "defect"])


def test_folders_of_one_kind_within_each_other_list_an_image_once(parts: Path) -> None:
    (parts / "good" / "again").mkdir()
    shutil.move(parts / "good" / "000.png", parts / "good" / "again" / "000.png")
    assert len(folder(parts, normal_dir=["good", "good/again"], test_split_mode="none").train_data) == 12


@pytest.mark.parametrize("mode", ["from_test", "same_as_test"])
def test_a_fit_without_test_images_has_no_validation(parts: Path, mode: str) -> None:
    data = folder(parts, test_split_mode="none", val_split_mode=mode)
    assert not list(data.val_dataloader())


def test_thousands_of_masks_are_paired_in_seconds(tmp_path: Path) -> None:
    images = {tmp_path / "bad": [tmp_path / "bad" / f"{n}.png" for n in range(4000)]}
    masks = {tmp_path / "mask": [tmp_path / "mask" / f"part_{n}_mask.png" for n in range(4000)]}
    start = time.perf_counter()
    found = pair_masks(images, masks)
    assert time.perf_counter() - start < 5  # pair by pair it takes minutes
    assert all(mask.name == f"part_{image.stem}_mask.png" for image, mask in found.items())
