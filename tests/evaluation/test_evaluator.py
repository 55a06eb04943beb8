# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""One test pass answers both settings, in anomalib's names, for any model, whatever the post-processor does."""

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.engine import Engine
from anomalib.metrics import AUROC
from anomalib.models import Padim, Patchcore
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import seed_everything
from PIL import Image
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anomalib_cdd import Cdd, FuadEvaluator, MVTecNoisy
from anomalib_cdd.evaluation.settings import fuad_measures

NAMES = {
    "image_AUROC": "image_AUROC",
    "pixel_AUROC": "pixel_AUROC",
    "AUPRO": "pixel_AUPRO",
    "PRO": "pixel_PRO",
    "image_AUROC_overlap": "image_AUROC_overlap",
    "pixel_AUROC_overlap": "pixel_AUROC_overlap",
    "AUPRO_overlap": "pixel_AUPRO_overlap",
    "PRO_overlap": "pixel_PRO_overlap",
    "injected_AUROC": "injected_AUROC",
}


def make_model(name: str, evaluator: Any) -> Any:
    seed_everything(0, verbose=False)
    steps = Compose([Resize((64, 64), antialias=True), Normalize(mean=[0.5] * 3, std=[0.5] * 3)])
    common = {"pre_trained": False, "visualizer": False, "pre_processor": PreProcessor(steps), "evaluator": evaluator}
    if name == "Cdd":
        # in fp32: so scores what it is compared with
        return Cdd(backbone="test_resnet", student_width=8, audit=False, **common)
    if name == "Patchcore":
        return Patchcore(backbone="resnet18", layers=["layer1"], coreset_sampling_ratio=0.05, **common)
    return Padim(backbone="resnet18", layers=["layer1"], n_features=4, **common)


def make_data(root: Path, **options: Any) -> MVTecNoisy:
    defaults = {"noise_ratio": 0.25, "val_split_mode": "none", "train_batch_size": 4, "eval_batch_size": 4}
    return MVTecNoisy(**{**defaults, "root": root, "category": "bottle", "num_workers": 0, **options})


def make_engine(folder: Path) -> Engine:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Engine(max_epochs=1, accelerator="cpu", devices=1, default_root_dir=folder, **quiet)


@pytest.mark.parametrize("name", ["Cdd", "Patchcore", "Padim"])
@pytest.mark.parametrize(("overlap", "val_split_mode"), [(False, "same_as_test"), (True, "none")])
def test_one_pass_gives_the_measures_of_both_settings(
    mvtec_root: Path, tmp_path: Path, name: str, overlap: bool, val_split_mode: str
) -> None:
    data = make_data(mvtec_root, overlap=overlap, val_split_mode=val_split_mode)
    model = make_model(name, FuadEvaluator(test_metrics=AUROC(fields=["pred_score", "gt_label"], prefix="stock_")))
    engine = make_engine(tmp_path)
    engine.fit(model, datamodule=data)
    [logged] = engine.test(model, datamodule=data, verbose=False)
    expected = fuad_measures(model, make_data(mvtec_root), progress=False)
    assert {NAMES[key]: expected[key] for key in NAMES} == pytest.approx(
        {n: logged[n] for n in NAMES.values()}, abs=1e-5
    )
    assert "stock_AUROC" in logged
    # nothing is left listening
    assert not model.model._forward_hooks
    [again] = engine.test(model, datamodule=data, verbose=False)
    assert again == pytest.approx(logged)


def test_a_metric_that_it_logs_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="test_metrics has image_AUROC, which this evaluator logs itself"):
        FuadEvaluator(test_metrics=[AUROC(fields=["pred_score", "gt_label"], prefix="image_")])


def test_without_injected_images_there_is_one_setting(mvtec_root: Path, tmp_path: Path) -> None:
    data, model = make_data(mvtec_root, noise_ratio=0.0), make_model("Padim", FuadEvaluator())
    engine = make_engine(tmp_path)
    engine.fit(model, datamodule=data)
    [logged] = engine.test(model, datamodule=data, verbose=False)
    assert set(logged) == {"image_AUROC", "pixel_AUROC", "pixel_AUPRO", "pixel_PRO"}
    [loader] = engine.test(model, dataloaders=data.test_dataloader(), verbose=False)
    assert loader == pytest.approx(logged)


def test_two_devices_measure_what_one_does(mvtec_root: Path, tmp_path: Path) -> None:
    script = Path(__file__).with_name("two_devices.py")
    for devices in (1, 2):
        command = [sys.executable, str(script), str(devices), str(mvtec_root), str(tmp_path)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
    one, *two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1-0", "2-0", "2-1"))
    assert set(NAMES.values()) == set(one)
    assert two[0] == pytest.approx(one, abs=1e-6)
    assert two[1] == two[0]


def test_injected_images_are_scored_in_the_precision_of_the_test(mvtec_root: Path, tmp_path: Path) -> None:
    model, precisions = make_model("Cdd", FuadEvaluator()), set()
    model.model.register_forward_pre_hook(lambda *_: precisions.add(torch.is_autocast_enabled("cpu")))
    quiet = {"logger": False, "enable_progress_bar": False, "accelerator": "cpu", "default_root_dir": tmp_path}
    Engine(precision="bf16-mixed", **quiet).test(model, datamodule=make_data(mvtec_root), verbose=False)
    assert precisions == {True}


@pytest.mark.parametrize("within", ["test", "measures"])
def test_maps_of_several_sizes_are_refused_in_one_line(mvtec_root: Path, tmp_path: Path, within: str) -> None:
    root = shutil.copytree(mvtec_root, tmp_path / "data")
    for kind in ("test/spot", "ground_truth/spot"):
        for path in (root / "bottle" / kind).glob("*.png"):
            Image.open(path).resize((96, 64)).save(path)
    model, data = make_model("Cdd", FuadEvaluator()), make_data(root, eval_batch_size=1)
    model.pre_processor.transform = Compose([Resize(64, antialias=True), Normalize(mean=[0.5] * 3, std=[0.5] * 3)])
    run = {
        "test": partial(make_engine(tmp_path).test, verbose=False),
        "measures": partial(fuad_measures, progress=False),
    }
    with pytest.raises(ValueError, match=r"Anomaly maps are \(64, \d\d\) and \(64, \d\d\).*a height and a width"):
        run[within](model, datamodule=data)
