# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Measures of fully unsupervised anomaly detection: one trained model answers both test settings.

*No overlap*: the images injected into the training set are not in the test set. *Overlap*: they are. The two
settings share their training set, so every image is scored once and the measures are taken twice.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from anomalib import TaskType
from anomalib.data import AnomalibDataModule, AnomalibDataset
from anomalib.models import AnomalibModule
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import average_precision_score

from anomalib_cdd.evaluation.measures import NAN, aupro, auroc, pro_per_image
from anomalib_cdd.evaluation.predictions import Predictions, score_dataset
from anomalib_cdd.training.report import report_of


@dataclass(frozen=True)
class Evaluation:
    """What a trained model said of all images, and what that is worth.

    Attributes:
        clean: The test images that were not injected.
        injected: The injected images, with their true labels.
        ranking: Of the training images, see :func:`training_ranking`.
        measures: Image and pixel AUROC, AUPRO and PRO, each also ``..._overlap``, ``injected_AUROC``, ``noise_AP`` and
            counts. ``AUPRO`` is anomalib's, one curve over the whole set; ``PRO`` is RD4AD's, the mean of one curve per
            anomalous image; both up to a false positive rate of
            0.3. What the data or the model cannot answer is NaN: ``injected_AUROC``, ``noise_AP`` and
            ``noise_precision`` (at as many images as were injected) without injected images, pixel measures without
            masks or maps, everything without both normal and anomalous test images. ``out_of_sample`` is 1 where
            the ranking is by scores of what has not learned from the images, else 0: a ``noise_AP`` of one kind says
            nothing beside one of the other. Where the training set was cleaned, ``noise_AP`` and ``noise_precision``
            are of the cleaning's ranking of all its images, not of the model's of what was left, and there are
            ``kept_normals``, a share, and ``noise_left``, a number of images.
    """

    clean: Predictions
    injected: Predictions
    ranking: pd.DataFrame
    measures: dict[str, float]


def fuad_measures(
    model: AnomalibModule,
    datamodule: AnomalibDataModule,
    *,
    ranking: pd.DataFrame | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> dict[str, float]:
    """Measure a trained model without and with overlap: the measures of :func:`evaluate`.

    Raises:
        ValueError: See :func:`score_dataset`.
    """
    return evaluate(model, datamodule, ranking=ranking, device=device, progress=progress).measures


def evaluate(
    model: AnomalibModule,
    datamodule: AnomalibDataModule,
    *,
    ranking: pd.DataFrame | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
    keep_maps: bool | None = None,
) -> Evaluation:
    """Score and measure a trained model without and with overlap. Images of unknown label are left out of measures.

    Args:
        model: A trained anomalib model.
        datamodule: What it was trained on. Its ``injected_data``, if any, are the images injected into the training
            set, with their true labels and masks; ``train_data.samples.is_noise`` says which rows these are.
        ranking: What :func:`training_ranking` returned, where that is known already.
        device: Where to compute. ``None`` takes the accelerator if there is one.
        progress: Whether to show progress bars.
        keep_maps: Whether to keep anomaly maps. ``None`` keeps them where there are masks to compare them with.

    Raises:
        ValueError: See :func:`score_dataset`.
    """
    clean, injected = score_test_sets(model, datamodule, device=device, progress=progress, keep_maps=keep_maps)
    if ranking is None:
        ranking = training_ranking(model, datamodule, device=device, progress=progress)
    measures = setting_measures(clean, injected)
    cleaned = getattr(datamodule, "cleaned", None)
    if cleaned is not None:
        measures |= _noise_found(cleaned.scores, cleaned.is_noise)
        left = NAN if cleaned.noise_left is None else float(cleaned.noise_left)
        measures |= {"kept_normals": cleaned.kept_normals, "noise_left": left}
    else:
        measures |= _noise_found(ranking["score"].to_numpy(), ranking.get("is_noise"))
    measures |= {
        "out_of_sample": float(cleaned is not None or ranking["out_of_sample"].all()),
        "n_train": len(ranking),
        "n_injected": len(injected),
        "n_test_normal": int((clean.labels == 0).sum()),
        "n_test_anomalous": int((clean.labels == 1).sum()),
    }
    return Evaluation(clean, injected, ranking, measures)


def _noise_found(scores: NDArray[np.floating], is_noise: ArrayLike | None) -> dict[str, float]:
    """Return average precision of finding the noise, and precision at as many images as there are of it."""
    noise = np.zeros(len(scores), dtype=bool) if is_noise is None else np.asarray(is_noise, dtype=bool)
    if not noise.any():
        return {"noise_AP": NAN, "noise_precision": NAN}
    # of images with the score at the cut, as many as there is room for, of both kinds by their share
    cut = np.sort(scores)[-noise.sum()]
    above, at = scores > cut, scores == cut
    found = noise[above].sum() + noise[at].mean() * (noise.sum() - above.sum())
    return {
        "noise_AP": float(average_precision_score(noise, scores)),
        "noise_precision": float(found / noise.sum()),
    }


def setting_measures(clean: Predictions, injected: Predictions) -> dict[str, float]:
    """Measure one model in both settings.

    Args:
        clean: The test images that were not injected.
        injected: The injected images with their true labels and masks; none where there is no noise.

    Returns:
        The test measures by their names without and, for the overlap setting, with ``_overlap``; ``injected_AUROC``.
    """
    no_overlap = _test_measures([clean])
    overlap = _test_measures([clean, injected]) if len(injected) else no_overlap
    measures = no_overlap | {f"{name}_overlap": value for name, value in overlap.items()}
    measures["injected_AUROC"] = auroc(injected.scores, clean.scores[clean.labels == 0])
    return measures


def training_ranking(
    model: AnomalibModule,
    datamodule: AnomalibDataModule,
    *,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Rank the training images, the most suspicious first.

    A model that has met an image in training is lenient with it. Where the model reports out-of-sample scores of its
    training images (:class:`anomalib_cdd.training.report.ReportsTraining`) these rank; else its own, in-sample ones.

    Returns:
        Columns ``rank`` (from 1), ``image_path``, ``score`` (what ranks), ``model_score`` (the model's own),
        ``out_of_sample`` (whether ``score`` is; the same in every row) and, where the datamodule knows it,
        ``is_noise``.

    Raises:
        ValueError: See :func:`score_dataset`.
    """
    _ensure_setup(datamodule)
    predictions = _score(
        model, datamodule, datamodule.train_data, "training set", device=device, progress=progress, keep_maps=False
    )
    return rank_predictions(model, predictions, datamodule.train_data.samples)


def rank_predictions(model: AnomalibModule, predictions: Predictions, samples: pd.DataFrame) -> pd.DataFrame:
    """Rank the images of a data set, whose ``samples`` these are, by what was predicted of each in their order.

    Returns:
        The columns of :func:`training_ranking`.
    """
    report = report_of(model, predictions.image_paths)
    ranking = pd.DataFrame(
        {
            "image_path": predictions.image_paths,
            "score": predictions.scores if report is None else report.scores,
            "model_score": predictions.scores,
            "out_of_sample": report is not None,
        }
    )
    if "is_noise" in samples:
        ranking["is_noise"] = samples["is_noise"].to_numpy(dtype=bool)
    ranking = ranking.sort_values("score", ascending=False, kind="stable", ignore_index=True)
    ranking.insert(0, "rank", np.arange(1, len(ranking) + 1))
    return ranking


def _test_measures(parts: list[Predictions]) -> dict[str, float]:
    """Measure one test set, given in parts."""
    measures = {
        "image_AUROC": auroc(
            np.concatenate([part.scores[part.labels == 1] for part in parts]),
            np.concatenate([part.scores[part.labels == 0] for part in parts]),
        ),
    }
    if parts[0].maps is None or parts[0].masks is None:
        return measures | {"pixel_AUROC": NAN, "AUPRO": NAN, "PRO": NAN}
    pairs = [_maps_and_masks(part) for part in parts]
    pro = [value for maps, masks in pairs for value in pro_per_image(maps, masks)]
    return measures | {
        "pixel_AUROC": auroc(
            np.concatenate([maps[masks] for maps, masks in pairs]),
            np.concatenate([maps[~masks] for maps, masks in pairs]),
        ),
        "AUPRO": aupro(pairs),
        "PRO": float(np.mean(pro)) if pro else NAN,
    }


def _maps_and_masks(predictions: Predictions) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    if predictions.maps is None or predictions.masks is None:
        msg = "The test images have masks but the injected images have none: pixel measures would mix both."
        raise ValueError(msg)
    return predictions.maps, predictions.masks


def score_test_sets(
    model: AnomalibModule,
    datamodule: AnomalibDataModule,
    *,
    device: str | torch.device | None = None,
    progress: bool = True,
    keep_maps: bool | None = None,
) -> tuple[Predictions, Predictions]:
    """Score the test images that were not injected, and the injected ones with their true labels.

    Args:
        model: A trained anomalib model.
        datamodule: What it was trained on.
        device: Where to compute. ``None`` takes the accelerator if there is one.
        progress: Whether to show progress bars.
        keep_maps: Whether to keep anomaly maps. ``None`` keeps them where there are masks to compare them with.
    """
    _ensure_setup(datamodule)
    if keep_maps is None:
        keep_maps = datamodule.test_data.task == TaskType.SEGMENTATION
    test = _score(
        model, datamodule, datamodule.test_data, "test set", device=device, progress=progress, keep_maps=keep_maps
    )
    return score_injected(model, datamodule, test, device=device, progress=progress)


def score_injected(
    model: AnomalibModule,
    datamodule: AnomalibDataModule | None,
    test: Predictions,
    *,
    device: str | torch.device | None = None,
    progress: bool = True,
    autocast: bool = False,
) -> tuple[Predictions, Predictions]:
    """Part test images from injected ones, and score these where they are not among them.

    Args:
        model: A trained anomalib model.
        datamodule: Knows the injected images; one that does not, or ``None``, has none.
        test: Predictions of its test set, with or without overlap.
        device: Where to compute.
        progress: Whether to show a progress bar.
        autocast: Whether to compute in an autocast's precision where one is on.

    Returns:
        Predictions of the test images that were not injected, and of the injected ones with their true labels.
    """
    injected_data = getattr(datamodule, "injected_data", None)
    if datamodule is None or injected_data is None or len(injected_data) == 0:
        return test, test.select(np.zeros(len(test), dtype=bool))
    paths = {str(path) for path in injected_data.samples["image_path"]}
    is_injected = np.array([path in paths for path in test.image_paths], dtype=bool)
    if is_injected.sum() == len(paths):  # the datamodule was set to overlap: they are scored already
        return test.select(~is_injected), test.select(is_injected)
    kwargs = {"device": device, "progress": progress, "keep_maps": test.maps is not None, "autocast": autocast}
    injected = _score(model, datamodule, injected_data, "injected images", **kwargs)
    return test.select(~is_injected), injected


def _score(
    model: AnomalibModule,
    datamodule: AnomalibDataModule,
    dataset: AnomalibDataset,
    description: str,
    **kwargs: Any,
) -> Predictions:
    """Score one of the datamodule's datasets the way its test images are seen."""
    return score_dataset(
        model,
        dataset,
        augmentations=datamodule.test_augmentations,
        batch_size=datamodule.eval_batch_size,
        num_workers=datamodule.num_workers,
        description=description,
        **kwargs,
    )


def _ensure_setup(datamodule: AnomalibDataModule) -> None:
    if not hasattr(datamodule, "train_data"):
        datamodule.setup()
