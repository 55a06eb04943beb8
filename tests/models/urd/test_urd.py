# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""URD's losses, its injection and its options."""

import copy
from pathlib import Path

import pytest
import torch
from anomalib.engine import Engine
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import Trainer, seed_everything
from PIL import Image
from samples import save
from torch import Tensor
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anomalib_cdd import MVTecNoisy, Urd
from anomalib_cdd.models.urd.loss import mix_by_similarity, student_loss, teacher_loss
from anomalib_cdd.models.urd.student import InjectedStudent
from anomalib_cdd.teachers.backbones import Teacher


def make_model(**options: object) -> Urd:
    seed_everything(0, verbose=False)
    transform = Compose([Resize((64, 64), antialias=True), Normalize(mean=[0.5] * 3, std=[0.5] * 3)])
    small = {"backbone": "test_resnet", "pre_trained": False, "student_width": 8, "visualizer": False, "audit": False}
    small["foreground"] = "none"  # GrabCut takes seconds for each of these noisy images
    return Urd(**{**small, "pre_processor": PreProcessor(transform), **options})


def make_data(root: Path, batch_size: int = 4) -> MVTecNoisy:
    return MVTecNoisy(root=root, noise_ratio=0.0, val_split_mode="none", num_workers=0, train_batch_size=batch_size)


def fit(model: Urd, root: Path, folder: Path, epochs: int = 1, batch_size: int = 4) -> Engine:
    quiet = {"logger": False, "accelerator": "cpu", "devices": 1, "enable_progress_bar": False}
    engine = Engine(enable_model_summary=False, default_root_dir=folder, max_epochs=epochs, **quiet)
    engine.fit(model, datamodule=make_data(root, batch_size))
    return engine


@torch.no_grad()
def one_batch(model: Urd, root: Path, epoch: int) -> tuple[Tensor, Tensor, Tensor]:
    """All training images, the same with the anomalies of an epoch, and the masks."""
    data = make_data(root, batch_size=12)
    data.setup()
    (batch,) = data.train_dataloader()
    batch.image = model.pre_processor.transform(batch.image)
    return model.synthesis.of_batch(batch, None, epoch, model.pre_processor.transform)


def state(model: Urd) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.model.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


def level(*pixels: tuple[float, float]) -> list[Tensor]:
    """One level of one image: two channels, pixels in a row."""
    return [torch.tensor(pixels).T.reshape(1, 2, 1, len(pixels))]


UP, RIGHT = (0.0, 1.0), (1.0, 0.0)


def test_the_teachers_loss_by_hand() -> None:
    expert = level(UP, UP)
    masks = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    # T(a) turns away at the mask, where E(a) does too: nothing is lost
    assert teacher_loss(expert, level(UP, RIGHT), level(UP, UP), level(UP, RIGHT), masks).item() == pytest.approx(
        0, abs=1e-6
    )
    # the teacher does not turn away: half of the pixels are one from their mask; E(a) is at cosine 1/2
    lost = teacher_loss(expert, level(UP, RIGHT), level(UP, UP), level(UP, UP), masks)
    assert lost.item() == pytest.approx(0.5 + 0.5)
    # T(n) leaves E(n) at one pixel of two
    lost = teacher_loss(expert, level(UP, RIGHT), level(UP, RIGHT), level(UP, RIGHT), masks)
    assert lost.item() == pytest.approx(0.5)
    # a level's mask is the share of each place that is anomalous
    halves = torch.tensor([0.0, 0.0, 0.0, 1.0]).view(1, 1, 1, 4)
    lost = teacher_loss(expert, level(UP, RIGHT), level(UP, UP), level(UP, RIGHT), halves)
    assert lost.item() == pytest.approx(0.25)


def test_the_students_loss_is_of_both_images_to_both_targets() -> None:
    assert student_loss(level(UP), level(UP), level(UP), level(UP)).item() == pytest.approx(0, abs=1e-6)
    assert student_loss(level(UP), level(UP), level(UP), level(RIGHT)).item() == pytest.approx(2)
    assert student_loss(level(UP), level(RIGHT), level(UP), level(RIGHT)).item() == pytest.approx(2)
    assert student_loss(level(UP), level(UP), level(RIGHT), level(RIGHT)).item() == pytest.approx(4)


def test_guidance_counts_where_student_and_teacher_agree() -> None:
    guidance = level((5.0, 5.0), (5.0, 5.0), (5.0, 5.0))[0]
    student = level(UP, RIGHT, (3.0, 4.0))[0].requires_grad_()
    teacher = level((0.0, 2.0), UP, RIGHT)[0]
    mixed = mix_by_similarity(guidance, student, teacher)
    expected = level((5.0, 5.0), RIGHT, (0.6 * 5 + 0.4 * 3, 0.6 * 5 + 0.4 * 4))[0]
    assert torch.allclose(mixed, expected, atol=1e-6)
    mixed.sum().backward()
    # the weight itself has no gradient
    assert torch.allclose(student.grad, torch.tensor([0.0, 1.0, 0.4]).expand(1, 2, 1, 3), atol=1e-6)


@pytest.mark.parametrize("backbone", ["resnet18", "test_efficientnet", "test_convnext", "test_vit"])
@pytest.mark.parametrize("size", [(64, 64), (80, 112)])
@torch.no_grad()
def test_an_injected_student_fits_any_teacher(backbone: str, size: tuple[int, int]) -> None:
    teacher = Teacher(backbone, pre_trained=False)
    features = teacher(torch.randn(2, 3, *size))
    student = InjectedStudent(teacher, 8).eval()
    assert [out.shape for out in student(features)] == [feature.shape for feature in features]


@torch.no_grad()
def test_the_injection_hands_detail_to_shallower_levels_only() -> None:
    """Blind the bottleneck: what is left comes by the injections."""
    teacher = Teacher("test_resnet", pre_trained=False)
    student = InjectedStudent(teacher, 8).eval()
    features = teacher(torch.randn(1, 3, 64, 64))
    embedding = student.bottleneck(features)
    student.bottleneck.forward = lambda _: embedding
    before = student(features)
    after = student([features[0] + 1, *features[1:]])
    assert [not torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True, False, False]
    after = student([features[0], features[1], features[2] + 1])
    assert [not torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True, True, False]


def test_a_batch_is_a_step_of_the_teacher_and_one_of_the_student(mvtec_root: Path, tmp_path: Path) -> None:
    model = make_model()
    before = state(model)
    engine = fit(model, mvtec_root, tmp_path)
    assert changed(before, state(model)) == {"teacher", "student"}
    assert [optimizer.param_groups[0]["lr"] for optimizer in engine.trainer.optimizers] == [0.005, 1e-4]
    steps = {int(moments["step"]) for optimizer in engine.trainer.optimizers for moments in optimizer.state.values()}
    assert steps == {3}
    assert {"train_loss_teacher", "train_loss_student"} <= set(engine.trainer.callback_metrics)
    # its running averages take in a batch once: the student's step has it in evaluation mode
    norms = [module for module in model.model.teacher.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert {int(module.num_batches_tracked) for module in norms} == {3}


@pytest.mark.parametrize("train_teacher", [True, False])
def test_the_losses_are_of_the_images_that_they_say(train_teacher: bool, mvtec_root: Path, tmp_path: Path) -> None:
    """Networks before their first step: what is logged are the losses that the method says."""
    save(Image.new("RGB", (64, 64), (255, 0, 0)), tmp_path / "textures" / "red.png")
    options = {"foreground": "none", "anomaly_source_path": str(tmp_path / "textures"), "guided_injection": False}
    model = make_model(train_teacher=train_teacher, learning_rate=0.0, **options)
    initial = copy.deepcopy(model.model.teacher)
    logged = fit(model, mvtec_root, tmp_path, batch_size=12).trainer.callback_metrics
    normal, anomalous, masks = one_batch(model, mvtec_root, epoch=0)
    with torch.no_grad():
        expert = [model.model.expert(images) for images in (normal, anomalous)]
        if train_teacher:
            both = initial.train()(torch.cat([normal, anomalous]))
            levels = [[level[:12] for level in both], [level[12:] for level in both]]
            expected = teacher_loss(*expert, *levels, masks).item()
            assert logged["train_loss_teacher"].item() == pytest.approx(expected, rel=1e-4)
            return
        both = model.model.student.train()([torch.cat(pair) for pair in zip(*expert, strict=True)])
        levels = [[level[:12] for level in both], [level[12:] for level in both]]
        expected = student_loss(expert[0], expert[0], *levels).item()
    assert logged["train_loss_student"].item() == pytest.approx(expected, rel=1e-4)


def test_without_a_teacher_of_its_own_the_expert_is_the_teacher(mvtec_root: Path, tmp_path: Path) -> None:
    model = make_model(train_teacher=False)
    before = state(model)
    fit(model, mvtec_root, tmp_path)
    assert changed(before, state(model)) == {"student"}
    images = torch.randn(1, 3, 64, 64)
    pairs = zip(model.model.teacher_features(images), model.model.expert(images), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_injection_is_an_option() -> None:
    count = [sum(p.numel() for p in make_model(guided_injection=on).model.student.parameters()) for on in (True, False)]
    assert count[0] > count[1]
    names = {name.split(".")[1] for name in state(make_model(guided_injection=False)) if name.startswith("student.")}
    assert names == {"bottleneck", "decoder"}


@pytest.mark.parametrize("option", [{"foreground": "otsu"}, {"anomaly_source_path": "textures"}])
def test_anomalies_are_an_option(option: dict[str, object], mvtec_root: Path, tmp_path: Path) -> None:
    save(Image.new("RGB", (64, 64), (255, 0, 0)), tmp_path / "textures" / "red.png")
    if "anomaly_source_path" in option:
        option = {"anomaly_source_path": str(tmp_path / "textures")}
    losses = []
    for options in ({"foreground": "none"}, {"foreground": "none", **option}):
        engine = fit(make_model(**options), mvtec_root, tmp_path / str(len(losses)))
        losses.append(float(engine.trainer.callback_metrics["train_loss_teacher"]))
    assert losses[0] != losses[1]


def test_bad_input_is_one_line(mvtec_root: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        fit(make_model(anomaly_source_path=str(tmp_path / "nowhere")), mvtec_root, tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty has no images"):
        fit(make_model(anomaly_source_path=str(tmp_path / "empty")), mvtec_root, tmp_path)
    with pytest.raises(ValueError, match="of 16 x 16 pixels"):
        fit(make_model(pre_processor=PreProcessor(Resize((16, 16)))), mvtec_root, tmp_path)
    model = make_model()
    model.trainer = Trainer(logger=False, default_root_dir=tmp_path, accelerator="cpu", devices=2, strategy="ddp")
    with pytest.raises(ValueError, match="There are 2 devices"):
        model.setup("fit")
    model = make_model()
    model.configure_optimizers = lambda: torch.optim.SGD(model.model.student.parameters(), 0.1)
    with pytest.raises(ValueError, match="--optimizer"):
        fit(model, mvtec_root, tmp_path)
