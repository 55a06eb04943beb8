# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""What is exported says what the model says, of images that have to be shrunk above all."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anomalib import LearningType
from anomalib.data import InferenceBatch, PredictDataset
from anomalib.deploy import OpenVINOInferencer, TorchInferencer
from anomalib.engine import Engine
from anomalib.models.components import AnomalibModule
from anomalib.pre_processing import PreProcessor
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2 import CenterCrop, Compose, InterpolationMode, Normalize, Resize, Transform

from anomalib_cdd import LabelFreePostProcessor
from anomalib_cdd.training.defaults import LabelFreeDefaults
from anomalib_cdd.training.exports import graph_transform, resize_matrix

OUTPUTS = {"pred_score", "pred_label", "anomaly_map", "pred_mask"}
SIZES = ((144, 192), (40, 31), (577, 433))


class Edges(nn.Module):
    """How much neighbours differ: nothing sees an unfiltered image sooner."""

    def forward(self, images: Tensor) -> InferenceBatch:
        steps = (images[..., 1:, 1:] - images[..., :-1, :-1]).abs().mean(dim=1, keepdim=True)
        maps = F.avg_pool2d(steps, 5, stride=1)
        return InferenceBatch(pred_score=maps.amax(dim=(-3, -2, -1)), anomaly_map=maps)


class EdgeFinder(LabelFreeDefaults, AnomalibModule):  # type: ignore[misc]  # as anomalib's own
    """The least that a model with our defaults is."""

    def __init__(self, transform: Transform) -> None:
        post_processor = LabelFreePostProcessor()
        post_processor.set_thresholds(np.linspace(0.0, 0.4, 50), np.linspace(0.0, 0.5, 500).reshape(50, 10))
        super().__init__(PreProcessor(transform), post_processor, evaluator=False, visualizer=False)
        self.model = Edges()

    trainer_arguments = property(lambda _: {})
    learning_type = property(lambda _: LearningType.ONE_CLASS)


def test_a_resize_whose_result_depends_on_the_image_is_refused(tmp_path: Path) -> None:
    model = EdgeFinder(Compose([Resize(32, antialias=True), CenterCrop(32)]))
    for size in ((40, 64), (64, 40)):  # which is no matter where there is no graph
        assert graph_transform(model.pre_processor.transform)(torch.rand(1, 3, *size)).shape == (1, 3, 32, 32)
    for steps, named in (([Resize(32, antialias=True)], r"Resize\(size=\[32\]\)"), ([CenterCrop(32)], r"CenterCrop\(")):
        model = EdgeFinder(Compose(steps))
        with pytest.raises(
            ValueError, match=named + r".* depends on the size of the image.*Resize\(\(HEIGHT, WIDTH\)\)"
        ):
            Engine(accelerator="cpu", logger=False, default_root_dir=tmp_path).export(
                model, "onnx", export_root=tmp_path
            )


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Smooth images with noise of every strength and a thin line, in three sizes."""
    folder, generator = tmp_path / "photographs", np.random.default_rng(0)
    folder.mkdir()
    for number in range(12):
        height, width = SIZES[number % 3]
        image = 120 + 60 * np.sin(np.arange(width) / 40)[None, :, None] * np.ones((height, 1, 3))
        image += generator.normal(0, 5 * number, image.shape)
        image[height // 2] = 255
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / f"{number:02}.png")
    return folder


def transforms(crop: bool = True) -> Compose:
    steps = [Resize((48, 40), antialias=True), *([CenterCrop(32)] if crop else []), Normalize([0.5] * 3, [0.5] * 3)]
    return Compose(steps)


def predicted(model: EdgeFinder, folder: Path, tmp_path: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    engine = Engine(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    batches = engine.predict(model, dataset=PredictDataset(folder))
    scores, labels = (
        torch.cat([getattr(batch, name).flatten() for batch in batches]).numpy()
        for name in ("pred_score", "pred_label")
    )
    return [path for batch in batches for path in batch.image_path], scores, labels


def test_a_torch_export_gives_the_scores_and_labels_of_the_engine(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUST_REMOTE_CODE", "1")
    model = EdgeFinder(transforms())
    paths, scores, labels = predicted(model, photographs, tmp_path)
    inferencer = TorchInferencer(model.to_torch(tmp_path), device="cpu")
    predictions = [inferencer.predict(image) for image in paths]
    assert [prediction.pred_score.item() for prediction in predictions] == scores.tolist()
    assert [prediction.pred_label.item() for prediction in predictions] == labels.tolist()


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_a_graph_gives_the_scores_and_labels_of_the_engine(
    photographs: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = EdgeFinder(transforms())
    paths, scores, labels = predicted(model, photographs, tmp_path)
    assert 0 < labels.sum() < len(labels)
    path = getattr(model, f"to_{kind}")(tmp_path)
    # a runtime that rounds to bf16 has to know where pixels are, too
    for precision, tolerance in (("f32", 1e-4), ("bf16", 0.03)):
        inferencer: Any = OpenVINOInferencer(path, device="CPU", config={"INFERENCE_PRECISION_HINT": precision})
        assert {output.any_name for output in inferencer.model.outputs} == OUTPUTS
        predictions = [inferencer.predict(image) for image in paths]
        exported = np.array([float(np.ravel(prediction.pred_score)[0]) for prediction in predictions])
        np.testing.assert_allclose(exported, scores, atol=tolerance)
        if precision == "f32":
            assert [bool(np.ravel(prediction.pred_label)[0]) for prediction in predictions] == labels.tolist()


def test_a_torch_export_scores_in_single_precision_whatever_the_processor_can(tmp_path: Path) -> None:
    exported = torch.load(EdgeFinder(transforms()).to_torch(tmp_path), weights_only=False)["model"]
    images = torch.rand(2, 3, 144, 192)
    output = exported(images)
    assert output.pred_score.dtype == torch.float32
    expected = exported.post_processor(Edges()(transforms()(images)))
    assert torch.equal(output.pred_score, expected.pred_score)


@pytest.mark.parametrize("size", [(48, 40), (200, 300), 48])
@pytest.mark.parametrize("shape", SIZES)
def test_a_graph_resizes_as_torchvision_does(size: int | tuple[int, int], shape: tuple[int, int]) -> None:
    transform = Compose([Resize(size, antialias=True), CenterCrop(32)])
    images = torch.rand(2, 3, *shape)
    torch.testing.assert_close(graph_transform(transform)(images), transform(images), atol=1e-4, rtol=0)


def test_a_resize_without_antialiasing_is_kept() -> None:
    images = torch.rand(1, 3, 144, 192)
    for transform in (Resize(32, antialias=False), Resize((30, 32), interpolation=InterpolationMode.NEAREST)):
        assert torch.equal(graph_transform(transform)(images), transform(images))


def test_the_matrix_of_a_resize_by_hand() -> None:
    # four pixels to two: triangles around 1 and 3 that reach two pixels, cut at the image's ends
    expected = torch.tensor([[3, 3, 1, 0], [0, 1, 3, 3]]) / 7
    torch.testing.assert_close(resize_matrix(4, 2), expected)
    # two to four: the nearer pixel counts three quarters
    expected = torch.tensor([[4, 0], [3, 1], [1, 3], [0, 4]]) / 4
    torch.testing.assert_close(resize_matrix(2, 4), expected)
