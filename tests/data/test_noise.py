# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""What noise injection promises: the draw, what training sees, what measuring sees, and every refusal."""

from __future__ import annotations

import copy
import logging
import math
import os
import pickle
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib import TaskType
from anomalib.data import MVTecAD
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from anomalib_cdd.data import FolderNoisy, MVTecNoisy
from anomalib_cdd.data.manifest import read_manifest
from anomalib_cdd.data.noise import draw, draw_split, relative_names


def noisy(root: Path, **kwargs) -> MVTecNoisy:
    """Half as many injected as normal images (6 of 12), no validation set."""
    datamodule = MVTecNoisy(**{"root": root, "noise_ratio": 0.5, "num_workers": 0, "val_split_mode": "none"} | kwargs)
    datamodule.setup()
    return datamodule


def names(dataset, column: str | None = None) -> list[str]:
    samples = dataset.samples if column is None else dataset.samples[dataset.samples[column]]
    return ["/".join(Path(path).parts[-3:]) for path in samples["image_path"]]


# --- the draw


def test_draw_is_pinned():
    # by hand, from the first eight numbers of Python's generator: a change would make every split in use another one
    # seed 0: .844 .758 .421 .259 .511 .405 .784 .303; seed 1: .134 .847 .764 .255 .495 .449 .652 .789
    assert draw("abcdefgh", 3, seed=0) == ["d", "h", "f"]
    assert draw("abcdefgh", 3, seed=1) == ["a", "d", "f"]


def test_draw_depends_on_the_set_and_the_seed_only():
    first = draw(list("abcdefgh"), 4, seed=7)
    assert draw(list("hgfedcba"), 4, seed=7) == first
    random.seed(5)
    torch.manual_seed(5)
    state, torch_state = random.getstate(), torch.get_rng_state()
    assert draw("abcdefgh", 4, seed=7) == first
    assert random.getstate() == state
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_draw_is_uniform():
    counts = np.bincount([int(name) for seed in range(2000) for name in draw("0123456789", 3, seed)], minlength=10)
    # 600 expected each, standard deviation sqrt(2000 * .3 * .7) = 20.5
    assert abs(counts - 600).max() < 4 * 20.5


def test_smaller_draw_is_part_of_a_larger_one():
    assert draw("abcdefgh", 6, seed=3)[:2] == draw("abcdefgh", 2, seed=3)


@pytest.mark.parametrize(("normal", "ratio", "count"), [(391, 0.1, 39), (209, 0.1, 20), (12, 0.0, 0), (12, 0.5, 6)])
def test_count_is_the_whole_part(normal, ratio, count):
    split = draw_split([f"n{i}" for i in range(normal)], [f"a{i}" for i in range(70)], ratio, seed=0)
    assert len(split) == normal + count
    assert sum(split.values()) == count


@pytest.mark.parametrize(("normal", "needed", "available"), [(391, 78, 70), (213, 42, 40)])
def test_too_few_anomalies_says_what_is_possible(normal, needed, available):
    # MVTec AD's hazelnut and transistor
    images = [f"n{i}" for i in range(normal)], [f"a{i}" for i in range(available)]
    with pytest.raises(ValueError, match=rf"needs {needed} anomalous.*there are {available}: .* at most") as caught:
        draw_split(*images, ratio=0.2, seed=0)
    possible = float(str(caught.value).rsplit(maxsplit=1)[-1])
    assert sum(draw_split(*images, ratio=possible, seed=0).values()) <= available
    assert int((possible + 0.01) * normal) > available


# --- the training set


def test_all_normal_images_stay_and_the_counts_are_right(mvtec_root):
    data = noisy(mvtec_root)
    assert len(data.train_data) == 12 + 6
    assert data.train_data.samples["is_noise"].dtype == bool
    assert data.train_data.samples["is_noise"].sum() == 6
    assert set(names(data.train_data)) >= {f"train/good/{i:03}.png" for i in range(12)}
    assert all("good" not in name for name in names(data.train_data, "is_noise"))


def test_no_overlap_is_disjoint_and_loses_nothing(mvtec_root):
    plain = MVTecAD(root=mvtec_root)
    plain.setup()
    data = noisy(mvtec_root)
    train, test = set(names(data.train_data)), set(names(data.test_data))
    assert train.isdisjoint(test)
    assert train | test == set(names(plain.train_data)) | set(names(plain.test_data))
    assert not data.test_data.samples["is_noise"].any()


def test_overlap_changes_the_test_set_only(mvtec_root):
    apart, overlap = noisy(mvtec_root), noisy(mvtec_root, overlap=True)
    assert apart.train_data.samples.equals(overlap.train_data.samples)
    assert apart.injected_data.samples.equals(overlap.injected_data.samples)
    assert len(overlap.test_data) == 20
    assert names(overlap.test_data, "is_noise") == names(overlap.injected_data)
    assert set(names(overlap.test_data)) - set(names(apart.test_data)) == set(names(overlap.injected_data))
    assert overlap.test_data.samples["is_noise"].dtype == bool


def test_another_seed_is_another_draw(mvtec_root):
    draws = {tuple(names(noisy(mvtec_root, noise_seed=seed).injected_data)) for seed in range(4)}
    assert len(draws) > 1


def test_setup_again_changes_nothing(mvtec_root):
    data = noisy(mvtec_root)
    before = data.train_data.samples.copy()
    np.random.seed(1)  # noqa: NPY002 - the global generator is what must not matter
    torch.manual_seed(1)
    data.setup()
    data.setup(TrainerFn.TESTING)
    data.setup(TrainerFn.FITTING)
    assert data.train_data.samples.equals(before)
    assert len(data.test_data) == 14


def test_same_draw_in_another_process_and_another_folder(mvtec_root, tmp_path):
    moved = tmp_path / "somewhere else"
    shutil.copytree(mvtec_root, moved)
    code = (
        "import sys, random, torch; random.seed(9); torch.manual_seed(9)\n"
        "from anomalib_cdd.data import MVTecNoisy\n"
        "data = MVTecNoisy(root=sys.argv[1], noise_ratio=0.5, noise_seed=3, max_normal=10); data.setup()\n"
        "data.write_manifest(sys.argv[2])"
    )
    environment = os.environ | {"PYTHONHASHSEED": "12345", "LC_ALL": "C"}
    subprocess.run([sys.executable, "-c", code, str(moved), str(tmp_path / "there.csv")], check=True, env=environment)
    here = noisy(mvtec_root, noise_seed=3, max_normal=10)
    here.write_manifest(tmp_path / "here.csv")
    assert (tmp_path / "here.csv").read_bytes() == (tmp_path / "there.csv").read_bytes()
    # and the manifest of one place is read at the other
    read = noisy(moved, manifest=tmp_path / "here.csv")
    assert names(read.train_data) == names(here.train_data)


def test_max_normal_keeps_a_seeded_part_and_the_ratio_counts_on_it(mvtec_root):
    data = noisy(mvtec_root, max_normal=8)
    samples = data.train_data.samples
    assert (~samples["is_noise"]).sum() == 8
    assert samples["is_noise"].sum() == 4
    assert names(noisy(mvtec_root, max_normal=8).train_data) == names(data.train_data)
    # fewer normal images do not change which anomalies come first
    assert set(names(data.injected_data)) < set(names(noisy(mvtec_root).injected_data))


def test_zero_ratio_is_the_clean_data_set(mvtec_root):
    plain = MVTecAD(root=mvtec_root)
    plain.setup()
    data = noisy(mvtec_root, noise_ratio=0)
    assert names(data.train_data) == names(plain.train_data)
    assert names(data.test_data) == names(plain.test_data)
    assert len(data.injected_data) == 0


# --- what training sees, what measuring sees


def test_training_cannot_see_the_truth(mvtec_root):
    data = noisy(mvtec_root)
    samples = data.train_data.samples
    injected = samples["is_noise"]
    for column in samples.columns.drop(["image_path", "is_noise"]):
        assert samples[column].nunique(dropna=False) == 1, column
    for row in (int(np.flatnonzero(injected)[0]), int(np.flatnonzero(~injected)[0])):
        item = data.train_data[row]
        assert item.gt_label.item() == 0
        assert not item.gt_mask.any()
        assert item.mask_path is None
    for batch in data.train_dataloader():
        assert not batch.gt_label.any()
        assert not batch.gt_mask.any()
    assert not data.train_data.has_anomalous


def test_injected_data_keeps_the_truth(mvtec_root):
    data = noisy(mvtec_root)
    assert type(data.injected_data) is type(data.test_data)
    assert names(data.injected_data) == names(data.train_data, "is_noise")
    for item in data.injected_data:
        assert item.gt_label.item() == 1
        assert item.gt_mask.any()
    assert data.injected_data.task == data.train_data.task == data.test_data.task == TaskType.SEGMENTATION


def test_injected_data_is_augmented_like_test_data(mvtec_root):
    from torchvision.transforms.v2 import Resize

    data = noisy(mvtec_root, augmentations=Resize((32, 32)))
    assert data.injected_data[0].image.shape == data.test_data[0].image.shape == (3, 32, 32)


@pytest.mark.parametrize("mode", ["none", "same_as_test", "from_test", "from_train"])
def test_every_validation_split_works(mvtec_root, mode):
    data = noisy(mvtec_root, val_split_mode=mode)
    assert len(data.injected_data) == 6
    if mode == "none":
        assert not hasattr(data, "val_data")
    if mode == "same_as_test":
        assert names(data.val_data) == names(data.test_data)
    if mode == "from_train":
        assert len(data.train_data) + len(data.val_data) == 18
        assert data.train_data.samples["is_noise"].sum() + data.val_data.samples["is_noise"].sum() == 6


def test_test_labels_in_validation_are_said_once(mvtec_root, caplog):
    data = noisy(mvtec_root, val_split_mode="same_as_test")
    data.setup()
    assert sum("test labels" in message for message in caplog.messages) == 1
    caplog.clear()
    noisy(mvtec_root)
    assert not caplog.messages


def test_counts_are_logged(mvtec_root, caplog):
    caplog.set_level(logging.INFO, "anomalib_cdd")
    noisy(mvtec_root)
    assert (
        "Training: 12 normal + 6 injected anomalous images (33.3 % of 18). Test: 6 normal, 8 anomalous" in caplog.text
    )
    noisy(mvtec_root, noise_ratio=0.0)
    assert "Training: 12 images, none injected. Test: 6 normal, 14 anomalous" in caplog.text


def test_pickle_and_deepcopy(mvtec_root):
    data = noisy(mvtec_root)
    for twin in (pickle.loads(pickle.dumps(data)), copy.deepcopy(data)):  # noqa: S301
        assert twin.train_data.samples.equals(data.train_data.samples)
        assert type(twin.train_data) is type(data.train_data)
        assert torch.equal(twin.injected_data[0].image, data.injected_data[0].image)


def test_worker_processes(mvtec_root):
    data = noisy(mvtec_root, num_workers=1, train_batch_size=9)
    assert sum(len(batch.image_path) for batch in data.train_dataloader()) == 18


def test_fit_leaves_its_manifest_with_the_results(mvtec_root, tmp_path):
    data = noisy(mvtec_root)
    data.trainer = Trainer(default_root_dir=tmp_path / "results", logger=False, accelerator="cpu", barebones=True)
    data.setup(TrainerFn.TESTING)
    assert not (tmp_path / "results" / "manifest.csv").exists()
    data.setup(TrainerFn.FITTING)
    split = read_manifest(tmp_path / "results" / "manifest.csv")
    assert sum(split.values()) == 6
    assert len(split) == 18
    assert os.listdir(tmp_path / "results") == ["manifest.csv"]  # noqa: PTH208 - hidden files too


def test_fit_without_validation(mvtec_root, tmp_path):
    class Reader(LightningModule):
        seen = 0

        def training_step(self, batch):
            self.seen += len(batch.image_path)

        def validation_step(self, batch):
            pytest.fail("there is nothing to validate on")

        def configure_optimizers(self):
            return None

    data, model = noisy(mvtec_root), Reader()
    trainer = Trainer(
        max_epochs=1, default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_progress_bar=False
    )
    trainer.fit(model, datamodule=data)
    assert model.seen == 18
    assert len(read_manifest(tmp_path / "manifest.csv")) == 18


# --- names


def test_names_are_relative_to_the_root_or_else_to_the_common_folder(tmp_path):
    paths = [str(tmp_path / "a" / "1.png"), str(tmp_path / "b" / "1.png")]
    assert relative_names(paths, tmp_path)[1] == dict(zip(paths, ["a/1.png", "b/1.png"], strict=True))
    assert relative_names(paths, None) == (tmp_path, dict(zip(paths, ["a/1.png", "b/1.png"], strict=True)))
    assert relative_names(paths, tmp_path / "a")[0] == tmp_path
    assert relative_names(paths, tmp_path.parent)[1][paths[0]] == f"{tmp_path.name}/a/1.png"


def test_relative_root_gives_the_same_names(mvtec_root, monkeypatch):
    monkeypatch.chdir(mvtec_root.parent)
    assert names(noisy(Path(mvtec_root.name)).train_data) == names(noisy(mvtec_root).train_data)
    assert list(noisy(Path(mvtec_root.name))._split) == list(noisy(mvtec_root)._split)


# --- refusals


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("noise_ratio", -0.1),
        ("noise_ratio", math.nan),
        ("noise_ratio", math.inf),
        ("max_normal", 0),
        ("noise_seed", -1),
    ],
)
def test_arguments_out_of_range_are_named(argument, value):
    with pytest.raises(ValueError, match=f"{argument} has to be .*{value}"):
        MVTecNoisy(**{argument: value})


def test_more_normal_images_than_there_are(mvtec_root):
    with pytest.raises(ValueError, match="max_normal=13, but there are 12"):
        noisy(mvtec_root, max_normal=13)


def test_more_anomalies_than_there_are(mvtec_root):
    with pytest.raises(ValueError, match=r"needs 24 .* there are 14: noise_ratio can be at most 1\.166"):
        noisy(mvtec_root, noise_ratio=2.0)


def test_all_anomalies_injected_leaves_nothing_to_measure(mvtec_root, caplog):
    data = noisy(mvtec_root, noise_ratio=14.5 / 12)
    assert not data.test_data.has_anomalous
    assert "none left to measure" in caplog.text


def test_less_than_one_image_is_said(mvtec_root, caplog):
    data = noisy(mvtec_root, noise_ratio=0.01)
    assert len(data.injected_data) == 0
    assert "less than one image" in caplog.text


def test_no_anomaly_to_inject(folder_root):
    arguments = {"name": "clean", "root": folder_root, "normal_dir": "good", "normal_test_dir": "good_test"}
    with pytest.raises(ValueError, match=r"noise_ratio=0\.1, but the test set has no anomalous image"):
        FolderNoisy(**arguments, val_split_mode="none").setup()
    FolderNoisy(**arguments, val_split_mode="none", noise_ratio=0).setup()


def test_synthetic_test_anomalies_are_not_injected(mvtec_root):
    with pytest.raises(ValueError, match="no real anomaly to inject"):
        noisy(mvtec_root, test_split_mode="synthetic")


def test_before_setup():
    with pytest.raises(RuntimeError, match="setup"):
        _ = MVTecNoisy().injected_data
    with pytest.raises(RuntimeError, match="setup"):
        MVTecNoisy().write_manifest("manifest.csv")


def test_a_folder_of_unknown_images_alone_can_be_trained_on(folder_root: Path) -> None:
    """What a factory has: no test set, no labels, nothing to inject."""
    data = FolderNoisy(
        name="parts",
        root=folder_root,
        normal_dir="good",
        noise_ratio=0,
        test_split_mode="none",
        val_split_mode="none",
        train_batch_size=4,
        num_workers=0,
    )
    data.setup()
    assert len(data.train_data) > 0
    assert len(data.test_data) == 0
    assert len(data.injected_data) == 0
    assert next(iter(data.train_dataloader())).image.ndim == 4
