# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Tests of exports wait for one trace of a model, and for another when anything of it has changed."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from traces import kept_traces


def test_a_model_is_traced_again_when_anything_of_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traced: list[str] = []

    def export(model: nn.Module, args: tuple[torch.Tensor, ...], f: str, **options: Any) -> None:
        traced.append(f)
        Path(f).write_text(str(len(traced)))
        Path(f"{f}.data").write_text("weights")

    def exported(model: nn.Module, name: str, width: int = 2, **options: Any) -> str:
        folder = tmp_path / name
        folder.mkdir()
        torch.onnx.export(model, (torch.zeros(1, width),), str(folder / "model.onnx"), **options)
        assert (folder / "model.onnx.data").read_text() == "weights"
        return (folder / "model.onnx").read_text()

    monkeypatch.setattr(torch.onnx, "export", export)
    model = nn.Sequential(nn.Linear(2, 1))
    with kept_traces():
        assert [exported(model, "first"), exported(model, "second")] == ["1", "1"]
        assert exported(model, "wider", width=3) == "2"
        assert exported(model, "options", opset_version=14) == "3"
        assert exported(copy.deepcopy(model), "another") == "4"
        model[0].weight.data += 1
        assert exported(model, "trained") == "5"
        model.append(nn.ReLU())
        assert exported(model, "longer") == "6"
        assert exported(model, "again") == "6"
