# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Small generated data sets in the layouts that anomalib reads: the same images in every run, nothing is downloaded.

Each has 12 normal training images, 6 normal test images and 14 anomalous ones (8 scratches, 6 spots) with masks.
They live as long as the session: copy one before changing it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from samples import make_sample, make_tree, save
from signal_stack import kept_signal_stack
from traces import kept_traces

# the same cases in every run
settings.register_profile("here", max_examples=50, deadline=None, derandomize=True, database=None)
settings.load_profile("here")


@pytest.fixture(autouse=True, scope="module")
def _log_levels() -> Iterator[None]:
    """The grid and the demo silence loggers of the whole process: a test after them would see nothing."""
    loggers = [logging.getLogger(name) for name in ("anomalib", "anomalib_cdd", "lightning.pytorch")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture(autouse=True, scope="module")
def _traces() -> Iterator[None]:
    """Exports of one model wait for one trace."""
    with kept_traces():
        yield


@pytest.fixture(autouse=True)
def _signal_stack() -> Iterator[None]:
    """A test that runs OpenVINO twice at once would end the tests after it; see there."""
    with kept_signal_stack():
        yield


@pytest.fixture(scope="session")
def mvtec_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of an MVTec AD layout with the one category ``bottle``, the default of anomalib's datamodule."""
    root = tmp_path_factory.mktemp("MVTecAD")
    make_tree(root / "bottle")
    return root


@pytest.fixture(scope="session")
def mpdd_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of an MPDD layout with the one category ``bracket_black``."""
    root = tmp_path_factory.mktemp("MPDD")
    make_tree(root / "bracket_black")
    return root


@pytest.fixture(scope="session")
def btech_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of a BTech layout with the one category ``01``: normal is called ``ok``, masks have their image's name."""
    root = tmp_path_factory.mktemp("BTech")
    make_tree(root / "01", good="ok", mask="ground_truth/{kind}/{number:03}.png")
    return root


@pytest.fixture(scope="session")
def loco_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of an MVTec LOCO layout with the one category ``breakfast_box``: masks in a folder for each image."""
    root = tmp_path_factory.mktemp("MVTec_LOCO")
    folder = root / "breakfast_box"
    make_tree(folder, mask="ground_truth/{kind}/{number:03}/000.png")
    save(make_sample(300, "spot").mask, folder / "ground_truth" / "scratch" / "000" / "001.png")  # two masks, one image
    for number in range(4):
        save(make_sample(400 + number).image, folder / "validation" / "good" / f"{number:03}.png")
    return root


@pytest.fixture(scope="session")
def visa_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of a VisA download with the one category ``capsules``, before the split is applied."""
    root = tmp_path_factory.mktemp("visa")
    rows = ["object,split,label,image,mask"]
    counts = {("train", "good"): 12, ("test", "good"): 6, ("test", "scratch"): 8, ("test", "spot"): 6}
    number = 0
    for (split, kind), count in counts.items():
        for _ in range(count):
            sample = make_sample(number, kind)
            label, folder = ("normal", "Normal") if kind == "good" else ("anomaly", "Anomaly")
            image = f"capsules/Data/Images/{folder}/{number:03}.JPG"
            mask = "" if kind == "good" else f"capsules/Data/Masks/Anomaly/{number:03}.png"
            save(sample.image, root / image)
            if mask:
                save(sample.mask, root / mask)
            rows.append(f"capsules,{split},{label},{image},{mask}")
            number += 1
    (root / "split_csv").mkdir()
    (root / "split_csv" / "1cls.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture(scope="session")
def folder_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of one's own: ``good``, ``good_test``, ``defect`` and ``mask``."""
    root = tmp_path_factory.mktemp("folder")
    for number in range(12):
        save(make_sample(number).image, root / "good" / f"{number:03}.png")
    for number in range(6):
        save(make_sample(100 + number).image, root / "good_test" / f"{number:03}.png")
    for number in range(14):
        sample = make_sample(200 + number, "scratch" if number < 8 else "spot")
        save(sample.image, root / "defect" / f"{number:03}.png")
        save(sample.mask, root / "mask" / f"{number:03}.png")
    return root


@pytest.fixture(scope="session")
def datumaro_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of a Datumaro export: 18 normal and 14 anomalous images, no masks, no split."""
    root = tmp_path_factory.mktemp("datumaro")
    items = []
    for number in range(32):
        kind = "good" if number < 18 else "scratch" if number < 26 else "spot"
        name = f"{number:03}.png"
        save(make_sample(number, kind).image, root / "images" / "default" / name)
        items.append({"image": {"path": name}, "annotations": [{"label_id": int(kind != "good")}]})
    labels = [{"name": "Normal"}, {"name": "Anomalous"}]
    (root / "annotations").mkdir()
    content = {"categories": {"label": {"labels": labels}}, "items": items}
    (root / "annotations" / "default.json").write_text(json.dumps(content))
    return root
