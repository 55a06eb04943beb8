# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Folded networks compute what the networks compute."""

import copy
import pickle

import pytest
import torch
from torch import nn

from anomalib_cdd.backbones import Teacher
from anomalib_cdd.folding import folded
from anomalib_cdd.models.cdd.torch_model import CddModel

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def trained(model: nn.Module) -> nn.Module:
    """Give every normalisation statistics and weights that it does not have from the start."""
    generator = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.running_mean, module.running_var, module.weight, module.bias):
                values.data.copy_(0.5 + torch.rand(values.shape, generator=generator))
    return model.eval()


def normalisations(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize("backbone", ["resnet18", "efficientnet_lite0", "mobilenetv3_small_050", "convnext_atto"])
@torch.no_grad()
def test_teacher_and_student_say_the_same_with_fewer_layers(backbone: str) -> None:
    model = trained(CddModel(Teacher(backbone, pre_trained=False), student_width=8))
    levels = model.teacher(IMAGES)
    for network, argument in ((model.teacher, IMAGES), (model.student, levels)):
        before = copy.deepcopy(network.state_dict())
        fold = folded(network, argument)
        assert normalisations(fold) <= 1 < max(2, normalisations(network))
        for expected, output in zip(network(argument), fold(argument), strict=True):
            torch.testing.assert_close(output, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())
        assert all(torch.equal(value, network.state_dict()[name]) for name, value in before.items())


class _UsedTwice(nn.Module):
    """What folding would change: the convolution is also read beside its normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        convolved = self.conv(images)
        return [self.norm(convolved), convolved.clone()]


@torch.no_grad()
def test_what_folding_would_change_stays_as_it_is() -> None:
    network = trained(_UsedTwice())
    fold = folded(network, IMAGES)
    assert normalisations(fold) == 1
    for expected, output in zip(network(IMAGES), fold(IMAGES), strict=True):
        torch.testing.assert_close(output, expected)


@torch.no_grad()
def test_precision_is_of_the_copy_alone() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
    fold = folded(network, IMAGES, torch.bfloat16)
    assert fold(IMAGES.bfloat16()).dtype == torch.bfloat16
    assert network(IMAGES).dtype == torch.float32


@pytest.fixture
def model() -> CddModel:
    return trained(CddModel(Teacher("resnet18", pre_trained=False)))


def test_inference_is_folded_and_says_what_the_networks_say(model: CddModel) -> None:
    plain = model(IMAGES)  # with gradients: as it is
    assert model._folded is None
    numbers = torch.get_rng_state()
    with torch.inference_mode():
        fast = model(IMAGES)
    assert model._folded is not None
    assert torch.equal(torch.get_rng_state(), numbers)
    torch.testing.assert_close(fast.anomaly_map, plain.anomaly_map.detach(), rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_inference_sees_every_change_of_a_weight(model: CddModel) -> None:
    model(IMAGES)
    before = model._folded
    model(IMAGES)
    assert model._folded is before
    model.student.state_dict()["bottleneck.bn3.running_mean"].add_(3)
    changed = model(IMAGES).pred_score
    assert model._folded is not before
    other = trained(CddModel(Teacher("resnet18", pre_trained=False)))
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(IMAGES).pred_score, changed)


@torch.no_grad()
def test_training_copies_and_pickles_carry_no_second_network(model: CddModel) -> None:
    names = list(model.state_dict())
    model(IMAGES)
    assert list(model.state_dict()) == names
    assert copy.deepcopy(model)._folded is None
    assert pickle.loads(pickle.dumps(model))._folded is None  # noqa: S301  # its own
    assert model.eval()._folded is not None
    assert model.train()._folded is None


@torch.no_grad()
def test_autocast_to_bf16_finds_weights_in_bf16(model: CddModel) -> None:
    plain = model(IMAGES).anomaly_map
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(IMAGES).anomaly_map
    assert next(model._folded.networks[1].parameters()).dtype == torch.bfloat16
    assert output.dtype == torch.float32
    assert 0 < (output - plain).abs().max() < 0.05 * plain.max()
    model(IMAGES)
    assert next(model._folded.networks[1].parameters()).dtype == torch.float32
    model.double()(IMAGES.double())
    assert next(model._folded.networks[1].parameters()).dtype == torch.float64
