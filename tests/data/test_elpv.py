# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""The solar cells that ``elpv-dataset`` installs, counted against its labels.csv, and the refusals."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from anomalib import TaskType

from anomalib_cdd.data import Elpv, ElpvDataset, ElpvNoisy
from anomalib_cdd.data import elpv as module

# awk '{print $3, $2}' elpv_dataset/data/labels.csv | sort | uniq -c
COUNTS = {
    "mono": {"0": 588, "1/3": 117, "2/3": 56, "1": 313},
    "poly": {"0": 920, "1/3": 178, "2/3": 50, "1": 402},
}
COUNTS["all"] = {
    probability: COUNTS["mono"][probability] + COUNTS["poly"][probability] for probability in COUNTS["mono"]
}


def elpv(cls=Elpv, **kwargs) -> Elpv:
    datamodule = cls(**{"num_workers": 0, "val_split_mode": "none"} | kwargs)
    datamodule.setup()
    return datamodule


def labels(dataset) -> tuple[int, int]:
    """Normal and anomalous images."""
    anomalous = int(dataset.samples["label_index"].sum())
    return len(dataset) - anomalous, anomalous


@pytest.mark.parametrize("cell", ["mono", "poly", "all"])
@pytest.mark.parametrize("ambiguous", ["drop", "normal", "anomalous"])
def test_counts(cell, ambiguous):
    count = COUNTS[cell]
    unsure = count["1/3"] + count["2/3"]
    normal = count["0"] + unsure * (ambiguous == "normal")
    anomalous = count["1"] + unsure * (ambiguous == "anomalous")
    assert labels(ElpvDataset(cell=cell, ambiguous=ambiguous)) == (normal, anomalous)
    data = elpv(cell=cell, ambiguous=ambiguous)
    assert labels(data.train_data) == (normal // 2, 0)
    assert labels(data.test_data) == (normal - normal // 2, anomalous)
    assert set(data.train_data.samples["image_path"]).isdisjoint(data.test_data.samples["image_path"])


def test_labels_of_single_cells():
    # the first and the fourth line of labels.csv: probability 1 and 0, both mono
    samples = ElpvDataset().samples.set_index("image_path")
    by_name = {Path(path).name: label for path, label in samples["label_index"].items()}
    assert (by_name["cell0001.png"], by_name["cell0004.png"]) == (1, 0)


def test_items_are_images_with_labels_and_no_masks():
    data = elpv()
    assert data.task == TaskType.CLASSIFICATION
    item = data.test_data[0]
    assert item.image.shape == (3, 300, 300)
    assert item.gt_mask is None
    assert item.image.std() > 0


def test_split_is_seeded():
    first = elpv().train_data.samples
    assert first.equals(elpv().train_data.samples)
    assert not first.equals(elpv(split_seed=1).train_data.samples)
    assert len(elpv(train_ratio=0.25).train_data) == 147


def test_results_are_named_after_the_cell():
    assert (Elpv(cell="poly").name, Elpv(cell="poly").category) == ("Elpv", "poly")
    assert (ElpvNoisy().name, ElpvNoisy().category) == ("ElpvNoisy", "mono")


def test_noise():
    apart, overlap = elpv(ElpvNoisy), elpv(ElpvNoisy, overlap=True)
    assert len(apart.train_data) == 294 + 29
    assert labels(apart.test_data) == (294, 313 - 29)
    assert labels(overlap.test_data) == (294, 313)
    assert labels(apart.injected_data) == (0, 29)
    assert apart.train_data.samples.equals(overlap.train_data.samples)
    assert labels(apart.train_data) == (323, 0)
    for column in apart.train_data.samples.columns.drop(["image_path", "is_noise"]):
        assert apart.train_data.samples[column].nunique() == 1
    assert next(iter(apart._split)) == "images/" + Path(apart.train_data.samples["image_path"][0]).name


def test_noise_does_not_move_the_clean_split():
    clean = set(elpv().train_data.samples["image_path"])
    for seed in (0, 1):
        samples = elpv(ElpvNoisy, noise_seed=seed).train_data.samples
        assert set(samples.loc[~samples["is_noise"], "image_path"]) == clean


def test_root_of_one_s_own(tmp_path):
    (tmp_path / "images").mkdir()
    for number in (1, 4, 20):
        shutil.copy(module.elpv_folder() / "images" / f"cell{number:04}.png", tmp_path / "images")
    (tmp_path / "labels.csv").write_text("images/cell0001.png 1.0 mono\nimages/cell0004.png 0.0 mono\n")
    with (tmp_path / "labels.csv").open("a") as file:
        file.write("images/cell0020.png 0.0 mono\n")
    data = elpv(root=tmp_path)
    assert (len(data.train_data), len(data.test_data)) == (1, 2)


def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install elpv-dataset"):
        Elpv()
    Elpv(root="elsewhere")


def test_package_is_not_imported():
    module.elpv_folder()
    assert "elpv_dataset" not in sys.modules


@pytest.mark.parametrize(
    ("argument", "value"),
    [("cell", "amorphous"), ("ambiguous", "maybe"), ("train_ratio", 0.0), ("train_ratio", 1.0), ("split_seed", -1)],
)
def test_arguments_out_of_range_are_named(argument, value):
    with pytest.raises(ValueError, match=f"{argument} has to be .*{value}"):
        elpv(**{argument: value})


def test_without_a_validation_set_there_is_no_validation_loader() -> None:
    data = Elpv(val_split_mode="none", num_workers=0)
    data.setup()
    assert data.val_dataloader() == []
    assert len(Elpv(val_split_mode="none").val_dataloader()) == 0
    validated = Elpv(val_split_mode="same_as_test", num_workers=0)
    validated.setup()
    assert len(validated.val_dataloader()) > 0
