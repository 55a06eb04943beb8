# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Vision transformers as teachers, untrained: their patch tokens as maps, at any multiple of the patch."""

from pathlib import Path

import numpy as np
import openvino
import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed

from anomalib_cdd.teachers.backbones import Teacher

SMALL = "test_vit"


def test_levels_are_the_blocks_that_end_the_first_three_quarters() -> None:
    teacher = Teacher("vit_tiny_patch16_224", pre_trained=False)
    assert [level[:3] for level in teacher.levels] == [(f"blocks.{block}", 192, 16) for block in (2, 5, 8)]
    assert all(level.signed for level in teacher.levels)
    chosen = Teacher("vit_tiny_patch16_224", layers=["blocks.11", "blocks.0"], pre_trained=False)
    assert [level.name for level in chosen.levels] == ["blocks.0", "blocks.11"]
    with pytest.raises(ValueError, match=r"blocks\.12.*blocks\.11"):
        Teacher("vit_tiny_patch16_224", layers=["blocks.12"], pre_trained=False)


@pytest.mark.parametrize("backbone", [SMALL, "vit_small_patch14_reg4_dinov2"])
def test_maps_are_the_patch_tokens_without_class_and_registers(backbone: str) -> None:
    """Against timm's own tokens, of which the first are the class and the registers."""
    teacher = Teacher(backbone, pre_trained=False)
    patch = teacher.levels[0].stride
    images = torch.randn(2, 3, 2 * patch, 3 * patch)
    plain = timm.create_model(backbone, pretrained=False, dynamic_img_size=True).eval()
    own = teacher.network.network.model.state_dict()
    plain.load_state_dict(own | {name: value for name, value in plain.state_dict().items() if name not in own})
    block = int(teacher.levels[0].name.removeprefix("blocks."))
    with torch.no_grad():
        tokens = plain.forward_intermediates(
            images, indices=[block], output_fmt="NLC", intermediates_only=True, return_prefix_tokens=True
        )
        level = teacher(images)[0]
    patches, prefix = tokens[0]
    assert prefix.shape[1] == plain.num_prefix_tokens > 0
    assert level.shape == (2, patches.shape[2], 2, 3)
    assert torch.allclose(level.flatten(2).mT, patches, atol=1e-5)


def test_images_of_another_size_than_the_weights_are_taken() -> None:
    teacher = Teacher(SMALL, pre_trained=False)
    images = torch.randn(1, 3, 64, 64)
    before = teacher(images)
    assert teacher(torch.randn(1, 3, 160, 160))[0].shape[-2:] == (10, 10)
    assert all(torch.equal(a, b) for a, b in zip(before, teacher(images), strict=True))


def test_a_size_that_is_no_multiple_of_the_patch_is_one_line() -> None:
    teacher = Teacher("vit_small_patch14_dinov2", pre_trained=False)
    with pytest.raises(ValueError, match=r"multiples of its patch, 14; these are 256 x 240\. .* 252 x 238\.$"):
        teacher(torch.randn(1, 3, 256, 240))


def test_transformers_of_one_size_are_refused_by_name() -> None:
    for backbone in ("beit_base_patch16_224", "swin_tiny_patch4_window7_224", "efficientformerv2_s0"):
        with pytest.raises(ValueError, match=rf"'{backbone}' takes one size of images only"):
            Teacher(backbone, pre_trained=False)


def test_weights_by_file_in_timms_form(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = timm.create_model(SMALL, pretrained=False)
    torch.save(source.state_dict(), tmp_path / "vit.pth")
    teacher, state = Teacher(SMALL, weights=tmp_path / "vit.pth"), source.state_dict()
    for name, value in teacher.network.network.model.state_dict().items():
        assert torch.equal(value, state[name])
    with pytest.raises(ValueError, match=r"vit\.pth is not of backbone 'vit_tiny_patch16_224'"):
        Teacher("vit_tiny_patch16_224", weights=tmp_path / "vit.pth")


def test_weights_by_file_as_dinov2_ships_them(tmp_path: Path) -> None:
    """Its files name the registers otherwise and keep a token for masked images and the class's own position."""
    backbone = "vit_small_patch14_reg4_dinov2"
    torch.manual_seed(1)
    state = timm.create_model(backbone, pretrained=False).state_dict()
    registers, positions = state.pop("reg_token"), state.pop("pos_embed")
    of_class = torch.randn(1, 1, positions.shape[2])
    shipped = state | {
        "register_tokens": registers,
        "mask_token": torch.zeros(1, positions.shape[2]),
        "pos_embed": torch.cat([of_class, positions], dim=1),
    }
    torch.save(shipped, tmp_path / "dinov2.pth")
    loaded = Teacher(backbone, weights=tmp_path / "dinov2.pth").network.network.model.state_dict()
    assert torch.equal(loaded["reg_token"], registers)
    assert torch.equal(loaded["pos_embed"], positions)
    assert torch.equal(loaded["cls_token"], state["cls_token"] + of_class)


def test_position_embeddings_are_resampled_from_the_weights_as_they_are_now() -> None:
    teacher = Teacher(SMALL, pre_trained=False)
    images = torch.randn(1, 3, 64, 64)
    before = teacher(images)[0]
    transformer = teacher.network.network.model
    transformer.load_state_dict(transformer.state_dict() | {"pos_embed": torch.randn_like(transformer.pos_embed)})
    assert not torch.equal(teacher(images)[0], before)
    expected = resample_abs_pos_embed(transformer.pos_embed, [4, 4], [10, 10], transformer.num_prefix_tokens)
    with torch.no_grad():
        native = timm.create_model(SMALL, pretrained=False, img_size=64, features_only=True, out_indices=[0]).eval()
        state = transformer.state_dict() | {"pos_embed": expected}
        native.model.load_state_dict({name: state[name] for name in native.model.state_dict()})
        assert torch.allclose(native(images)[0], teacher(images)[0], atol=1e-6)


def test_an_export_has_the_same_maps_at_a_size_other_than_the_weights(tmp_path: Path) -> None:
    teacher = Teacher("vit_tiny_patch16_224", layers=["blocks.0"], pre_trained=False)
    torch.nn.init.normal_(teacher.network.network.model.pos_embed)  # near zero in an untrained transformer
    images = torch.randn(2, 3, 64, 96)
    expected = teacher(images)
    torch.onnx.export(teacher, (images,), tmp_path / "teacher.onnx", opset_version=14, dynamo=True, verbose=False)
    graph = openvino.Core().compile_model(tmp_path / "teacher.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for level, output in zip(expected, graph(images.numpy()).values(), strict=True):
        assert np.allclose(level.numpy(), output, atol=1e-4)
