# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""An exclude list takes images out of the training set, and nothing else changes."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from anomalib_cdd import FolderNoisy, MVTecNoisy
from anomalib_cdd.data.manifest import read_exclude_list


def noisy(root: Path, **options: Any) -> MVTecNoisy:
    defaults = {"noise_ratio": 0.25, "val_split_mode": "none", "num_workers": 0, "train_batch_size": 4}
    data = MVTecNoisy(**{**defaults, "root": root, "category": "bottle", **options})
    data.setup()
    return data


def names(data: Any, root: Path) -> list[str]:
    return [Path(path).relative_to(root / "bottle").as_posix() for path in data.samples["image_path"]]


def test_good_and_injected_images_leave_the_training_set_alone(mvtec_root: Path, tmp_path: Path) -> None:
    whole = noisy(mvtec_root)
    injected = names(whole.injected_data, mvtec_root)
    base = "bottle/"
    unwanted = [base + "train/good/002.png", base + injected[0]]
    listed = tmp_path / "exclude.csv"
    pd.DataFrame({"image_path": unwanted}).to_csv(listed, index=False)
    data = noisy(mvtec_root, exclude=listed)
    gone = {name.removeprefix(base) for name in unwanted}
    assert names(data.train_data, mvtec_root) == [n for n in names(whole.train_data, mvtec_root) if n not in gone]
    # what is measured on stays what it was, with overlap as well as without
    overlap = noisy(mvtec_root, exclude=listed, overlap=True)
    assert names(data.injected_data, mvtec_root) == names(overlap.injected_data, mvtec_root) == injected
    assert names(data.test_data, mvtec_root) == names(whole.test_data, mvtec_root)
    assert sorted(names(overlap.test_data, mvtec_root)) == sorted([*names(data.test_data, mvtec_root), *injected])
    data.write_manifest(tmp_path / "manifest.csv")
    assert set(pd.read_csv(tmp_path / "manifest.csv")["image_path"]).isdisjoint(unwanted)
    again = noisy(mvtec_root, manifest=tmp_path / "manifest.csv")
    assert again.train_data.samples["image_path"].tolist() == data.train_data.samples["image_path"].tolist()


def test_a_folder_takes_the_list_of_the_audit(folder_root: Path, tmp_path: Path) -> None:
    listed = tmp_path / "exclude.csv"
    listed.write_text("rank,image_path\n1,good/003.png\n", encoding="utf-8")
    data = FolderNoisy(
        name="parts", root=folder_root, normal_dir="good", noise_ratio=0, test_split_mode="none",
        val_split_mode="none", exclude=listed,
    )  # fmt: skip
    data.setup()
    assert len(data.train_data) == 11
    assert not data.train_data.samples["image_path"].str.endswith("003.png").any()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "exclude list .* does not exist"),
        (b"\0\1", "exclude list .*NUL bytes"),
        (b"name\ntrain/good/001.png\n", "no column 'image_path': 'name'"),
        (b"image_path,x\na\n", "row 2 has 1 values instead of 2"),
        (b"image_path\nnowhere.png\nbottle/train/good/001.png\n", r"1 of its 2 images are not of this.*'nowhere\.png'"),
    ],
)
def test_a_bad_list_is_named(mvtec_root: Path, tmp_path: Path, content: bytes | None, message: str) -> None:
    listed = tmp_path / "exclude.csv"
    if content is not None:
        listed.write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        noisy(mvtec_root, exclude=listed)


def test_a_review_of_images_that_are_gone_warns(mvtec_root: Path, tmp_path: Path, caplog: Any) -> None:
    listed = tmp_path / "review.JSON"
    images = {"bottle/train/good/001.png": "bad", "bottle/train/good/gone.png": "bad"}
    listed.write_text(json.dumps({"images": images}), encoding="utf-8-sig")
    assert len(noisy(mvtec_root, exclude=listed).train_data) == len(noisy(mvtec_root).train_data) - 1
    assert "1 of its 2 images are not of this data set" in caplog.text
    assert "gone.png" in caplog.text


@pytest.mark.parametrize("audited", ["bottle/train/good", "bottle", "."])
def test_a_review_fits_wherever_the_folder_lies_that_was_audited(
    mvtec_root: Path, tmp_path: Path, audited: str
) -> None:
    bad = Path("bottle/train/good/001.png").relative_to(audited).as_posix()
    listed = tmp_path / "review.json"
    listed.write_text(json.dumps({"root": str(mvtec_root / audited), "images": {bad: "bad"}}), encoding="utf-8")
    left = [Path(path).name for path in noisy(mvtec_root, exclude=listed).train_data.samples["image_path"]]
    assert len(left) == len(noisy(mvtec_root).train_data) - 1
    assert "001.png" not in left


def test_what_a_review_says_of_images_elsewhere_is_of_no_image_of_the_same_name(
    mvtec_root: Path, tmp_path: Path
) -> None:
    listed = tmp_path / "review.json"
    images = {"bottle/train/good/001.png": "bad", "train/good/002.png": "bad", "bottle/train/good/003.png": "bad"}
    images |= {"train/good/003.png": "good"}
    listed.write_text(json.dumps({"root": str(mvtec_root), "images": images}), encoding="utf-8")
    assert read_exclude_list(listed, mvtec_root / "bottle") == {"train/good/001.png", "train/good/003.png"}
    assert read_exclude_list(listed, mvtec_root / "elsewhere") == set()
    # a folder that was moved, or audited under another system
    for root in ("/gone", "C:\\parts"):
        listed.write_text(json.dumps({"root": root, "images": {"001.png": "bad"}}), encoding="utf-8")
        assert read_exclude_list(listed, mvtec_root) == {"001.png"}


def test_a_review_of_other_images_is_refused(mvtec_root: Path, tmp_path: Path) -> None:
    listed = tmp_path / "review.json"
    review = {"root": "/elsewhere", "images": {"001.png": "bad", "002.png": "good"}}
    listed.write_text(json.dumps(review), encoding="utf-8")
    with pytest.raises(ValueError, match="1 of its 1 images are not of this data set"):
        noisy(mvtec_root, exclude=listed)


def test_a_list_of_everything_is_refused(mvtec_root: Path, tmp_path: Path) -> None:
    listed = tmp_path / "exclude.csv"
    names_ = [f"bottle/train/good/{i:03}.png" for i in range(12)]
    pd.DataFrame({"image_path": names_}).to_csv(listed, index=False)
    with pytest.raises(ValueError, match="leaves no normal training image"):
        noisy(mvtec_root, exclude=listed)


def test_the_review_of_the_audit_page_is_taken_too(folder_root: Path, tmp_path: Path) -> None:
    path = tmp_path / "review.json"
    path.write_text('{"images": {"good/000.png": "bad", "good/001.png": "good", "good/002.png": "bad"}}')
    assert read_exclude_list(path) == {"good/000.png", "good/002.png"}
    path.write_text('{"root": "/parts", "saved": "2026-11-28T12:00:00Z", "images": {"good/000.png": "bad"}}')
    assert read_exclude_list(path) == {"good/000.png"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"root": 1, "images": {}}', "its root is 1, it has to be a text"),
        ("no JSON", "cannot be read as JSON"),
        ("[]", 'has no "images"'),
        ('{"images": ["a.png"]}', 'has no "images"'),
        ('{"images": {"a.png": "maybe"}}', "'a.png' is 'maybe', it has to be one of good, bad"),
    ],
)
def test_what_is_no_review_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "review.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_exclude_list(path)
    assert str(path) in str(error.value)


def test_a_review_whose_images_have_all_been_deleted_warns(mvtec_root: Path, tmp_path: Path, caplog: Any) -> None:
    listed = tmp_path / "review.json"
    for root in (mvtec_root, mvtec_root / "bottle" / "train" / "good"):
        listed.write_text(json.dumps({"root": str(root), "images": {"gone.png": "bad", "too.png": "bad"}}))
        assert len(noisy(mvtec_root, exclude=listed).train_data) == len(noisy(mvtec_root).train_data)
        assert "2 of its 2 images are not of this data set" in caplog.text
        caplog.clear()
    listed.write_text(json.dumps({"root": str(tmp_path / "others"), "images": {"gone.png": "bad"}}))
    with pytest.raises(ValueError, match="1 of its 1 images are not of this data set"):
        noisy(mvtec_root, exclude=listed)
