# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Every noisy datamodule keeps the promises of the injection on a folder of its own layout."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from anomalib.data import AnomalibDataModule
from anomalib.data.utils import read_mask

from anomalib_cdd import data
from anomalib_cdd.data import (
    BTechNoisy,
    DatumaroNoisy,
    FolderNoisy,
    MPDDNoisy,
    MVTecLOCONoisy,
    MVTecNoisy,
    NoiseInjection,
    VisaNoisy,
)

FOLDERS = {"name": "mine", "normal_dir": "good", "abnormal_dir": "defect"}


class Case(NamedTuple):
    cls: type[NoiseInjection]
    fixture: str
    arguments: dict
    normal: int = 12
    has_masks: bool = True


NORMAL_TEST = FOLDERS | {"normal_test_dir": "good_test"}
CASES = {
    "MVTec": Case(MVTecNoisy, "mvtec_root", {}),
    "MPDD": Case(MPDDNoisy, "mpdd_root", {}),
    "BTech": Case(BTechNoisy, "btech_root", {}),
    "MVTecLOCO": Case(MVTecLOCONoisy, "loco_root", {}),
    "Visa": Case(VisaNoisy, "visa_root", {}),
    "Folder": Case(FolderNoisy, "folder_root", NORMAL_TEST | {"mask_dir": "mask"}),
    "Folder without masks": Case(FolderNoisy, "folder_root", NORMAL_TEST, has_masks=False),
    "Folder without normal test images": Case(FolderNoisy, "folder_root", FOLDERS | {"mask_dir": "mask"}, normal=10),
    "Datumaro": Case(DatumaroNoisy, "datumaro_root", {}, normal=9, has_masks=False),
}


def make(cls, root, arguments, **kwargs):
    datamodule = cls(
        **{"root": root, "noise_ratio": 0.5, "num_workers": 0, "train_batch_size": 7, "val_split_mode": "none"}
        | arguments
        | kwargs
    )
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule


@pytest.fixture
def root(request, case) -> Path:
    return request.getfixturevalue(case.fixture)


@pytest.fixture
def datamodule(case, root) -> NoiseInjection:
    return make(case.cls, root, case.arguments)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
class TestEveryDatamodule:
    def test_counts(self, datamodule, case):
        samples = datamodule.train_data.samples
        injected = math.floor(case.normal / 2)
        assert (~samples["is_noise"]).sum() == case.normal
        assert samples["is_noise"].sum() == len(datamodule.injected_data) == injected
        assert (datamodule.test_data.samples["label_index"] == 1).sum() == 14 - injected
        assert set(samples["image_path"]).isdisjoint(datamodule.test_data.samples["image_path"])

    def test_nothing_but_the_image_tells_injected_rows(self, datamodule, case):
        samples = datamodule.train_data.samples
        for column in samples.columns.drop(["image_path", "is_noise"]):
            assert samples[column].nunique(dropna=False) == 1, column
        assert (
            datamodule.train_data.task
            == datamodule.test_data.task
            == ("segmentation" if case.has_masks else "classification")
        )

    def test_training_batches_are_normal(self, datamodule, case):
        seen = 0
        for batch in datamodule.train_dataloader():
            seen += len(batch.image_path)
            assert batch.image.shape[1:] == (3, 64, 64)
            assert not batch.gt_label.any()
            if case.has_masks:
                assert not batch.gt_mask.any()
            else:
                assert batch.gt_mask is None
        assert seen == len(datamodule.train_data)

    def test_injected_data_and_test_data_know_the_truth(self, datamodule, case):
        for item in datamodule.injected_data:
            assert item.gt_label.item() == 1
            if case.has_masks:
                assert item.gt_mask.any()
        for batch in datamodule.test_dataloader():
            assert batch.gt_label.shape == (len(batch.image_path),)

    def test_overlap_leaves_the_training_set_as_it_is(self, datamodule, case, root):
        overlap = make(case.cls, root, case.arguments, overlap=True)
        assert overlap.train_data.samples.equals(datamodule.train_data.samples)
        assert (overlap.test_data.samples["label_index"] == 1).sum() == 14
        assert overlap.test_data.samples["is_noise"].sum() == len(datamodule.injected_data)

    def test_manifest_moves_with_the_data(self, datamodule, case, root, tmp_path):
        moved = tmp_path / "moved"
        shutil.copytree(root, moved)
        datamodule.write_manifest(tmp_path / "manifest.csv")
        drawn = make(case.cls, moved, case.arguments)
        drawn.write_manifest(tmp_path / "again.csv")
        assert (tmp_path / "again.csv").read_text() == (tmp_path / "manifest.csv").read_text()
        read = make(case.cls, moved, case.arguments, manifest=tmp_path / "manifest.csv", noise_ratio=0, noise_seed=9)
        assert read.train_data.samples.equals(drawn.train_data.samples)

    def test_default_validation(self, case, root):
        datamodule = case.cls(**{"root": root, "num_workers": 0, "noise_ratio": 0.25} | case.arguments)
        datamodule.prepare_data()
        datamodule.setup()
        assert sum(len(batch.image_path) for batch in datamodule.val_dataloader()) == len(datamodule.val_data)


def test_names_of_results():
    assert MVTecNoisy(category="cable").name == "MVTecNoisy"
    assert MVTecNoisy(category="cable").category == "cable"
    assert FolderNoisy(**FOLDERS).name == "mine"


def test_loco_validation_stays_normal(loco_root):
    datamodule = MVTecLOCONoisy(root=loco_root, num_workers=0)
    datamodule.setup()
    assert len(datamodule.val_data) == 4
    assert not datamodule.val_data.has_anomalous


def test_hidden_files_of_locos_validation_are_left_out(loco_root, tmp_path):
    root = shutil.copytree(loco_root, tmp_path / "loco")
    [folder] = root.glob("*/validation/good")
    (folder / "._000.png").write_bytes(b"what a Mac leaves in archives")
    datamodule = MVTecLOCONoisy(root=root, num_workers=0)
    datamodule.setup()
    assert len(datamodule.val_data) == 4


def test_loco_joins_several_masks(loco_root):
    datamodule = make(MVTecLOCONoisy, loco_root, {}, noise_ratio=0)
    rows = datamodule.test_data.samples
    (row,) = rows.index[rows["image_path"].str.endswith("scratch/000.png")]
    assert len(rows.loc[row, "mask_path"]) == 2
    first, second = (read_mask(path, as_tensor=True).bool() for path in rows.loc[row, "mask_path"])
    assert (first & ~second).any()
    assert (second & ~first).any()
    assert torch.equal(datamodule.test_data[row].gt_mask.bool(), first | second)


def test_folder_without_a_root(folder_root, tmp_path):
    directories = {"normal_dir": "good", "normal_test_dir": "good_test", "abnormal_dir": "defect", "mask_dir": "mask"}
    absolute = {key: str(folder_root / name) for key, name in directories.items()}
    with_root = make(FolderNoisy, folder_root, {"name": "mine"} | directories)
    without = make(FolderNoisy, None, {"name": "mine"} | absolute)
    assert without.train_data.samples.equals(with_root.train_data.samples)
    with_root.write_manifest(tmp_path / "manifest.csv")
    read = make(FolderNoisy, None, {"name": "mine"} | absolute, manifest=tmp_path / "manifest.csv")
    assert read.train_data.samples.equals(with_root.train_data.samples)


def test_normal_test_images_split_by_chance_stay_the_same(folder_root):
    first = make(FolderNoisy, folder_root, FOLDERS)
    torch.manual_seed(99)
    second = make(FolderNoisy, folder_root, FOLDERS, noise_seed=1)
    assert set(first.train_data.samples.query("not is_noise").image_path) == set(
        second.train_data.samples.query("not is_noise").image_path
    )


def test_every_public_datamodule_is_exported():
    assert set(data.__all__) == {name for name in vars(data) if name[0].isupper()}
    for name in data.__all__:
        if name.endswith("Noisy"):
            cls = getattr(data, name)
            assert issubclass(cls, NoiseInjection)
            assert issubclass(cls, AnomalibDataModule)
            assert cls.__doc__


def test_command_line_knows_every_argument(mvtec_root):
    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    parser.add_subclass_arguments(AnomalibDataModule, "data")
    arguments = [
        "--data=anomalib_cdd.data.MVTecNoisy",
        f"--data.root={mvtec_root}",
        "--data.noise_ratio=0.2",
        "--data.noise_seed=5",
        "--data.overlap=true",
        "--data.max_normal=10",
        "--data.val_split_mode=none",
    ]
    datamodule = parser.instantiate_classes(parser.parse_args(arguments)).data
    assert type(datamodule) is MVTecNoisy
    assert (datamodule.noise_ratio, datamodule.noise_seed, datamodule.overlap) == (0.2, 5, True)
    datamodule.setup()
    assert len(datamodule.injected_data) == 2


def test_command_line_help_explains_every_argument(capsys):
    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    parser.add_subclass_arguments(AnomalibDataModule, "data")
    with pytest.raises(SystemExit):
        parser.parse_args(["--data.help=anomalib_cdd.data.VisaNoisy"])
    text = " ".join(capsys.readouterr().out.split())
    for words in (
        "Injected images per normal",
        "Seed of the draw",
        "stay in the test set",
        "CSV file",
        "Use only that",
    ):
        assert words in text


def test_paths_stay_under_the_root(visa_root):
    datamodule = make(VisaNoisy, visa_root, {})
    assert next(iter(datamodule._split)).startswith("visa_pytorch/capsules/")
    assert all(Path(visa_root, name).exists() for name in datamodule._split)
