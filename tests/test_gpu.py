# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""On a GPU: every model's life cycle, what it says there and on a CPU, and a fit that goes on after a stop."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.data import PredictDataset
from anomalib.deploy import ExportType, TorchInferencer
from anomalib.engine import Engine
from anomalib.models import AnomalibModule
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from samples import make_sample
from torch import Tensor
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anomalib_cdd import Cdd, CrossPatch, Dmdd, Dtsnet, InReach, Mhkd, MVTecNoisy, ReContrast, SoftPatch, Urd
from anomalib_cdd.cleaning import cross_domain_scores, score_images
from anomalib_cdd.models.cdd.lightning_model import PAPER
from anomalib_cdd.training.report import ReportsTraining

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
MODELS: dict[str, tuple[type[AnomalibModule], dict[str, Any]]] = {
    "Cdd": (Cdd, {}),
    "Cdd, the paper's": (Cdd, PAPER),
    "CrossPatch": (CrossPatch, {}),
    "SoftPatch": (SoftPatch, {}),
    "InReach": (InReach, {}),
    "Mhkd": (Mhkd, {"layers": ["layer1"]}),
    "ReContrast": (ReContrast, {"student_width": 8}),
    "Urd": (Urd, {"student_width": 8}),
    "Dtsnet": (Dtsnet, {"student_width": 8}),
    "Dmdd": (Dmdd, {"layers": ["layer1", "layer2", "layer3"]}),
}
EPOCHS = {CrossPatch: 1, SoftPatch: 1, InReach: 1}
PRECISIONS = ["32-true", "bf16-mixed"]


@pytest.fixture(autouse=True)
def _alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same fp32 as a CPU's: cuDNN rounds what it convolves to ten bits unless told not to."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def make_model(name: str) -> AnomalibModule:
    kind, options = MODELS[name]
    seed_everything(0, verbose=False)
    transform = Compose([Resize((64, 64), antialias=True), Normalize(mean=[0.5] * 3, std=[0.5] * 3)])
    defaults = {"backbone": "test_resnet", "pre_trained": False, "visualizer": False, "audit": False}
    return kind(**{**defaults, "pre_processor": PreProcessor(transform), **options})


def make_data(root: Path) -> MVTecNoisy:
    options = {"noise_ratio": 0.25, "val_split_mode": "none", "num_workers": 0, "train_batch_size": 4}
    return MVTecNoisy(root=root, category="bottle", eval_batch_size=4, **options)


def make_engine(folder: Path, name: str, accelerator: str = "gpu", **options: Any) -> Engine:
    quiet = {"logger": False, "devices": 1, "enable_progress_bar": False, "enable_model_summary": False}
    quiet["max_epochs"] = EPOCHS.get(MODELS[name][0], 2)
    return Engine(accelerator=accelerator, default_root_dir=folder, **{**quiet, **options})


def scores_of(engine: Engine, model: AnomalibModule, images: PredictDataset) -> np.ndarray:
    batches = engine.predict(model, dataset=images, return_predictions=True)
    return torch.cat([batch.pred_score.flatten().float().cpu() for batch in batches]).numpy()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", MODELS)
def test_what_a_gpu_has_trained_says_the_same_on_a_cpu(
    name: str, precision: str, mvtec_root: Path, tmp_path: Path
) -> None:
    model, data, engine = make_model(name), make_data(mvtec_root), make_engine(tmp_path, name, precision=precision)
    engine.fit(model, datamodule=data)
    engine.test(model, datamodule=data)
    if isinstance(model, ReportsTraining):
        report = model.training_report()
        assert len(report.scores) == 15
        assert np.isfinite(report.scores).all()
    checkpoint = Path(engine.best_model_path)
    images = PredictDataset(path=mvtec_root / "bottle" / "test" / "scratch")
    loaded = MODELS[name][0].load_from_checkpoint(checkpoint, map_location="cpu")
    there, here = (scores_of(make_engine(tmp_path / where, name, where), loaded, images) for where in ("gpu", "cpu"))
    assert len(set(there.round(4))) > 2
    assert there == pytest.approx(here, abs=2e-3)


@pytest.mark.parametrize("name", MODELS)
def test_it_is_exported_from_a_gpu(
    name: str, mvtec_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, engine = make_model(name), make_engine(tmp_path, name)
    engine.fit(model, datamodule=make_data(mvtec_root))
    images = PredictDataset(path=mvtec_root / "bottle" / "test" / "scratch")
    expected = scores_of(engine, model, images)
    monkeypatch.setenv("TRUST_REMOTE_CODE", "1")
    for device in ("cuda", "cpu"):
        inferencer = TorchInferencer(engine.export(model, ExportType.TORCH, export_root=tmp_path / device), device)
        paths = [images[i].image_path for i in range(len(images))]
        found = [float(inferencer.predict(path).pred_score.squeeze()) for path in paths]
        assert found == pytest.approx(expected, abs=2e-3)
    assert engine.export(model, ExportType.ONNX, export_root=tmp_path).is_file()


class StopsAfterAnEpoch(Callback):
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop = True


@pytest.mark.parametrize("name", ["Cdd", "Cdd, the paper's"])
def test_a_fit_that_was_stopped_goes_on_as_if_it_had_not_been(name: str, mvtec_root: Path, tmp_path: Path) -> None:
    """As far as a GPU adds up alike, whatever the order."""

    def fitted(folder: str, checkpoint: str | None = None, **options: Any) -> tuple[Tensor, str]:
        model, engine = make_model(name), make_engine(tmp_path / folder, name, **options)
        engine.fit(model, datamodule=make_data(mvtec_root), ckpt_path=checkpoint)
        weights = torch.cat([p.detach().flatten().cpu() for p in model.parameters() if p.requires_grad])
        return weights, engine.best_model_path

    whole, _ = fitted("whole")
    again, _ = fitted("again")
    half, checkpoint = fitted("half", callbacks=[StopsAfterAnEpoch()])
    resumed, _ = fitted("resumed", checkpoint)
    differ = float((whole - again).abs().max())
    assert float((whole - half).abs().max()) > 1e-3
    assert float((whole - resumed).abs().max()) <= max(3 * differ, 1e-6)


def test_a_look_without_training_ranks_as_on_a_cpu(tmp_path: Path) -> None:
    for number in range(16):
        make_sample(number, "scratch" if number < 2 else "good").image.save(tmp_path / f"{number:02}.png")
    paths = sorted(tmp_path.glob("*.png"))
    options = {"image_size": (64, 64), "progress": False}
    there, here = (score_images(paths, device=device, **options) for device in ("cuda", "cpu"))
    assert there.scores == pytest.approx(here.scores, rel=2e-3)
    assert set(there.scores.argsort()[-2:]) == {0, 1}


def test_copies_of_another_model_judge_on_a_gpu(mvtec_root: Path, tmp_path: Path) -> None:
    trainer = {"accelerator": "gpu", "max_epochs": 1}
    report = cross_domain_scores(
        lambda: make_model("ReContrast"), make_data(mvtec_root), 2, folder=tmp_path, trainer=trainer, progress=False
    )
    assert np.isfinite(report.scores).all()
