# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""The list as COCO, Label Studio and FiftyOne read it: by these packages themselves, where they are installed."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalib_cdd.audit.annotations import AnnotatedImage, outline, write_annotations
from anomalib_cdd.audit.results import _pixel_threshold

# a square of 8 x 8 in a map of 32 x 32 of an image of 320 x 160: x from 160 to 240, y from 40 to 80
MAP = np.zeros((32, 32), dtype=np.float16)
MAP[8:16, 16:24] = 0.75


def make_images(folder: Path) -> list[AnnotatedImage]:
    Image.new("RGB", (320, 160)).save(folder / "bad & näher.png")
    Image.new("RGB", (64, 48)).save(folder / "good.png")
    return [
        AnnotatedImage(
            folder / "bad & näher.png", "bad & näher.png", 320, 160, 7.5, 1.0, "bad", outline(MAP, threshold=0.4)
        ),
        AnnotatedImage(folder / "good.png", "good.png", 64, 48, 0.25, 0.5),
    ]


def test_an_outline_is_where_the_map_is_above_the_threshold() -> None:
    [region] = outline(MAP, threshold=0.4)
    left, top, width, height = region.box()
    assert [left, top, width, height] == pytest.approx([0.5, 0.25, 0.25, 0.25], abs=0.02)
    assert region.score == 0.75
    assert outline(MAP, threshold=0.8) == []
    assert outline(np.zeros((1, 1)), threshold=0.5) == []
    # two regions, the higher one first; a map that is wider than high
    two = np.zeros((16, 48), dtype=np.float32)
    two[2:8, 4:12], two[8:14, 30:40] = 1, 2
    first, second = outline(two, threshold=0.5)
    assert (first.score, second.score) == (2, 1)
    assert first.box() == pytest.approx((30 / 48, 0.5, 10 / 48, 6 / 16), abs=0.04)
    # all of it
    assert outline(np.ones((8, 8)), threshold=0.5)[0].box() == pytest.approx((0, 0, 1, 1), abs=0.01)


def test_coco(tmp_path: Path) -> None:
    write_annotations(tmp_path, make_images(tmp_path), "parts")
    content = json.loads((tmp_path / "coco.json").read_text(encoding="utf-8"))
    assert [image["score"] for image in content["images"]] == [7.5, 0.25]
    assert [image["review"] for image in content["images"]] == ["bad", ""]
    [annotation] = content["annotations"]
    assert annotation["bbox"] == pytest.approx([160, 40, 80, 40], abs=6)
    assert annotation["area"] == pytest.approx(80 * 40, rel=0.2)
    corners = np.array(annotation["segmentation"]).reshape(-1, 2)
    assert [*corners.min(axis=0), *corners.max(axis=0)] == pytest.approx([160, 40, 240, 80], abs=6)
    coco = pytest.importorskip("pycocotools.coco", reason="pip install pycocotools").COCO(tmp_path / "coco.json")
    [image] = coco.loadImgs(1)
    assert image["file_name"] == "bad & näher.png"
    [annotation] = coco.loadAnns(coco.getAnnIds(imgIds=1))
    assert annotation["score"] == 0.75
    mask = coco.annToMask(annotation)
    assert mask.shape == (160, 320)
    assert mask[45:75, 170:230].all()
    assert not mask[:, :150].any()
    assert mask.sum() == pytest.approx(80 * 40, rel=0.1)
    assert annotation["area"] == pytest.approx(mask.sum(), rel=0.1)
    assert coco.getAnnIds(imgIds=2) == []


def test_label_studio(tmp_path: Path) -> None:
    write_annotations(tmp_path, make_images(tmp_path), "parts")
    tasks = json.loads((tmp_path / "label_studio.json").read_text(encoding="utf-8"))
    assert tasks[0]["data"]["image"] == "/data/local-files/?d=parts/bad%20%26%20n%C3%A4her.png"
    assert tasks[0]["data"]["score"] == 7.5
    [prediction] = tasks[0]["predictions"]
    [region] = prediction["result"]
    corners = np.array(region["value"]["points"])
    assert corners.min(axis=0) == pytest.approx([50, 25], abs=2)
    assert corners.max(axis=0) == pytest.approx([75, 50], abs=2)
    assert tasks[1]["predictions"][0]["result"] == []
    sdk = pytest.importorskip("label_studio_sdk.label_interface", reason="pip install label-studio-sdk")
    interface = sdk.LabelInterface((tmp_path / "label_studio.xml").read_text(encoding="utf-8"))
    for task in tasks:
        for prediction in task["predictions"]:
            assert interface.validate_prediction(prediction, return_errors=True) == []


def test_fiftyone(tmp_path: Path) -> None:
    write_annotations(tmp_path, make_images(tmp_path), "parts")
    labels = json.loads((tmp_path / "fiftyone" / "labels.json").read_text(encoding="utf-8"))
    files = json.loads((tmp_path / "fiftyone" / "data.json").read_text(encoding="utf-8"))
    assert labels["classes"] == ["good", "bad", "unseen"]
    assert labels["labels"].keys() == files.keys()
    assert [Path(path).name for path in files.values()] == ["bad & näher.png", "good.png"]
    assert all(Path(path).is_file() for path in files.values())
    fouc = pytest.importorskip("fiftyone.utils.coco", reason="pip install fiftyone")
    foud = pytest.importorskip("fiftyone.utils.data", reason="pip install fiftyone")
    # the importers by themselves: a data set of FiftyOne's needs its database
    folder = str(tmp_path / "fiftyone")
    with foud.FiftyOneImageClassificationDatasetImporter(folder, data_path="data.json") as importer:
        samples = {Path(path).name: label for path, _, label in importer}
    assert {name: (label.label, label.confidence) for name, label in samples.items()} == {
        "bad & näher.png": ("bad", 7.5),
        "good.png": ("unseen", 0.25),
    }
    with fouc.COCODetectionDatasetImporter(
        data_path=str(tmp_path), labels_path=str(tmp_path / "coco.json"), label_types=["segmentations"]
    ) as importer:
        regions = {Path(path).name: label for path, _, label in importer}
    [detection] = regions["bad & näher.png"].detections
    assert (detection.label, detection.confidence) == ("anomaly", 0.75)
    assert detection.bounding_box == pytest.approx([0.5, 0.25, 0.25, 0.25], abs=0.03)


def test_a_hundredth_of_the_pixels_of_good_images_is_outlined_wherever_it_lies() -> None:
    maps = [np.random.default_rng(seed).random((64, 64)).astype(np.float32) for seed in range(50)]
    for each in maps:
        each[24:40, 54:64] += 10  # every image is like that, off the diagonal: 4 % of the pixels
    threshold = _pixel_threshold(maps, np.ones(50, dtype=np.float32))
    assert 0.002 < np.mean([each > threshold for each in maps]) < 0.02
