# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Measures of fully unsupervised anomaly detection: one trained model answers both test settings.

*No overlap*: the images injected into the training set are not in the test set. *Overlap*: they are. The two
settings share their training set, so every image is scored once and the measures are taken twice.
Scores and maps are the model's own, before anomalib's post-processor: its normalisation clips, and clipping makes ties.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from anomalib import TaskType
from anomalib.data import AnomalibDataModule, AnomalibDataset, ImageBatch
from anomalib.data.transforms.utils import extract_transforms_by_type
from anomalib.models import AnomalibModule
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import Compose, Resize, Transform
from tqdm.auto import tqdm

from anomalib_cdd.measures import NAN, aupro, auroc, pro_per_image

IMAGE_MEASURES = ("image_AUROC", "image_AUROC_overlap", "injected_AUROC", "noise_AP", "noise_precision")
PIXEL_MEASURES = ("pixel_AUROC", "pixel_AUROC_overlap", "AUPRO", "AUPRO_overlap", "PRO", "PRO_overlap")


@dataclass(frozen=True)
class Predictions:
    """What a model says of N images, in the order of the dataset.

    Attributes:
        scores: Raw image scores, shape ``(N,)``, higher is more anomalous; any range.
        labels: 0 normal, 1 anomalous, -1 unknown; shape ``(N,)``.
        image_paths: N paths.
        maps: Raw anomaly maps ``(N, H, W)``, or ``None``.
        masks: True masks ``(N, H, W)`` of bool, or ``None``.
    """

    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    image_paths: list[str]
    maps: NDArray[np.float32] | None = None
    masks: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def concatenate(cls, parts: "Sequence[Predictions]") -> "Predictions":
        """Join predictions of the same model, at least one."""
        maps = [part.maps for part in parts if part.maps is not None]
        masks = [part.masks for part in parts if part.masks is not None]
        return cls(
            scores=np.concatenate([part.scores for part in parts]),
            labels=np.concatenate([part.labels for part in parts]),
            image_paths=[path for part in parts for path in part.image_paths],
            maps=np.concatenate(maps) if len(maps) == len(parts) else None,
            masks=np.concatenate(masks) if len(masks) == len(parts) else None,
        )

    def select(self, keep: NDArray[np.bool_]) -> "Predictions":
        """Return the images where ``keep``, shape ``(N,)``, is true."""
        if keep.all():
            return self
        return Predictions(
            scores=self.scores[keep],
            labels=self.labels[keep],
            image_paths=[path for path, kept in zip(self.image_paths, keep, strict=True) if kept],
            maps=None if self.maps is None else self.maps[keep],
            masks=None if self.masks is None else self.masks[keep],
        )


@dataclass(frozen=True)
class Evaluation:
    """What a trained model said of all images, and what that is worth.

    Attributes:
        clean: The test images that were not injected.
        injected: The injected images, with their true labels.
        ranking: Of the training images, see :func:`training_ranking`.
        measures: ``IMAGE_MEASURES``, ``PIXEL_MEASURES`` and counts. ``AUPRO`` is anomalib's, one curve over the whole
            set; ``PRO`` is RD4AD's, the mean of one curve per anomalous image; both up to a false positive rate of
            0.3. What the data or the model cannot answer is NaN: ``injected_AUROC``, ``noise_AP`` and
            ``noise_precision`` (at as many images as were injected) without injected images, pixel measures without
            masks or maps, everything without both normal and anomalous test images.
        training: The training images in the order of the data set, if they were scored for the ranking.
    """

    clean: Predictions
    injected: Predictions
    ranking: pd.DataFrame
    measures: dict[str, float]
    training: Predictions | None = None


@torch.no_grad()
def score_dataset(
    model: AnomalibModule,
    dataset: AnomalibDataset,
    *,
    augmentations: Transform | None = None,
    batch_size: int = 32,
    num_workers: int = 0,
    keep_maps: bool = False,
    device: str | torch.device | None = None,
    progress: bool = True,
    description: str = "scoring",
) -> Predictions:
    """Score every image as anomalib's test loop does, but in full precision and before the post-processor.

    Args:
        model: A trained anomalib model.
        dataset: The images. Its own augmentations are not applied: those of a training set are random.
        augmentations: Deterministic transform before the model's own, such as ``datamodule.test_augmentations``.
        batch_size: Images a batch.
        num_workers: Processes that read images.
        keep_maps: Whether to keep anomaly maps and masks: 5 bytes a pixel.
        device: Where to compute. ``None`` takes the accelerator if there is one.
        progress: Whether to show a progress bar.
        description: What stands before the bar.

    Returns:
        One row per image, in the order of ``dataset``.

    Raises:
        ValueError: If the model gives neither scores nor maps, or a score that is not a finite number, or if maps and
            masks differ in size.
    """
    gathered = _Gathered(len(dataset), keep_maps)
    batches = iterate_predictions(
        model,
        dataset,
        augmentations=augmentations,
        batch_size=batch_size,
        num_workers=num_workers,
        device=device,
        progress=progress,
        description=description,
    )
    for batch, scores, maps, masks in batches:
        gathered.add(batch, scores, maps, masks)
    return gathered.result()


@torch.no_grad()
def iterate_predictions(
    model: AnomalibModule,
    dataset: AnomalibDataset,
    *,
    augmentations: Transform | None = None,
    batch_size: int = 32,
    num_workers: int = 0,
    device: str | torch.device | None = None,
    progress: bool = True,
    description: str = "scoring",
) -> Iterator[tuple[ImageBatch, Tensor, Tensor | None, Tensor | None]]:
    """Score batch by batch; arguments as in :func:`score_dataset`.

    Yields:
        The batch as read, raw scores ``(B,)``, raw maps ``(B, H, W)`` and true masks, the latter two where there are
        any.

    Raises:
        ValueError: See :func:`score_dataset`.
    """
    transform = getattr(model.pre_processor, "transform", None)
    loader = _loader(dataset, augmentations, transform, batch_size, num_workers)
    home, was_training = model.device, model.training
    device = torch.device(device or torch.accelerator.current_accelerator(check_available=True) or "cpu")
    model.to(device).eval()
    try:
        for batch in tqdm(loader, desc=description, unit="batch", leave=False, disable=not progress):
            images, masks = batch.image.to(device), batch.gt_mask
            if transform is not None:
                images, masks = transform(images, masks)
            yield batch, *_raw_predictions(model, images), masks
    finally:
        model.to(home).train(was_training)


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
    keep_maps: bool = False,
) -> Evaluation:
    """Score and measure a trained model without and with overlap. Images of unknown label are left out of measures.

    Args:
        model: A trained anomalib model.
        datamodule: What it was trained on. Its ``injected_data``, if any, are the images injected into the training
            set, with their true labels and masks; ``train_data.samples.is_noise`` says which rows these are.
        ranking: What :func:`training_ranking` returned, where that is known already.
        device: Where to compute. ``None`` takes the accelerator if there is one.
        progress: Whether to show progress bars.
        keep_maps: Whether to keep the anomaly maps even where there are no masks to compare them with.

    Raises:
        ValueError: See :func:`score_dataset`.
    """
    clean, injected = _score_test_sets(model, datamodule, device, progress, keep_maps)
    training = None
    if ranking is None:
        training = score_training_set(
            model, datamodule, keep_maps=clean.maps is not None, device=device, progress=progress
        )
        ranking = rank_training_set(model, datamodule, training)
    measures = setting_measures(clean, injected)
    measures["noise_AP"] = measures["noise_precision"] = NAN
    if "is_noise" in ranking and ranking["is_noise"].any():
        measures["noise_AP"] = float(average_precision_score(ranking["is_noise"], ranking["score"]))
        measures["noise_precision"] = float(ranking["is_noise"].head(int(ranking["is_noise"].sum())).mean())
    measures |= {
        "n_train": len(ranking),
        "n_injected": len(injected),
        "n_test_normal": int((clean.labels == 0).sum()),
        "n_test_anomalous": int((clean.labels == 1).sum()),
    }
    return Evaluation(clean, injected, ranking, measures, training)


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

    A model that has met an image in training is lenient with it. One that knows better, such as :class:`Cdd` with its
    cross-domain students, has a method ``training_suspicion`` that gives a score by image path, and is ranked by that;
    any other by its own score of each image.

    Returns:
        Columns ``rank`` (from 1), ``image_path``, ``score`` (what ranks), ``model_score`` (the model's own) and, where
        the datamodule knows it, ``is_noise``.

    Raises:
        ValueError: See :func:`score_dataset`.
    """
    predictions = score_training_set(model, datamodule, device=device, progress=progress)
    return rank_training_set(model, datamodule, predictions)


def score_training_set(model: AnomalibModule, datamodule: AnomalibDataModule, **kwargs: Any) -> Predictions:
    """Score the training images the way the test images are seen; keyword arguments as in :func:`score_dataset`."""
    _ensure_setup(datamodule)
    return _score(model, datamodule, datamodule.train_data, "training set", **kwargs)


def rank_training_set(model: AnomalibModule, datamodule: AnomalibDataModule, predictions: Predictions) -> pd.DataFrame:
    """Rank training images that are scored already; see :func:`training_ranking`."""
    return rank_predictions(model, predictions, datamodule.train_data.samples)


def rank_predictions(model: AnomalibModule, predictions: Predictions, samples: pd.DataFrame) -> pd.DataFrame:
    """Rank the images of a data set, whose ``samples`` these are, by what was predicted of each in their order.

    Returns:
        The columns of :func:`training_ranking`.
    """
    ranking = pd.DataFrame(
        {
            "image_path": predictions.image_paths,
            "score": _suspicion(model, predictions),
            "model_score": predictions.scores,
        }
    )
    if "is_noise" in samples:
        ranking["is_noise"] = samples["is_noise"].to_numpy(dtype=bool)
    ranking = ranking.sort_values("score", ascending=False, kind="stable", ignore_index=True)
    ranking.insert(0, "rank", np.arange(1, len(ranking) + 1))
    return ranking


def _suspicion(model: AnomalibModule, predictions: Predictions) -> NDArray[np.float32]:
    """Return what the training said of these images, or the model's own scores where it said nothing of one."""
    ask: Any = getattr(model, "training_suspicion", None)
    told = ask() if ask else None
    if not told or not all(path in told for path in predictions.image_paths):
        return predictions.scores
    return np.array([told[path] for path in predictions.image_paths], dtype=np.float32)


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


def _score_test_sets(
    model: AnomalibModule,
    datamodule: AnomalibDataModule,
    device: str | torch.device | None,
    progress: bool,
    keep_maps: bool,
) -> tuple[Predictions, Predictions]:
    """Score the test images that were not injected, and the injected ones."""
    _ensure_setup(datamodule)
    keep_maps = keep_maps or datamodule.test_data.task == TaskType.SEGMENTATION
    kwargs = {"device": device, "progress": progress, "keep_maps": keep_maps}
    test = _score(model, datamodule, datamodule.test_data, "test set", **kwargs)
    return score_injected(model, datamodule, test, device=device, progress=progress)


def score_injected(
    model: AnomalibModule,
    datamodule: AnomalibDataModule | None,
    test: Predictions,
    *,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> tuple[Predictions, Predictions]:
    """Part test images from injected ones, and score these where they are not among them.

    Args:
        model: A trained anomalib model.
        datamodule: Knows the injected images; one that does not, or ``None``, has none.
        test: Predictions of its test set, with or without overlap.
        device: Where to compute.
        progress: Whether to show a progress bar.

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
    kwargs = {"device": device, "progress": progress, "keep_maps": test.maps is not None}
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


def _loader(
    dataset: AnomalibDataset,
    augmentations: Transform | None,
    transform: Transform | None,
    batch_size: int,
    num_workers: int,
) -> DataLoader:
    """Resize before collating, as anomalib's datamodules do: images of one set may differ in size."""
    steps = [step for step in (augmentations, *extract_transforms_by_type(transform, Resize)[:1]) if step is not None]
    dataset = copy.copy(dataset)
    dataset.augmentations = Compose(steps) if steps else None
    return DataLoader(dataset, batch_size, shuffle=False, num_workers=num_workers, collate_fn=dataset.collate_fn)


def _raw_predictions(model: AnomalibModule, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return scores ``(B,)`` and maps ``(B, H, W)`` before the post-processor."""
    dtype: Any = model.dtype
    with torch.autocast(images.device.type, enabled=False):
        output = model.model(images.to(dtype))
    return raw_scores_and_maps(output, len(images), type(model).__name__)


def raw_scores_and_maps(output: Any, count: int, name: str) -> tuple[Tensor, Tensor | None]:
    """Bring what a model says into one form.

    Args:
        output: Has ``pred_score`` and ``anomaly_map``, either of which may be ``None``.
        count: Number of images B.
        name: The model's, for messages.

    Returns:
        Scores ``(B,)`` and maps ``(B, H, W)`` in fp32; the maximum of the map where there is no score.

    Raises:
        ValueError: If there is neither, or a score is not a finite number.
    """
    scores, maps = output.pred_score, output.anomaly_map
    maps = None if maps is None else maps.float().reshape(count, *maps.shape[-2:])
    if scores is None:
        if maps is None:
            msg = f"{name} gives neither an image score nor an anomaly map."
            raise ValueError(msg)
        scores = maps.amax(dim=(-2, -1))  # as anomalib's post-processor does
    scores = scores.float().reshape(-1)
    if not torch.isfinite(scores).all():
        msg = f"{name} gives scores that are not finite numbers: its training has diverged."
        raise ValueError(msg)
    return scores, maps


class _Gathered:
    """Batches written straight into arrays of the final size, so that maps are held once."""

    def __init__(self, n_images: int, keep_maps: bool) -> None:
        self.keep_maps = keep_maps
        self.filled = 0
        self.predictions = Predictions(
            scores=np.empty(n_images, dtype=np.float32),
            labels=np.full(n_images, -1, dtype=np.int64),
            image_paths=[],
        )

    def add(self, batch: ImageBatch, scores: Tensor, maps: Tensor | None, masks: Tensor | None) -> None:
        rows = slice(self.filled, self.filled + len(scores))
        self.filled = rows.stop
        self.predictions.scores[rows] = scores.cpu().numpy()
        self.predictions.image_paths.extend(str(path) for path in batch.image_path or [])
        if batch.gt_label is not None:
            self.predictions.labels[rows] = batch.gt_label.cpu().numpy()
        if self.keep_maps and maps is not None:
            self._add_maps(rows, maps, masks)

    def _add_maps(self, rows: slice, maps: Tensor, masks: Tensor | None) -> None:
        shape = (len(self.predictions), *maps.shape[-2:])
        if self.predictions.maps is None:
            self.predictions = replace(self.predictions, maps=np.empty(shape, dtype=np.float32))
        if masks is not None and self.predictions.masks is None:
            self.predictions = replace(self.predictions, masks=np.zeros(shape, dtype=bool))
        if self.predictions.maps is not None:
            self.predictions.maps[rows] = maps.cpu().numpy()
        if masks is None or self.predictions.masks is None:
            return
        if masks.shape[-2:] != maps.shape[-2:]:
            msg = (
                f"Anomaly maps are {tuple(maps.shape[-2:])} but masks {tuple(masks.shape[-2:])}: the pre-processor's "
                "transform has to leave both at the same size."
            )
            raise ValueError(msg)
        self.predictions.masks[rows] = masks.cpu().numpy()

    def result(self) -> Predictions:
        return self.predictions
