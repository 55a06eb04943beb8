# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""DTSNet's attention, noise, fusion and options."""

import math
from pathlib import Path

import pytest
import torch
from anomalib.engine import Engine
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import seed_everything
from PIL import Image
from samples import save
from torch import Tensor
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anomalib_cdd import Dtsnet, MVTecNoisy
from anomalib_cdd.models.dtsnet.fusion import CoordinateAttention, MultiScaleFusion, with_fusion
from anomalib_cdd.models.dtsnet.perturbation import attention, perturb
from anomalib_cdd.teachers.backbones import Teacher
from anomalib_cdd.teachers.distances import distance
from anomalib_cdd.teachers.students import build_student


def make_model(**options: object) -> Dtsnet:
    seed_everything(0, verbose=False)
    transform = Compose([Resize((64, 64), antialias=True), Normalize(mean=[0.5] * 3, std=[0.5] * 3)])
    small = {"backbone": "test_resnet", "pre_trained": False, "student_width": 8, "visualizer": False, "audit": False}
    small["foreground"] = "none"  # GrabCut takes seconds for each of these noisy images
    return Dtsnet(**{**small, "pre_processor": PreProcessor(transform), **options})


def make_data(root: Path, batch_size: int = 4) -> MVTecNoisy:
    return MVTecNoisy(root=root, noise_ratio=0.0, val_split_mode="none", num_workers=0, train_batch_size=batch_size)


def fit(model: Dtsnet, root: Path, folder: Path, epochs: int = 1, batch_size: int = 4) -> Engine:
    quiet = {"logger": False, "accelerator": "cpu", "devices": 1, "enable_progress_bar": False}
    engine = Engine(enable_model_summary=False, default_root_dir=folder, max_epochs=epochs, **quiet)
    engine.fit(model, datamodule=make_data(root, batch_size))
    return engine


@torch.no_grad()
def one_batch(model: Dtsnet, root: Path, epoch: int) -> tuple[Tensor, Tensor, Tensor]:
    """All training images, the same with the anomalies of an epoch, and the masks."""
    data = make_data(root, batch_size=12)
    data.setup()
    (batch,) = data.train_dataloader()
    batch.image = model.pre_processor.transform(batch.image)
    return model.synthesis.of_batch(batch, None, epoch, model.pre_processor.transform)


def state(model: Dtsnet) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.model.state_dict().items()}


def test_the_attention_mask_by_hand() -> None:
    """Pixels of mean magnitude 0 and ln(3) / 2: at temperature 1/2 the second weighs three times the first."""
    size = math.log(3) / 2
    teacher = torch.tensor([[0.0, size], [0.0, -size]]).view(1, 2, 1, 2).requires_grad_()
    mask = attention(teacher)
    assert torch.allclose(mask, torch.tensor([0.5, 1.5]).view(1, 1, 1, 2))
    assert not mask.requires_grad


def test_the_attention_masks_mean_is_one_in_every_image() -> None:
    mask = attention(torch.randn(5, 7, 6, 9) * torch.arange(5.0).view(5, 1, 1, 1))
    assert mask.shape == (5, 1, 6, 9)
    assert torch.allclose(mask.mean(dim=(1, 2, 3)), torch.ones(5), atol=1e-5)
    assert mask.min() >= 0


def test_noise_is_a_tenth_of_the_images_deviation_where_the_teacher_looks() -> None:
    torch.manual_seed(0)
    student = torch.randn(2, 400, 4, 4) * torch.tensor([1.0, 5.0]).view(2, 1, 1, 1)
    student.requires_grad_()
    mask = torch.ones(2, 1, 4, 4)
    mask[:, :, 0] = 0
    mask[:, :, 1] = 3
    noise = (perturb(student, mask) - student).detach()
    assert (noise[:, :, 0] == 0).all()
    for image, deviation in ((0, 1.0), (1, 5.0)):
        assert noise[image, :, 1].std().item() == pytest.approx(0.3 * deviation, rel=0.1)
        assert noise[image, :, 2:].std().item() == pytest.approx(0.1 * deviation, rel=0.1)
    perturb(student, mask).sum().backward()
    assert torch.equal(student.grad, torch.ones_like(student))


@torch.no_grad()
def test_coordinate_attention_weights_rows_and_columns() -> None:
    """With weights that do not look at the level, half of it passes each of the two gates."""
    block = CoordinateAttention(4).eval()
    for gate in (block.rows, block.columns):
        torch.nn.init.zeros_(gate.weight)
        torch.nn.init.zeros_(gate.bias)
    level = torch.randn(2, 4, 5, 7)
    assert torch.allclose(block(level), level / 4)
    block.rows.bias.fill_(math.log(3))
    assert torch.allclose(block(level), level * 0.75 / 2)
    # a row that stands out changes the gate of that row alone, and all columns' alike
    torch.nn.init.normal_(block.rows.weight)
    level = torch.ones(1, 4, 5, 7)
    changed = level.clone()
    changed[:, :, 2] = 3.0
    gates = block(changed) / changed / (block(level) / level)
    assert torch.allclose(gates[:, :, [0, 1, 3, 4]], torch.ones(1, 4, 4, 7), atol=1e-5)
    assert not torch.allclose(gates[:, :, 2], torch.ones(1, 4, 7), atol=1e-3)


@pytest.mark.parametrize("backbone", ["resnet18", "test_efficientnet", "test_convnext"])
@torch.no_grad()
def test_a_fusion_fits_any_teacher_with_levels_of_several_strides(backbone: str) -> None:
    teacher = Teacher(backbone, pre_trained=False)
    plain = build_student(teacher, 8)
    features = teacher(torch.randn(2, 3, 80, 112))
    expected = plain.eval().bottleneck(features).shape
    student = with_fusion(plain, teacher).eval()
    assert student.bottleneck(features).shape == expected
    assert [out.shape for out in student(features)] == [feature.shape for feature in features]


@torch.no_grad()
def test_a_fusion_sums_what_it_has_brought_to_one_size() -> None:
    teacher = Teacher("test_resnet", pre_trained=False)
    fusion = MultiScaleFusion(teacher.levels, 6, torch.nn.Identity()).eval()
    features = teacher(torch.randn(2, 3, 64, 64))
    parts = [branch(feature) for branch, feature in zip(fusion.branches, features, strict=True)]
    assert [part.shape for part in parts] == [(2, 6, 4, 4)] * 3
    assert torch.allclose(fusion(features), parts[0] + parts[1] + parts[2])


def test_student_and_reconstruction_learn_each_at_its_rate(mvtec_root: Path, tmp_path: Path) -> None:
    model = make_model()
    before = state(model)
    engine = fit(model, mvtec_root, tmp_path)
    after = state(model)
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"student", "reconstruction"}
    assert [group["lr"] for group in engine.trainer.optimizers[0].param_groups] == [0.005, 0.001]


def test_the_target_is_the_normal_image_and_an_epoch_has_anomalies_of_its_own(mvtec_root: Path, tmp_path: Path) -> None:
    """A student that never moves: what is logged is the distance that the method says."""
    save(Image.new("RGB", (64, 64), (255, 0, 0)), tmp_path / "textures" / "red.png")
    options = {"perturbation": False, "foreground": "none", "anomaly_source_path": str(tmp_path / "textures")}
    model = make_model(learning_rate=0.0, **options)
    engine = fit(model, mvtec_root, tmp_path, epochs=2, batch_size=12)
    normal, anomalous, _ = one_batch(model, mvtec_root, epoch=1)
    with torch.no_grad():
        output = model.model.train().student(model.model.teacher_features(anomalous))
        expected = distance(model.model.teacher_features(normal), output).item()
    assert engine.trainer.callback_metrics["train_loss"].item() == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def test_noise_is_of_training_alone() -> None:
    model = make_model().model.eval()
    features = model.teacher_features(torch.randn(1, 3, 64, 64))
    quiet = [model.reconstruct(features, noisy=False)[0] for _ in range(2)]
    assert torch.equal(*quiet)
    assert not torch.equal(quiet[0], model.reconstruct(features, noisy=True)[0])


@torch.no_grad()
def test_perturbation_and_fusion_are_options() -> None:
    plain = make_model(perturbation=False, multiscale_fusion=False).model.eval()
    assert {name.split(".")[0] for name in plain.state_dict()} == {"teacher", "student", "to_map"}
    features = plain.teacher_features(torch.randn(1, 3, 64, 64))
    outputs = (plain.reconstruct(features, noisy=True), plain.student(features))
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))
    assert type(plain.student.bottleneck) is not type(make_model().model.student.bottleneck)


@pytest.mark.parametrize("option", [{"two_masks": False}, {"foreground": "otsu"}])
def test_anomalies_are_an_option(option: dict[str, object], mvtec_root: Path, tmp_path: Path) -> None:
    losses = []
    for options in ({"foreground": "none"}, {"foreground": "none", **option}):
        engine = fit(make_model(**options), mvtec_root, tmp_path / str(len(losses)))
        losses.append(float(engine.trainer.callback_metrics["train_loss"]))
    assert losses[0] != losses[1]


@torch.no_grad()
def test_the_map_is_of_the_chosen_levels() -> None:
    images = torch.randn(1, 3, 64, 64)
    maps = {}
    for chosen in (["layer1"], ["layer2"], ["layer1", "layer2"], None):
        model = make_model(score_layers=chosen).model.eval()
        maps[str(chosen)] = model(images).anomaly_map
    both = (maps["['layer1']"] + maps["['layer2']"]) / 2
    assert torch.allclose(maps["['layer1', 'layer2']"], both, atol=1e-6)
    assert not torch.allclose(maps["None"], both, atol=1e-4)


def test_bad_input_is_one_line(mvtec_root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="score_layers is"):
        make_model(score_layers=["layer9"])
    with pytest.raises(ValueError, match="multiscale_fusion: false"):
        make_model(backbone="test_vit")
    make_model(backbone="test_vit", multiscale_fusion=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty has no images"):
        fit(make_model(anomaly_source_path=str(tmp_path / "empty")), mvtec_root, tmp_path)
    with pytest.raises(ValueError, match="of 16 x 16 pixels"):
        fit(make_model(pre_processor=PreProcessor(Resize((16, 16)))), mvtec_root, tmp_path)
    model = make_model()
    model.configure_optimizers = lambda: torch.optim.SGD(model.model.student.parameters(), 0.1)
    with pytest.raises(ValueError, match="--optimizer"):
        fit(model, mvtec_root, tmp_path)
