# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""A manifest comes back as it was written, and whatever is no manifest of this data set is refused by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from anomalib_cdd.data import MVTecNoisy
from anomalib_cdd.data.clean import Cleaned
from anomalib_cdd.data.manifest import read_manifest, write_manifest

HEADER = "image_path,is_noise\n"
NORMAL = "bottle/train/good/000.png,0\n"


def noisy(root: Path, **kwargs) -> MVTecNoisy:
    datamodule = MVTecNoisy(root=root, num_workers=0, val_split_mode="none", **kwargs)
    datamodule.setup()
    return datamodule


def test_round_trip(tmp_path):
    split = {"b/ä, x.png": True, "a/NA.png": False}
    write_manifest(tmp_path / "new folder" / "manifest.csv", split)
    assert read_manifest(tmp_path / "new folder" / "manifest.csv") == split
    lines = (tmp_path / "new folder" / "manifest.csv").read_text(encoding="utf-8").splitlines()
    assert lines == ["image_path,is_noise", "a/NA.png,0", '"b/ä, x.png",1']


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "manifest.csv"
    write_manifest(path, {"a.png": False})
    with pytest.raises(ValueError, match=r"the name of \\udc80\.png is not valid UTF-8.*rename it"):
        write_manifest(path, {"b.png": False, "\udc80.png": True})
    assert read_manifest(path) == {"a.png": False}
    assert [each.name for each in tmp_path.iterdir()] == ["manifest.csv"]


@pytest.mark.parametrize("overlap", [False, True])
def test_manifest_wins_over_ratio_and_seed(mvtec_root, tmp_path, overlap):
    drawn = noisy(mvtec_root, noise_ratio=0.5, noise_seed=4, max_normal=10, overlap=overlap)
    drawn.write_manifest(tmp_path / "manifest.csv")
    read = noisy(mvtec_root, manifest=str(tmp_path / "manifest.csv"), overlap=overlap)
    for subset in ("train_data", "test_data", "injected_data"):
        assert getattr(read, subset).samples.equals(getattr(drawn, subset).samples)


def test_manifest_lists_every_training_image_relative_and_sorted(mvtec_root, tmp_path):
    noisy(mvtec_root, noise_ratio=0.5).write_manifest(tmp_path / "manifest.csv")
    header, *rows = (tmp_path / "manifest.csv").read_text().splitlines()
    assert header == "image_path,is_noise"
    assert rows == sorted(rows)
    assert rows[-1] == "bottle/train/good/011.png,0"
    assert len(rows) == 18


def test_words_capitals_and_a_byte_order_mark_are_read(tmp_path):
    path = tmp_path / "manifest.csv"
    path.write_bytes(b"\xef\xbb\xbfimage_path,is_noise\r\na.png,True\r\nb.png,false\r\n")
    assert read_manifest(path) == {"a.png": True, "b.png": False}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "first line has to be 'image_path,is_noise', found ''"),
        (HEADER.encode(), "lists no image"),
        (b"path,is_noise\na.png,0\n", "first line has to be 'image_path,is_noise', found 'path,is_noise'"),
        (b"image_path\na.png\n", "found 'image_path'"),
        (HEADER.encode() + b"a.png,0,good\n", "row 2 has 3 values instead of 2"),
        (HEADER.encode() + b"a.png\n", "row 2 has 1 values"),
        (HEADER.encode() + b"a.png,maybe\n", "is_noise in row 2 has to be 0, 1, true or false, found 'maybe'"),
        (HEADER.encode() + b"a.png,0\na.png,1\n", "row 3 lists 'a.png' a second time"),
        (HEADER.encode() + b"a\0.png,0\n", "NUL bytes"),
        (b"\x89PNG\r\n\xff\xfe", "cannot be read as a CSV file"),
        (HEADER.encode() + b'"a.png,0\n', "cannot be read as a CSV file"),
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path, content, problem):
    path = tmp_path / "wrong.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"wrong\.csv") as caught:
        read_manifest(path)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_manifest_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.csv does not exist"):
        read_manifest(tmp_path / "no.csv")
    with pytest.raises(ValueError, match="cannot be read"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ("x/1.png,0\ny/2.png,1\n", "none of its 2 images is one of this data set"),
        (NORMAL + "bottle/train/good/777.png,0\n", "'bottle/train/good/777.png' is missing in"),
        (NORMAL + "bottle/ground_truth/spot/000_mask.png,0\n", "is no image of this data set"),
        (NORMAL + "bottle/test/good/000.png,1\n", "'bottle/test/good/000.png' is marked as noise but is a normal"),
        (NORMAL + "bottle/train/good/001.png,1\n", "'bottle/train/good/001.png' is marked as noise but is a normal"),
        (NORMAL + "bottle/test/good/000.png,0\n", "is marked as normal (is_noise 0) but is a test image"),
        (NORMAL + "bottle/test/spot/000.png,0\n", "is marked as normal (is_noise 0) but is a test image"),
        ("bottle/test/spot/000.png,1\n", "lists no normal training image"),
    ],
)
def test_what_does_not_fit_the_data_set_is_refused(mvtec_root, tmp_path, rows, problem):
    path = tmp_path / "wrong.csv"
    path.write_text(HEADER + rows)
    with pytest.raises(ValueError, match=r"wrong\.csv") as caught:
        noisy(mvtec_root, manifest=path)
    assert problem in str(caught.value)


def test_a_listed_image_that_is_gone_is_named(mvtec_root, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(mvtec_root, root)
    noisy(root, noise_ratio=0.5).write_manifest(tmp_path / "manifest.csv")
    (root / "bottle" / "train" / "good" / "003.png").unlink()
    with pytest.raises(ValueError, match=r"'bottle/train/good/003\.png' is missing"):
        noisy(root, manifest=tmp_path / "manifest.csv")


def test_manifest_and_max_normal_exclude_each_other():
    with pytest.raises(ValueError, match=r"max_normal=3 and manifest=m\.csv exclude each other"):
        MVTecNoisy(manifest="m.csv", max_normal=3)


def test_a_list_of_what_was_left_out_has_no_name_that_it_could_not_have(tmp_path):
    paths, left_out = ["/a/x.png", "/a/\udcff.png"], np.array([False, True])
    cleaned = Cleaned(paths, np.zeros(2, dtype=np.float32), left_out)
    with pytest.raises(ValueError, match=r"the name of \\udcff\.png is not valid UTF-8.*rename it"):
        cleaned.write(tmp_path / "left_out.csv", {path: path[3:] for path in paths})
    assert not list(tmp_path.iterdir())
