# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Both kinds of student return what the teacher gives, at any size."""

import pytest
import torch
from anomalib.models.components.backbone.resnet_decoder import ResNetDecoder

from anomalib_cdd.teachers.backbones import Level, Teacher
from anomalib_cdd.teachers.students import DropoutBottleneck, PyramidDecoder, build_student, shrink

SIZES = [(224, 224), (256, 256), (192, 320), (100, 150)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("backbone", ["resnet18", "test_efficientnet", "test_convnext", "test_resnet"])
def test_student_returns_the_teachers_shapes(backbone: str, size: tuple[int, int]) -> None:
    teacher = Teacher(backbone, pre_trained=False)
    student = build_student(teacher, width=8)
    features = teacher(torch.randn(2, 3, *size))
    assert [level.shape for level in student(features)] == [level.shape for level in features]


def test_resnets_get_anomalibs_student_and_others_one_of_their_own() -> None:
    assert isinstance(build_student(Teacher("resnet18.tv_in1k", pre_trained=False)).decoder, ResNetDecoder)
    assert isinstance(build_student(Teacher("test_resnet", pre_trained=False)).decoder, PyramidDecoder)
    two_levels = Teacher("resnet18", layers=["layer2", "layer3"], pre_trained=False)
    assert isinstance(build_student(two_levels).decoder, PyramidDecoder)


@pytest.mark.parametrize("size", [(64, 64), (48, 96)])
def test_levels_of_one_stride_get_a_student_that_neither_shrinks_nor_grows(size: tuple[int, int]) -> None:
    teacher = Teacher("test_vit", pre_trained=False)
    student = build_student(teacher, width=8)
    features = teacher(torch.randn(2, 3, *size))
    assert isinstance(student.bottleneck, DropoutBottleneck)
    assert [level.shape for level in student(features)] == [level.shape for level in features]
    assert student.bottleneck(features).shape[-2:] == features[0].shape[-2:]
    assert not any(isinstance(module, torch.nn.ConvTranspose2d) for module in student.modules())


def test_the_bottleneck_without_a_squeeze_drops_values_in_training_alone() -> None:
    teacher = Teacher("test_vit", pre_trained=False)
    student = build_student(teacher, width=8)
    features = teacher(torch.randn(2, 3, 64, 64))
    first, second = student(features), student(features)
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    student.eval()
    assert all(torch.equal(a, b) for a, b in zip(student(features), student(features), strict=True))


def test_heads_are_linear_where_levels_are_signed() -> None:
    torch.manual_seed(0)
    for backbone, signed in (("test_convnext", True), ("test_resnet", False)):
        teacher = Teacher(backbone, pre_trained=False)
        assert {level.signed for level in teacher.levels} == {signed}
        features = teacher(torch.randn(2, 3, 64, 64))
        for level in build_student(teacher, width=8)(features):
            assert bool((level < 0).any()) == signed


def test_levels_whose_strides_do_not_double_are_refused() -> None:
    teacher = Teacher("test_resnet", pre_trained=False)
    teacher.levels = (Level("a", 32, 4, signed=False), Level("b", 48, 12, signed=False))
    with pytest.raises(ValueError, match=r"\[4, 12\]"):
        build_student(teacher)
    teacher.levels = (*teacher.levels[:1], *teacher.levels)
    with pytest.raises(ValueError, match=r"\[4, 4, 12\]"):
        build_student(teacher)


@pytest.mark.parametrize("backbone", ["resnet18", "test_resnet"])
@torch.no_grad()
def test_levels_of_fp16_and_bf16_make_no_difference_under_autocast(backbone: str) -> None:
    teacher = Teacher(backbone, pre_trained=False)
    student = build_student(teacher).eval()
    levels = [level.half() for level in teacher(torch.randn(2, 3, 64, 64))]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        kept, single = student(levels), student([level.float() for level in levels])
    assert all(torch.equal(a, b) for a, b in zip(kept, single, strict=True))


@pytest.mark.parametrize(
    ("stride", "channels", "widths"),
    [(4, 192, [48, 192]), (4, 40, [40, 40]), (8, 192, [192]), (16, 192, [192]), (2, 192, [48, 96, 192])],
)
def test_a_shrunken_level_has_the_deeper_ones_size_and_doubles_its_channels(
    stride: int, channels: int, widths: list[int]
) -> None:
    level, deep = Level("shallow", 24, stride, signed=True), Level("deep", 112, 16, signed=True)
    convolutions = shrink(level, deep, channels)
    assert [block[0].out_channels for block in convolutions] == widths
    assert convolutions(torch.randn(2, 24, 64 // stride, 96 // stride)).shape == (2, channels, 4, 6)


def test_every_parameter_that_trains_has_a_gradient() -> None:
    """Several devices wait for those of each."""
    teacher = Teacher("resnet18", pre_trained=False)
    student = build_student(teacher)
    sum(level.sum() for level in student(teacher(torch.randn(2, 3, 64, 64)))).backward()
    assert [name for name, value in student.named_parameters() if value.requires_grad and value.grad is None] == []
