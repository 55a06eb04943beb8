# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Cdd with a vision transformer as its teacher: it trains, scores and exports at a size other than the weights'."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from anomalib.data import PredictDataset
from anomalib.deploy import ExportType, OpenVINOInferencer, TorchInferencer
from anomalib.engine import Engine

from anomalib_cdd import Cdd, MVTecNoisy

# OpenVINO computes in bf16 where the processor can
SINGLE_PRECISION = {"INFERENCE_PRECISION_HINT": "f32"}
SCRATCHES = Path("bottle/test/scratch")


def test_it_trains_scores_and_exports(
    make_model: Callable[..., Cdd],
    make_data: Callable[..., MVTecNoisy],
    make_engine: Callable[..., Engine],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRUST_REMOTE_CODE", "1")  # of anomalib's torch inferencer
    model, data, engine = make_model(backbone="test_vit"), make_data(), make_engine(max_epochs=2)
    before = {name: value.clone() for name, value in model.model.student.state_dict().items()}
    engine.fit(model, datamodule=data)
    after = model.model.student.state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in before if name.endswith("weight"))
    batches = engine.predict(model, dataset=PredictDataset(path=data.root / SCRATCHES), return_predictions=True)
    expected = {str(path): float(batch.pred_score[i]) for batch in batches for i, path in enumerate(batch.image_path)}
    assert len(expected) == 8
    plain = TorchInferencer(engine.export(model, ExportType.TORCH, export_root=tmp_path), device="cpu")
    graph = engine.export(model, ExportType.ONNX, export_root=tmp_path)
    onnx = OpenVINOInferencer(graph, device="CPU", config=SINGLE_PRECISION)
    for image, score in expected.items():
        for inferencer in (plain, onnx):
            assert float(inferencer.predict(image).pred_score.squeeze()) == pytest.approx(score, abs=1e-3)


def test_a_size_that_the_patches_do_not_divide_is_one_line(
    make_model: Callable[..., Cdd],
    make_data: Callable[..., MVTecNoisy],
    make_engine: Callable[..., Engine],
) -> None:
    pre_processor = Cdd.configure_pre_processor(image_size=(72, 72), center_crop_size=(72, 72))
    model = make_model(backbone="test_vit", pre_processor=pre_processor)
    with pytest.raises(ValueError, match=r"'test_vit' takes .* 16; these are 72 x 72\. .* 64 x 64\.$"):
        make_engine().fit(model, datamodule=make_data())
