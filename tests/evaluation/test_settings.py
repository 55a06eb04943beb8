# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Measures equal hand-worked values and scikit-learn; both settings come from one scoring pass."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.data import InferenceBatch
from anomalib.models import Padim
from anomalib.pre_processing import PreProcessor
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor, nn
from torchvision.transforms.v2 import CenterCrop, Compose, Resize

from anomalib_cdd.data import FolderNoisy, MVTecNoisy
from anomalib_cdd.evaluation.measures import aupro, auroc, pro_per_image
from anomalib_cdd.evaluation.predictions import score_dataset
from anomalib_cdd.evaluation.settings import _noise_found, fuad_measures, training_ranking
from anomalib_cdd.training.report import TrainingReport

SIZE = 32


class Extremes(nn.Module):
    """Scores an image by how far its pixels go from the grey in the middle; far outside [0, 1]."""

    def __init__(self, maps: bool = True, scores: bool = True, scale: float = 100.0) -> None:
        super().__init__()
        self.maps, self.scores, self.scale = maps, scores, scale
        self.seen: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> InferenceBatch:
        assert not self.training
        self.seen.append(tuple(images.shape))
        maps = (images.mean(dim=1, keepdim=True) - 0.5).abs() * self.scale
        return InferenceBatch(
            pred_score=maps.amax(dim=(1, 2, 3)) if self.scores else None,
            anomaly_map=maps if self.maps else None,
        )


def make_model(**kwargs: bool | float) -> Padim:
    transform = Compose([Resize((SIZE, SIZE)), CenterCrop(SIZE - 4)])
    model = Padim(
        backbone="resnet18", layers=["layer1"], n_features=4, pre_trained=False, pre_processor=PreProcessor(transform)
    )
    model.model = Extremes(**kwargs)
    return model


def make_datamodule(root: Path, **kwargs: float | bool | str) -> MVTecNoisy:
    datamodule = MVTecNoisy(root=root, num_workers=0, eval_batch_size=4, val_split_mode="none", **kwargs)
    datamodule.setup()
    return datamodule


@pytest.mark.parametrize("decimals", [1, 6])
def test_auroc_equals_scikit_learn_with_ties_and_without_bounds(decimals: int) -> None:
    rng = np.random.default_rng(0)
    labels = rng.random(1000) < 0.1
    scores = (rng.normal(size=1000) + labels).round(decimals).astype(np.float32) * 1000 - 40
    assert auroc(scores[labels], scores[~labels]) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_auroc_by_hand() -> None:
    # pairs (2, 1) right, (2, 2) tie, (3, 1) and (3, 2) right: 3.5 of 4
    assert auroc(np.array([2.0, 3.0]), np.array([1.0, 2.0])) == 3.5 / 4
    assert math.isnan(auroc(np.array([]), np.array([1.0])))


def test_auroc_of_all_pixels_is_that_of_their_pairs() -> None:
    rng = np.random.default_rng(1)
    maps, masks = rng.random((3, 8, 8), dtype=np.float32), rng.random((3, 8, 8)) < 0.2
    assert auroc(maps[masks], maps[~masks]) == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-12)


def test_pro_by_hand() -> None:
    # Two regions of one pixel each, ten normal pixels. From the highest score on: one region, one normal pixel
    # (FPR 0.1), the other region, the other normal pixels. The curve: (0, 0.5), (0.1, 0.5), (0.1, 1), (0.3, 1).
    scores = np.array([[12, 11, 10, 1, 2, 3], [4, 5, 6, 7, 8, 9]], dtype=np.float32)
    mask = np.array([[1, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]], dtype=bool)
    expected = (0.1 * 0.5 + 0.2 * 1.0) / 0.3
    assert pro_per_image(scores[None], mask[None]) == [pytest.approx(expected, abs=1e-6)]
    assert aupro([(scores[None], mask[None])]) == pytest.approx(expected, abs=1e-6)


def test_pro_weighs_images_alike_and_aupro_regions() -> None:
    # The first image is perfect, the second, with two regions, upside down.
    maps = np.array([[[9, 1, 1, 1, 1, 1]], [[0, 5, 0, 5, 5, 5]]], dtype=np.float32)
    masks = np.array([[[1, 0, 0, 0, 0, 0]], [[1, 0, 1, 0, 0, 0]]], dtype=bool)
    perfect, reversed_ = pro_per_image(maps, masks)
    assert perfect == pytest.approx(1.0)
    assert reversed_ == pytest.approx(0.0)
    assert aupro([(maps, masks)]) == pytest.approx(1 / 3)  # one of three regions is found at FPR 0
    assert aupro([(maps[:1], masks[:1]), (maps[1:], masks[1:])]) == pytest.approx(1 / 3)


def test_pro_is_the_limit_of_rd4ads_thresholds() -> None:
    rng = np.random.default_rng(2)
    mask = np.zeros((SIZE, SIZE), dtype=bool)
    mask[5:12, 5:12] = mask[20:25, 20:28] = True
    scores = (rng.random((SIZE, SIZE)) + 0.5 * mask).astype(np.float32)
    curve = []
    regions = [np.zeros_like(mask), np.zeros_like(mask)]
    regions[0][5:12, 5:12] = regions[1][20:25, 20:28] = True
    for threshold in np.linspace(scores.min(), scores.max(), 2000):
        found = scores > threshold
        curve.append(((found & ~mask).sum() / (~mask).sum(), np.mean([found[region].mean() for region in regions])))
    fpr, pro = np.array(sorted(curve)).T
    grid = np.linspace(0, 0.3, 3001)
    assert pro_per_image(scores[None], mask[None])[0] == pytest.approx(
        np.trapezoid(np.interp(grid, fpr, pro), grid) / 0.3, abs=3e-3
    )


def test_pro_without_normal_or_anomalous_pixels_is_left_out() -> None:
    maps = np.random.default_rng(0).random((2, 4, 4), dtype=np.float32)
    masks = np.stack([np.ones((4, 4), dtype=bool), np.zeros((4, 4), dtype=bool)])
    assert pro_per_image(maps, masks) == []
    assert math.isnan(aupro([(maps[:1], masks[:1])]))
    assert math.isnan(aupro([(maps[1:], masks[1:])]))


def test_scores_are_raw_and_in_the_order_of_the_dataset(mvtec_root: Path) -> None:
    datamodule = make_datamodule(mvtec_root)
    model = make_model().train()
    predictions = score_dataset(model, datamodule.test_data, batch_size=4, keep_maps=True, progress=False)
    assert predictions.image_paths == datamodule.test_data.samples["image_path"].tolist()
    assert predictions.labels.tolist() == datamodule.test_data.samples["label_index"].tolist()
    assert predictions.scores.max() > 1
    assert predictions.maps is not None
    assert predictions.masks is not None
    assert predictions.maps.shape == predictions.masks.shape == (len(predictions), SIZE - 4, SIZE - 4)
    np.testing.assert_allclose(predictions.maps.max(axis=(1, 2)), predictions.scores)
    assert predictions.masks.any(axis=(1, 2)).tolist() == (predictions.labels == 1).tolist()
    assert model.training
    assert datamodule.test_data.augmentations is None


def test_one_model_answers_both_settings(mvtec_root: Path) -> None:
    """The measures do not depend on which setting the datamodule is in, and equal scikit-learn on the sets by hand."""
    apart, together = (make_datamodule(mvtec_root, noise_ratio=0.3, overlap=overlap) for overlap in (False, True))
    model = make_model()
    measures = fuad_measures(model, apart, progress=False)
    assert fuad_measures(model, together, progress=False) == pytest.approx(measures)

    n_injected = int(0.3 * 12)
    assert (measures["n_train"], measures["n_injected"]) == (12 + n_injected, n_injected)
    assert (measures["n_test_normal"], measures["n_test_anomalous"]) == (6, 14 - n_injected)
    test = score_dataset(model, apart.test_data, keep_maps=True, progress=False)
    injected = score_dataset(model, apart.injected_data, keep_maps=True, progress=False)
    everything = score_dataset(model, together.test_data, keep_maps=True, progress=False)
    assert measures["image_AUROC"] == pytest.approx(roc_auc_score(test.labels, test.scores))
    assert measures["image_AUROC_overlap"] == pytest.approx(roc_auc_score(everything.labels, everything.scores))
    assert measures["pixel_AUROC_overlap"] == pytest.approx(
        roc_auc_score(everything.masks.ravel(), everything.maps.ravel())
    )
    normal = test.scores[test.labels == 0]
    assert measures["injected_AUROC"] == pytest.approx(
        roc_auc_score([1] * len(injected) + [0] * len(normal), [*injected.scores, *normal])
    )
    assert measures["AUPRO"] != measures["AUPRO_overlap"]
    assert measures["PRO_overlap"] == pytest.approx(np.mean(pro_per_image(everything.maps, everything.masks)))


def test_precision_counts_ties_by_their_share() -> None:
    scores = np.array([3.0, 1, 1, 1, 1, 0])
    for noise in ([1, 1, 0, 0, 1, 0], [1, 0, 0, 1, 1, 0]):
        # of three the first is sure, and the other two are any of four of which two are noise
        assert _noise_found(scores, noise)["noise_precision"] == pytest.approx((1 + 2 * 0.5) / 3)
    assert _noise_found(np.arange(6.0), [0, 0, 0, 1, 0, 1])["noise_precision"] == 0.5


def test_training_ranking_knows_its_noise(mvtec_root: Path) -> None:
    datamodule = make_datamodule(mvtec_root, noise_ratio=0.3)
    model = make_model()
    ranking = training_ranking(model, datamodule, progress=False)
    assert ranking["rank"].tolist() == list(range(1, len(ranking) + 1))
    assert ranking["score"].is_monotonic_decreasing
    truth = datamodule.train_data.samples.set_index("image_path")["is_noise"]
    assert ranking["is_noise"].tolist() == truth[ranking["image_path"]].tolist()
    expected = average_precision_score(ranking["is_noise"], ranking["score"])
    assert fuad_measures(model, datamodule, ranking=ranking, progress=False)["noise_AP"] == pytest.approx(expected)


def test_without_noise_the_settings_coincide(mvtec_root: Path) -> None:
    measures = fuad_measures(make_model(), make_datamodule(mvtec_root, noise_ratio=0.0), progress=False)
    for name in ("image_AUROC", "pixel_AUROC", "AUPRO", "PRO"):
        assert measures[name] == measures[f"{name}_overlap"]
        assert 0 <= measures[name] <= 1
    assert math.isnan(measures["injected_AUROC"])
    assert math.isnan(measures["noise_AP"])


@pytest.mark.parametrize("model", [{"maps": False}, {"scores": False}])
def test_models_without_maps_or_without_scores(mvtec_root: Path, model: dict[str, bool]) -> None:
    measures = fuad_measures(make_model(**model), make_datamodule(mvtec_root), progress=False)
    assert not math.isnan(measures["image_AUROC"])
    assert math.isnan(measures["pixel_AUROC"]) == ("maps" in model)
    assert math.isnan(measures["PRO_overlap"]) == ("maps" in model)


def test_data_without_masks(folder_root: Path) -> None:
    datamodule = FolderNoisy(
        name="folder", root=folder_root, normal_dir="good", abnormal_dir="defect", num_workers=0, val_split_mode="none"
    )
    measures = fuad_measures(make_model(), datamodule, progress=False)
    assert 0 <= measures["image_AUROC"] <= 1
    assert math.isnan(measures["pixel_AUROC"])
    assert math.isnan(measures["PRO"])


def test_a_test_set_without_anomalies(mvtec_root: Path) -> None:
    datamodule = make_datamodule(mvtec_root)
    labels = datamodule.test_data.samples["label_index"]
    datamodule.test_data = datamodule.test_data.subsample(labels.index[labels == 0].tolist()[:1])
    measures = fuad_measures(make_model(), datamodule, progress=False)
    assert math.isnan(measures["image_AUROC"])
    assert math.isnan(measures["PRO"])
    assert 0 <= measures["image_AUROC_overlap"] <= 1
    assert 0 <= measures["PRO_overlap"] <= 1


def test_a_diverged_model_is_named(mvtec_root: Path) -> None:
    with pytest.raises(ValueError, match="Padim gives scores that are not finite"):
        fuad_measures(make_model(scale=float("nan")), make_datamodule(mvtec_root), progress=False)


def test_random_training_augmentations_do_not_reach_the_ranking(mvtec_root: Path) -> None:
    datamodule = make_datamodule(mvtec_root)
    model = make_model()
    before = training_ranking(model, datamodule, progress=False)
    datamodule.train_data.augmentations = lambda image, mask: (torch.zeros_like(image), mask)
    assert training_ranking(model, datamodule, progress=False).equals(before)


def test_a_report_of_the_training_ranks_and_says_so(mvtec_root: Path) -> None:
    datamodule, model = make_datamodule(mvtec_root, noise_ratio=0.3), make_model()
    own = training_ranking(model, datamodule, progress=False)
    assert not own["out_of_sample"].any()
    assert own["score"].tolist() == own["model_score"].tolist()
    assert fuad_measures(model, datamodule, progress=False)["out_of_sample"] == 0
    paths = datamodule.train_data.samples["image_path"].tolist()
    said = np.linspace(0, 1, len(paths), dtype=np.float32)
    model.training_report = lambda: TrainingReport(paths[::-1], said)
    ranking = training_ranking(model, datamodule, progress=False)
    assert ranking["image_path"].tolist() == paths
    assert ranking["out_of_sample"].all()
    assert set(ranking["model_score"]) == set(own["model_score"])
    measures = fuad_measures(model, datamodule, progress=False)
    assert measures["out_of_sample"] == 1
    is_noise = datamodule.train_data.samples["is_noise"]
    assert measures["noise_AP"] == pytest.approx(average_precision_score(is_noise, said[::-1]))
    # of one image nobody was asked who had not learned from it
    model.training_report = lambda: TrainingReport(paths, np.where(said > 0, said, np.nan))
    assert not training_ranking(model, datamodule, progress=False)["out_of_sample"].any()
