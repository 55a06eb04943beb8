# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""CrossPatch in anomalib's life cycle, and what asking a second image does to a defect in the training set."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.callbacks.tiler_configuration import TilerConfigurationCallback
from anomalib.data import PredictDataset
from anomalib.deploy import ExportType, OpenVINOInferencer, TorchInferencer
from anomalib.engine import Engine
from anomalib.models import get_model, list_models
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import seed_everything
from PIL import Image
from samples import make_sample, save
from sklearn.metrics import roc_auc_score
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anomalib_cdd import CrossPatch, FolderNoisy, MVTecNoisy

# OpenVINO computes in bf16 where the processor can
SINGLE_PRECISION = {"INFERENCE_PRECISION_HINT": "f32"}

Engines = Callable[..., Engine]


def make_model(**options: Any) -> CrossPatch:
    seed_everything(0, verbose=False)
    transform = Compose([Resize((64, 64), antialias=True), Normalize(mean=[0.5] * 3, std=[0.5] * 3)])
    defaults = {"backbone": "test_resnet", "pre_trained": False, "visualizer": False, "audit": False}
    return CrossPatch(**{**defaults, "pre_processor": PreProcessor(transform), **options})


@pytest.fixture
def make_engine(tmp_path: Path) -> Engines:
    def make(**options: Any) -> Engine:
        defaults = {"logger": False, "accelerator": "cpu", "devices": 1, "enable_progress_bar": False}
        defaults |= {"enable_model_summary": False, "default_root_dir": tmp_path / "results"}
        return Engine(**{**defaults, **options})

    return make


@pytest.fixture(scope="session")
def make_data(mvtec_root: Path) -> Callable[..., MVTecNoisy]:
    def make(**options: Any) -> MVTecNoisy:
        defaults = {"root": mvtec_root, "category": "bottle", "noise_ratio": 0.25, "val_split_mode": "none"}
        return MVTecNoisy(**{**defaults, "train_batch_size": 4, "eval_batch_size": 4, "num_workers": 0, **options})

    return make


def predicted(engine: Engine, model: CrossPatch, folder: Path) -> dict[str, float]:
    batches = engine.predict(model, dataset=PredictDataset(folder))
    return {
        path: float(score) for batch in batches for path, score in zip(batch.image_path, batch.pred_score, strict=True)
    }


@pytest.fixture(scope="module")
def trained(make_data: Callable[..., MVTecNoisy], tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    model, data = make_model(coreset_sampling_ratio=0.5), make_data(val_split_mode="same_as_test")
    root = tmp_path_factory.mktemp("trained")
    engine = Engine(logger=False, accelerator="cpu", default_root_dir=root, enable_progress_bar=False)
    engine.fit(model, datamodule=data)
    return model, engine, data


def raw_scores(model: CrossPatch, paths: list[str]) -> np.ndarray:
    dataset = PredictDataset(Path(paths[0]).parent)
    items = {str(item.image_path): item.image for item in (dataset[i] for i in range(len(dataset)))}
    images = torch.cat([model.pre_processor.transform(items[path][None]) for path in paths])
    with torch.no_grad():
        return model.eval().model(images).pred_score.numpy()


@pytest.mark.parametrize("kind", [ExportType.TORCH, ExportType.ONNX, ExportType.OPENVINO])
def test_exports_score_as_lightning_does(
    trained: tuple[Any, ...], kind: ExportType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, engine, data = trained
    expected = predicted(engine, model, data.root / "bottle" / "test")
    path = engine.export(model, kind, export_root=tmp_path)
    monkeypatch.setenv("TRUST_REMOTE_CODE", "1")
    if kind == ExportType.TORCH:
        inferencer = TorchInferencer(path, device="cpu")
    else:
        inferencer = OpenVINOInferencer(path, device="CPU", config=SINGLE_PRECISION)
    for image, score in expected.items():
        assert float(inferencer.predict(image).pred_score.squeeze()) == pytest.approx(score, abs=1e-3)
    assert len({round(score, 3) for score in expected.values()}) > 5


def test_a_checkpoint_keeps_scores_and_report_and_fetches_nothing(
    trained: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, engine, data = trained
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *a, **k: pytest.fail("weights were fetched"))
    loaded = CrossPatch.load_from_checkpoint(engine.trainer.checkpoint_callback.best_model_path, weights_only=True)
    paths = [str(path) for path in data.test_data.samples["image_path"][:3]]
    assert np.allclose(raw_scores(loaded, paths), raw_scores(model, paths), atol=1e-6)
    assert loaded.training_report().image_paths == model.training_report().image_paths
    assert np.array_equal(loaded.training_report().scores, model.training_report().scores)


def test_scores_and_maps_lie_between_0_and_1_and_the_score_is_the_maps_maximum(trained: tuple[Any, ...]) -> None:
    batch = trained[0].eval().model(torch.randn(3, 3, 64, 64) * 3)
    assert batch.anomaly_map.shape == (3, 1, 64, 64)
    assert batch.anomaly_map.min() >= 0
    assert batch.anomaly_map.max() < 1
    assert torch.equal(batch.pred_score, batch.anomaly_map.amax(dim=(1, 2, 3)))


def test_five_images_two_a_batch_resume_test_validate_predict(
    make_data: Callable[..., MVTecNoisy], make_engine: Engines
) -> None:
    """What anomalib's own integration test does with every model it lists."""
    data = make_data(max_normal=4, train_batch_size=2, val_split_mode="same_as_test")
    model, engine = make_model(), make_engine()
    engine.fit(model, datamodule=data)
    assert engine.trainer.current_epoch == 1
    assert len(data.train_data) == 5
    engine.test(model, datamodule=data)
    checkpoint = engine.trainer.checkpoint_callback.best_model_path
    make_engine().train(make_model(), datamodule=data, ckpt_path=checkpoint)
    engine.validate(model, datamodule=data)
    assert engine.predict(model, datamodule=data, ckpt_path=checkpoint)


def test_a_resumed_fit_keeps_its_bank(trained: tuple[Any, ...], make_engine: Engines) -> None:
    model, engine, data = trained
    resumed = make_model(coreset_sampling_ratio=0.5)
    make_engine().fit(resumed, datamodule=data, ckpt_path=engine.trainer.checkpoint_callback.best_model_path)
    assert torch.equal(resumed.model.memory_bank, model.model.memory_bank)


def test_a_second_fit_makes_a_new_bank(make_data: Callable[..., MVTecNoisy], make_engine: Engines) -> None:
    model = make_model()
    make_engine().fit(model, datamodule=make_data(max_normal=4))
    make_engine().fit(model, datamodule=make_data(max_normal=8))
    assert len(model.model.memory_bank) == 8 + 2
    assert len(model.training_report().scores) == 10


def test_anomalib_knows_the_model_by_name() -> None:
    assert "cross_patch" in list_models()
    for name in ("cross_patch", "CrossPatch"):
        assert isinstance(get_model(name, backbone="test_resnet", pre_trained=False), CrossPatch)


def test_bf16_mixed_scores_as_full_precision_does(make_data: Callable[..., MVTecNoisy], make_engine: Engines) -> None:
    found = []
    for precision in ("32-true", "bf16-mixed"):
        model, engine = make_model(), make_engine(precision=precision)
        engine.fit(model, datamodule=make_data())
        batches = engine.predict(model, datamodule=make_data())
        found.append(torch.cat([batch.pred_score for batch in batches]))
    assert torch.allclose(found[0], found[1], atol=1e-3)


def test_tiles_are_put_together_to_images(make_data: Callable[..., MVTecNoisy], make_engine: Engines) -> None:
    model, data = make_model(), make_data()
    engine = make_engine(callbacks=[TilerConfigurationCallback(enable=True, tile_size=32, stride=32)])
    engine.fit(model, datamodule=data)
    assert len(model.model.memory_bank) == 15
    [batch, *_] = engine.predict(model, datamodule=data)
    assert batch.anomaly_map.shape[-2:] == (64, 64)


def test_max_patches_bounds_the_bank_evenly(make_data: Callable[..., MVTecNoisy], make_engine: Engines) -> None:
    sizes = {}
    for limit in (None, 45, 7):
        model = make_model(coreset_sampling_ratio=1, max_patches=limit)
        make_engine().fit(model, datamodule=make_data())
        sizes[limit] = tuple(model.model.memory_bank.shape[:2])
    # a teacher without training finds two of the 15 images alike
    assert sizes == {None: (14, 64), 45: (14, 3), 7: (7, 1)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coreset_sampling_ratio": 0}, "coreset_sampling_ratio has to be above 0 and at most 1, found 0"),
        ({"agreeing_images": 0}, "agreeing_images has to be at least 1, found 0"),
        ({"max_patches": 1}, "max_patches has to be at least 2"),
    ],
)
def test_an_option_out_of_range_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(**options)


def test_a_model_without_a_bank_says_so() -> None:
    with pytest.raises(RuntimeError, match="no memory bank"):
        make_model().eval().model(torch.zeros(1, 3, 64, 64))


def folder_with_defect(folder: Path, copies: int) -> FolderNoisy:
    """20 good images and one with a spot, photographed ``copies`` times with a little noise of the camera."""
    for number in range(20):
        save(make_sample(number).image, folder / "good" / f"{number:02}.png")
    pixels = np.asarray(make_sample(200, "spot").image).astype(float)
    for number in range(copies):
        noisy = pixels + np.random.default_rng(number).normal(0, 1, pixels.shape)
        save(Image.fromarray(noisy.clip(0, 255).astype(np.uint8)), folder / "good" / f"defect_{number}.png")
    return FolderNoisy(
        name="spots",
        root=folder,
        normal_dir="good",
        noise_ratio=0,
        test_split_mode="none",
        val_split_mode="none",
        train_batch_size=4,
        num_workers=0,
    )


@pytest.mark.parametrize("copies", [1, 5])
def test_a_defect_in_the_training_set_is_seen_however_often_it_was_photographed(
    copies: int, make_engine: Engines, tmp_path: Path
) -> None:
    data = folder_with_defect(tmp_path / "data", copies)
    aurocs = {}
    for k in (1, 2):
        model = make_model(
            backbone="efficientnet_lite0_pypi", pre_trained=True, agreeing_images=k, coreset_sampling_ratio=1
        )
        make_engine().fit(model, datamodule=data)
        paths = [str(path) for path in data.train_data.samples["image_path"]]
        is_defect = [Path(path).name.startswith("defect") for path in paths]
        aurocs[k] = roc_auc_score(is_defect, raw_scores(model, paths))
        report = model.training_report()
        reported = dict(zip(report.image_paths, report.scores, strict=True))
        assert roc_auc_score(is_defect, [reported[path] for path in paths]) == 1.0
    # whoever asks the nearest image alone finds the defect's own photograph
    assert aurocs[1] < 0.95
    assert aurocs[2] == 1.0
