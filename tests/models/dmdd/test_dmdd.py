# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""DMDD's student, its head and its options."""

from pathlib import Path

import pytest
import torch
from anomalib.engine import Engine
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import Trainer, seed_everything
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anomalib_cdd import Dmdd, MVTecNoisy
from anomalib_cdd.models.dmdd.segmentation import SegmentationHead
from anomalib_cdd.models.dmdd.student import DecoupledStudent
from anomalib_cdd.teachers.backbones import Teacher
from anomalib_cdd.training.finite import NotFiniteError

LAYERS = ["layer1", "layer2", "layer3"]
# GrabCut takes seconds for each of these noisy images
TINY = {"foreground": "none", "visualizer": False, "audit": False}
SMALL = {"backbone": "test_resnet", "layers": LAYERS, "pre_trained": False, **TINY}


def make_model(**options: object) -> Dmdd:
    seed_everything(0, verbose=False)
    transform = Compose([Resize((64, 64), antialias=True), Normalize(mean=[0.5] * 3, std=[0.5] * 3)])
    return Dmdd(**{**SMALL, "pre_processor": PreProcessor(transform), **options})


def fit(model: Dmdd, root: Path, folder: Path) -> dict[str, torch.Tensor]:
    """Train an epoch; return what it logged."""
    data = MVTecNoisy(
        root=root, category="bottle", noise_ratio=0.0, val_split_mode="none", num_workers=0, train_batch_size=6
    )
    options = {"logger": False, "accelerator": "cpu", "devices": 1, "enable_progress_bar": False}
    engine = Engine(max_epochs=1, enable_model_summary=False, default_root_dir=folder, **options)
    engine.fit(model, datamodule=data)
    return engine.trainer.callback_metrics


# ---------------------------------------------------------------------------------------------- the student


@pytest.mark.parametrize("backbone", ["resnet18", "test_efficientnet", "test_convnext", "efficientnet_lite0_pypi"])
@torch.no_grad()
def test_a_student_begins_as_the_teacher_in_both_halves(backbone: str) -> None:
    teacher = Teacher(backbone, pre_trained=False, strides=(4, 8, 16, 32))
    student = DecoupledStudent(teacher, paths=0).eval()
    images = torch.randn(2, 3, 64, 64)
    expected = teacher(images)
    for branch in student(images):
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(branch, expected, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(teacher(images), expected, strict=True))


@pytest.mark.parametrize("backbone", ["resnet18", "test_efficientnet", "efficientnet_lite0_pypi"])
@torch.no_grad()
def test_normality_alone_goes_on_to_the_next_stage(backbone: str) -> None:
    teacher = Teacher(backbone, pre_trained=False, strides=(4, 8, 16, 32))
    student, images = DecoupledStudent(teacher, paths=0).eval(), torch.randn(2, 3, 64, 64)
    normality, abnormality = student(images)
    first = student.splits[0].conv
    channels = first.out_channels // 2
    first.bias[channels:] += 1
    shifted = student(images)
    assert all(torch.equal(a, b) for a, b in zip(shifted[0], normality, strict=True))
    assert torch.allclose(shifted[1][0], abnormality[0] + 1, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(shifted[1][1:], abnormality[1:], strict=True))
    first.bias[:channels] += 1
    assert all(not torch.equal(a, b) for a, b in zip(student(images)[0], normality, strict=True))


@pytest.mark.parametrize(("paths", "reached"), [(0, [1]), (1, [0, 1]), (2, [0, 1, 2])])
@torch.no_grad()
def test_paths_of_the_two_pyramids_run_against_each_other(paths: int, reached: list[int]) -> None:
    """Move the middle level: the first path hands it to shallower levels of normality and deeper ones of the other."""
    teacher = Teacher("test_resnet", LAYERS, pre_trained=False)
    student = DecoupledStudent(teacher, paths).eval()
    features = teacher(torch.randn(1, 3, 64, 64))
    moved = [features[0], features[1] + 1, features[2]]
    mirrored = sorted(2 - level for level in reached)
    for pyramid, levels in ((student.normality, reached), (student.abnormality, mirrored)):
        before, after = pyramid(list(features)), pyramid(moved)
        assert [i for i in range(3) if not torch.equal(before[i], after[i])] == levels
        assert [level.shape for level in after] == [level.shape for level in features]


# ---------------------------------------------------------------------------------------------- the head


@torch.no_grad()
def test_a_head_begins_as_a_mean_with_pyramid_upsampling_too() -> None:
    head, shallow, deep = SegmentationHead(2, True, True, True, True), torch.rand(1, 1, 8, 8), torch.rand(1, 1, 8, 8)
    # normality: the mean of both, then deep alone; abnormality the other way
    expected = ((shallow + deep) / 2 + deep + shallow + (shallow + deep) / 2) / 4
    assert torch.allclose(head([shallow, deep], [shallow, deep], (8, 8)), (expected - 4.6).sigmoid(), atol=1e-6)


@pytest.mark.parametrize("multi_perception", [True, False])
@torch.no_grad()
def test_a_head_begins_as_the_mean_of_all_maps_and_low(multi_perception: bool) -> None:
    """Whatever the random seed: attention that begins at random turns the ranking of images over."""
    head = SegmentationHead(2, True, True, pyramid_upsampling=False, multi_perception=multi_perception)
    maps = [torch.rand(1, 1, 16, 16), torch.rand(1, 1, 16, 16)]
    result = head(maps, maps, (16, 16))
    assert torch.allclose(result, ((maps[0] + maps[1]) / 2 - 4.6).sigmoid(), atol=1e-6)
    assert result.max() < 0.05


@torch.no_grad()
def test_pyramid_upsampling_hands_deep_maps_of_normality_down_and_shallow_ones_of_abnormality_up() -> None:
    head = SegmentationHead(2, True, True, pyramid_upsampling=True, multi_perception=False)
    shallow, deep = torch.full((1, 1, 8, 8), 1.0), torch.full((1, 1, 4, 4), 10.0)
    assert [level.mean().item() for level in head.top_down([shallow, deep])] == [5.5, 10.0]
    assert [level.mean().item() for level in head.bottom_up([shallow, deep])] == [1.0, 5.5]


@torch.no_grad()
def test_a_weight_of_its_own_for_every_place() -> None:
    head = SegmentationHead(2, True, False, pyramid_upsampling=False, multi_perception=True)
    head.perception.weights[..., :128] = 0
    maps = [torch.rand(1, 1, 64, 64), torch.rand(1, 1, 32, 32)]
    result = head(maps, [], (64, 64))
    assert torch.allclose(result[..., :31], head.fuse.bias.sigmoid().expand(1, 1, 64, 31))
    assert result[..., 33:].std() > 0


# ---------------------------------------------------------------------------------------------- training and options


def test_a_batch_is_a_step_of_the_student_and_one_of_the_head_and_none_of_the_teacher(
    mvtec_root: Path, tmp_path: Path
) -> None:
    model = make_model()
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    logged = fit(model, mvtec_root, tmp_path)
    assert {"train_loss_student", "train_loss_head"} <= set(logged)
    after = model.model.state_dict()
    changed = {name.split(".")[0] for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == {"student", "head"}
    steps = {int(state["step"]) for optimizer in model.trainer.optimizers for state in optimizer.state.values()}
    assert steps == {2}
    assert len(model.trainer.optimizers) == 2


@pytest.mark.parametrize("branches", ["normality", "abnormality"])
def test_one_branch_trains_and_scores_alone(branches: str, mvtec_root: Path, tmp_path: Path) -> None:
    model = make_model(branches=branches)
    other = {"normality": "abnormality", "abnormality": "normality"}[branches]
    trained = {name: value.clone() for name, value in getattr(model.model.student, branches).named_parameters()}
    assert list(getattr(model.model.student, other).parameters()) == []
    fit(model, mvtec_root, tmp_path)
    now = dict(getattr(model.model.student, branches).named_parameters())
    assert any(not torch.equal(value, now[name]) for name, value in trained.items())
    assert model.model.head.fuse.in_channels == 3
    model.model.eval()
    images = torch.randn(1, 3, 64, 64)
    maps = model.model.distances(model.model.teacher_features(images), images)
    assert [len(levels) for levels in maps] == ([3, 0] if branches == "normality" else [0, 3])
    assert torch.equal(model.model(images).anomaly_map, model.model.anomaly_map(*maps, images))


def test_without_a_head_the_map_is_the_mean_of_all_distances(mvtec_root: Path, tmp_path: Path) -> None:
    model = make_model(segmentation=False)
    assert "train_loss_head" not in fit(model, mvtec_root, tmp_path)
    model.model.eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        normality, abnormality = model.model.distances(model.model.teacher_features(images), images)
        maps = [
            torch.nn.functional.interpolate(level, size=(64, 64), mode="bilinear")
            for level in (*normality, *abnormality)
        ]
        assert torch.allclose(model.model(images).anomaly_map, (sum(maps) / 6 / 2).clamp_min(0), atol=1e-6)


@pytest.mark.parametrize(
    ("option", "missing"), [("pyramid_upsampling", "top_down"), ("multi_perception", "perception")]
)
def test_parts_of_the_head_can_be_left_out(option: str, missing: str) -> None:
    whole, reduced = make_model().model, make_model(**{option: False}).model
    assert getattr(whole.head, missing) is not None
    assert getattr(reduced.head, missing) is None
    reduced.load_state_dict(
        {name: value for name, value in whole.state_dict().items() if f"head.{missing}" not in name}, strict=False
    )
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert not torch.equal(whole.eval()(images).anomaly_map, reduced.eval()(images).anomaly_map)


def test_weights_and_learning_rates_are_options(tmp_path: Path) -> None:
    state = {name: value * 2 for name, value in make_model().model.teacher.network.state_dict().items()}
    torch.save(state, tmp_path / "teacher.pth")
    model = make_model(weights=str(tmp_path / "teacher.pth"), learning_rate=0.25)
    for network in (model.model.teacher.network, model.model.student.network):
        assert all(torch.equal(network.state_dict()[name], value) for name, value in state.items())
    rates = [optimizer.param_groups[0]["lr"] for optimizer in model.configure_optimizers()]
    assert rates == [0.25, 0.001]


@pytest.mark.parametrize(("part", "named"), [("network", "loss is nan"), ("head", "the anomaly map is not finite")])
def test_numbers_that_are_not_finite_end_it_by_name(part: str, named: str, mvtec_root: Path, tmp_path: Path) -> None:
    model = make_model()
    broken = model.model.head if part == "head" else model.model.student.network
    torch.nn.init.constant_(next(broken.parameters()), torch.nan)
    with pytest.raises(NotFiniteError, match=rf"epoch 0 .*{named}.* lower learning_rate"):
        fit(model, mvtec_root, tmp_path)


def test_the_foreground_option_is_where_anomalies_are_made() -> None:
    # a light square on a dark ground
    image = torch.full((1, 3, 64, 64), 0.1)
    image[..., 16:48, 16:48] = 0.9
    for foreground, outside in (("otsu", False), ("none", True)):
        synthesis = make_model(foreground=foreground).synthesis
        masks = torch.cat([synthesis(image, ["a"], epoch)[1] for epoch in range(20)])
        assert masks[..., 16:48, 16:48].any()
        masks[..., 16:48, 16:48] = 0
        assert bool(masks.any()) == outside


def test_bad_input_is_one_line(tmp_path: Path, mvtec_root: Path) -> None:
    with pytest.raises(ValueError, match=r"branches is 'none'"):
        make_model(branches="none")
    with pytest.raises(ValueError, match="pyramid_paths is 3"):
        make_model(pyramid_paths=3)
    with pytest.raises(ValueError, match=r"'levit_128' has no level at stride \[4, 8\].*`layers`"):
        make_model(backbone="levit_128", layers=None)
    with pytest.raises(ValueError, match=r"\['layer1'\].*two strides"):
        make_model(layers=["layer1"])
    with pytest.raises(ValueError, match=r"'test_vit': DMDD's pyramids"):
        make_model(backbone="test_vit", layers=None)
    with pytest.raises(ValueError, match=r"Level 'stage1' of 'hrnet_w18_small' is no module of it"):
        make_model(backbone="hrnet_w18_small", layers=None)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        fit(make_model(anomaly_source_path=str(tmp_path / "nowhere")), mvtec_root, tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty has no images"):
        fit(make_model(anomaly_source_path=str(tmp_path / "empty")), mvtec_root, tmp_path)
    model = make_model()
    model.trainer = Trainer(logger=False, default_root_dir=tmp_path, accelerator="cpu", devices=2, strategy="ddp")
    with pytest.raises(ValueError, match="There are 2 devices"):
        model.setup("fit")
    model = make_model()
    model.configure_optimizers = lambda: torch.optim.SGD(model.model.student.parameters(), 0.1)
    with pytest.raises(ValueError, match="--optimizer"):
        fit(model, mvtec_root, tmp_path)
