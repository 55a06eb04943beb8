# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""ReContrast's hard mining, its two encoders and its options."""

from pathlib import Path

import pytest
import torch
from anomalib.engine import Engine
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import seed_everything
from torch import nn
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anomalib_cdd import MVTecNoisy, ReContrast
from anomalib_cdd.models.recontrast.loss import contrast, mining_threshold, without_easy_gradients


def make_model(**options: object) -> ReContrast:
    seed_everything(0, verbose=False)
    transform = Compose([Resize((64, 64), antialias=True), Normalize(mean=[0.5] * 3, std=[0.5] * 3)])
    small = {"backbone": "test_resnet", "pre_trained": False, "student_width": 8, "visualizer": False, "audit": False}
    return ReContrast(**{**small, "pre_processor": PreProcessor(transform), **options})


def fit(model: ReContrast, root: Path, folder: Path, **options: object) -> Engine:
    data = MVTecNoisy(root=root, noise_ratio=0.0, val_split_mode="none", num_workers=0, train_batch_size=4)
    quiet = {"logger": False, "accelerator": "cpu", "devices": 1, "enable_progress_bar": False}
    engine = Engine(enable_model_summary=False, default_root_dir=folder, **{"max_epochs": 1, **quiet, **options})
    engine.fit(model, datamodule=data)
    return engine


def test_the_threshold_rises_from_minus_3_to_1_over_the_first_tenth() -> None:
    assert [mining_threshold(step, 2000) for step in (0, 50, 100, 200, 1999)] == [-3.0, -2.0, -1.0, 1.0, 1.0]


def four_pixels() -> tuple[torch.Tensor, torch.Tensor]:
    """Two images of two pixels at cosine distances 0, 0, 0 and 1 of the target: mean .25, standard deviation .5."""
    target = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).repeat(2, 1, 1, 2)
    output = target.clone()
    output[1, :, 0, 1] = torch.tensor([0.0, 1.0])
    return target, output.requires_grad_()


@pytest.mark.parametrize(("alpha", "hard"), [(-3.0, [1, 1, 1, 1]), (-0.5, [1, 1, 1, 1]), (-0.4, [0, 0, 0, 1])])
def test_pixels_below_the_threshold_have_no_gradient(alpha: float, hard: list[int]) -> None:
    target, output = four_pixels()
    (mined,) = without_easy_gradients([target], [output], alpha)
    assert torch.equal(mined, output)
    mined.sum().backward()
    assert output.grad.tolist() == torch.tensor(hard).view(2, 1, 1, 2).expand(2, 2, 1, 2).tolist()


def test_each_encoder_is_the_others_target() -> None:
    """Levels of one value: a distance is 0, 1 or 2."""
    up, right = torch.tensor([[0.0, 1.0]]).view(1, 2, 1, 1), torch.tensor([[1.0, 0.0]]).view(1, 2, 1, 1)
    trained = right.clone().requires_grad_()
    assert contrast([up], [trained], [up], [right], None).item() == pytest.approx(0, abs=1e-6)
    assert contrast([up], [trained], [right], [right], None).item() == pytest.approx(0.5)
    assert contrast([up], [trained], [right], [-right], None).item() == pytest.approx(1.5)
    output = up.clone().requires_grad_()
    contrast([up], [trained], [right], [output], None).backward()
    assert trained.grad is None
    assert output.grad.abs().sum() > 0


def test_the_copy_and_the_student_learn_and_the_frozen_encoder_does_not(mvtec_root: Path, tmp_path: Path) -> None:
    model = make_model()
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    engine = fit(model, mvtec_root, tmp_path)
    after = model.model.state_dict()
    assert {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])} == {
        "encoder",
        "student",
    }
    groups = engine.trainer.optimizers[0].param_groups
    assert [group["lr"] for group in groups] == [2e-3, 1e-5]
    assert [group["weight_decay"] for group in groups] == [1e-5, 1e-5]


@torch.no_grad()
def test_the_map_is_of_both_pairings() -> None:
    model = make_model().model.eval()
    images = torch.randn(2, 3, 64, 64)
    for parameter in model.encoder.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    levels = model.reconstruct(images)
    maps = [
        torch.nn.functional.interpolate(
            1 - torch.cosine_similarity(a, b, dim=1)[:, None], (64, 64), mode="bilinear", align_corners=True
        )
        for a, b in zip(levels.frozen + levels.trained, levels.of_trained + levels.of_frozen, strict=True)
    ]
    expected = model.to_map.blur(sum(maps) / 6)
    assert torch.allclose(model(images).anomaly_map, expected, atol=1e-5)
    # each reconstruction is of its own encoder
    frozen_only = model.student(model.teacher(images))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(frozen_only, levels.of_frozen, strict=True))


@pytest.mark.parametrize("train", [True, False])
def test_batch_statistics_of_the_trained_encoder_are_an_option(train: bool, mvtec_root: Path, tmp_path: Path) -> None:
    model = make_model(train_batch_norm=train)
    before = [module.running_mean.clone() for module in norms(model)]
    fit(model, mvtec_root, tmp_path)
    moved = any(not torch.equal(a, b.running_mean) for a, b in zip(before, norms(model), strict=True))
    assert moved == train


def norms(model: ReContrast) -> list[nn.BatchNorm2d]:
    return [module for module in model.model.encoder.modules() if isinstance(module, nn.BatchNorm2d)]


def test_hard_mining_is_an_option_that_spares_no_pixel_at_first(mvtec_root: Path, tmp_path: Path) -> None:
    def trained(hard_mining: bool, steps: int) -> torch.Tensor:
        model = make_model(hard_mining=hard_mining)
        fit(model, mvtec_root, tmp_path / f"{hard_mining}{steps}", limit_train_batches=steps)
        return torch.cat([parameter.flatten() for parameter in model.model.student.parameters()])

    assert torch.equal(trained(hard_mining=True, steps=1), trained(hard_mining=False, steps=1))
    assert not torch.equal(trained(hard_mining=True, steps=2), trained(hard_mining=False, steps=2))


def test_steps_in_place_of_epochs(mvtec_root: Path, tmp_path: Path) -> None:
    engine = fit(make_model(), mvtec_root, tmp_path, max_epochs=-1, max_steps=4)
    assert engine.trainer.global_step == 4


def test_bad_input_is_one_line(mvtec_root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no level"):
        make_model(layers=["layer9"])
    small = PreProcessor(Resize((16, 16)))
    with pytest.raises(ValueError, match="images, or tiles, of 16 x 16"):
        fit(make_model(pre_processor=small), mvtec_root, tmp_path)
    with pytest.raises(ValueError, match=r"max_epochs is -1.*hard mining"):
        fit(make_model(), mvtec_root, tmp_path, max_epochs=-1)
    model = make_model()
    model.configure_optimizers = lambda: None
    with pytest.raises(ValueError, match="--optimizer"):
        fit(model, mvtec_root, tmp_path)


@pytest.mark.parametrize(("backbone", "size"), [("efficientnet_lite0_pypi", 64), ("test_vit", 64), ("test_resnet", 64)])
def test_all_that_is_trained_has_a_gradient(backbone: str, size: int) -> None:
    """DDP refuses to train what has none."""
    model = make_model(backbone=backbone).model.train()
    levels = model.reconstruct(torch.randn(2, 3, size, size))
    contrast(*levels, None).backward()
    assert [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None] == []
    assert any(value.requires_grad for value in model.encoder.parameters())
