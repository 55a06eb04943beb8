# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Which training images are bad: a CSV file of scores and a page to look through, for any anomalib model.

Images are ranked by what the training says of them where the model keeps that (:class:`Cdd` does, by its cross-domain
students), else by the model's own scores.
"""

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anomalib.models import AnomalibModule
from anomalib.visualization.image.functional import apply_colormap
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from PIL import Image

from anomalib_cdd.data.noise import relative_names
from anomalib_cdd.evaluation.predictions import Predictions
from anomalib_cdd.evaluation.settings import rank_predictions
from anomalib_cdd.thresholds.estimators import label_free_threshold
from anomalib_cdd.training.images import TrainingImages
from anomalib_cdd.training.reading import read_for_display
from anomalib_cdd.training.scoring import iterate_predictions, takes_bars
from anomalib_cdd.training.visualization import crop_margins, uncrop

from .page import AuditImage, write_page

logger = logging.getLogger(__name__)

FOLDER = "audit"
SCORES = "training_scores.csv"
PAGE = "index.html"
THUMBNAIL = 160
QUALITY = 80
# a normal image stays dark and a strong response saturates
COLOUR_QUANTILES = (0.5, 0.999)
QUANTILE_STEP = 16
HEAT_MAP_SHARE = 0.5
# where the page's cut stands at first: what this share of good parts exceeds
CUT_FALSE_ALARMS = 0.05


class TrainingAudit(Callback):
    """Writes ``audit/`` into the results when a fit ends; for any model: ``Engine(callbacks=[TrainingAudit()])``.

    What cannot be written is logged: the training is not lost for it.
    """

    def __init__(self) -> None:
        self._images: TrainingImages | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the training images: a model may let the loop run over something else."""
        del pl_module
        self._images = None if trainer.fast_dev_run else TrainingImages.of(trainer)  # type: ignore[attr-defined]

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:  # an AnomalibModule
        """Write scores and page."""
        if self._images is None or not trainer.is_global_zero:
            return
        root = data_root(getattr(trainer, "datamodule", None))
        folder = Path(trainer.default_root_dir) / FOLDER
        logger.info("Audit of %d training images", len(self._images.dataset))
        try:
            page = write_audit(pl_module, self._images, folder, root=root, progress=takes_bars(trainer))
        except (OSError, ValueError):
            logger.exception("The audit of the training set could not be written")
        else:
            logger.info("Training images from most to least suspicious: %s", page)


def data_root(datamodule: Any) -> Path | None:  # any datamodule, or None
    """Return the folder that the images of a datamodule are named relative to, as in manifests and exclude lists."""
    subsets = [getattr(datamodule, name, None) for name in ("train_data", "test_data")]
    paths = [str(path) for subset in subsets if subset is not None for path in subset.samples["image_path"]]
    return relative_names(paths, getattr(datamodule, "root", None))[0] if paths else None


def write_audit(
    model: AnomalibModule,
    images: TrainingImages,
    folder: str | Path,
    *,
    root: str | Path | None = None,
    progress: bool = True,
) -> Path:
    """Rank the images of a data set and write ``training_scores.csv`` and ``index.html``.

    Args:
        model: A trained anomalib model.
        images: The data set and how it is read.
        folder: Where the files go.
        root: Folder that image paths are written relative to; their common folder if there is none.
        progress: Whether to show a progress bar.

    Returns:
        Path of the page.

    Raises:
        ValueError: If the model gives no finite scores.
        OSError: If a file cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    predictions, thumbnails, maps = _look(model, images, progress)
    ranking = rank_predictions(model, predictions, images.dataset.samples)
    confidence = _confidence(model, predictions.image_paths)
    _, name_of = relative_names(predictions.image_paths, root)
    table = ranking.assign(image_path=ranking["image_path"].map(name_of))
    place = {path: row for row, path in enumerate(predictions.image_paths)}
    rows = [place[path] for path in ranking["image_path"]]
    columns = {f"confidence_{epoch + 1}": values[rows] for epoch, values in enumerate(confidence)}
    # scores first: they are what must not be lost
    _write_csv(folder / SCORES, pd.concat([table, pd.DataFrame(columns, index=table.index)], axis=1))
    overlays = _overlays(thumbnails, maps)
    audited = [
        AuditImage(
            name=str(name),
            score=float(score),
            image=thumbnails[row],
            heat_map=overlays[row],
            confidence=[float(values[row]) for values in confidence],
            is_noise=None if is_noise is None else bool(is_noise),
        )
        for name, score, row, is_noise in zip(
            table["image_path"], table["score"], rows, table.get("is_noise", [None] * len(table)), strict=True
        )
    ]
    cut = label_free_threshold(ranking["score"].to_numpy(), CUT_FALSE_ALARMS)
    title = "Training images, the most suspicious first"
    write_page(folder / PAGE, audited, title=title, cut=cut, subtitle=f"{len(table)} images, ranked by {_name(model)}")
    return folder / PAGE


def _name(model: AnomalibModule) -> str:
    return type(model).__name__


def _look(
    model: AnomalibModule, images: TrainingImages, progress: bool
) -> tuple[Predictions, list[bytes], list[NDArray[np.float16]] | None]:
    """Score every image; keep a thumbnail of each, and its map at the thumbnail's size."""
    margins = crop_margins(getattr(model.pre_processor, "transform", None))
    scores, paths, thumbnails, small = [], [], [], []
    batches = iterate_predictions(
        model,
        images.dataset,
        augmentations=images.augmentations,
        batch_size=images.batch_size,
        device=model.device,
        progress=progress,
        description="audit",
    )
    for batch, batch_scores, maps, _ in batches:
        scores.append(batch_scores.cpu().numpy())
        names = batch.image_path or []
        paths += [str(path) for path in names]
        for i, path in enumerate(names):
            thumbnail = _thumbnail(path)
            thumbnails.append(_encode(thumbnail))
            if maps is not None:
                whole = uncrop(maps[i : i + 1, None].float().cpu(), margins)
                resized = torch.nn.functional.interpolate(whole, thumbnail.size[::-1], mode="bilinear")
                small.append(resized[0, 0].numpy().astype(np.float16))
    unknown = np.full(len(paths), -1, dtype=np.int64)
    return Predictions(np.concatenate(scores), unknown, paths), thumbnails, small or None


def _thumbnail(path: str | Path) -> Image.Image:
    thumbnail = read_for_display(path)
    thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
    return thumbnail


def _encode(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=QUALITY)
    return buffer.getvalue()


def _overlays(thumbnails: list[bytes], maps: list[NDArray[np.float16]] | None) -> list[bytes | None]:
    """Lay each heat map over its thumbnail, all on one scale that comes from the maps alone."""
    if maps is None:
        return [None] * len(thumbnails)
    some = np.concatenate([values.ravel()[::QUANTILE_STEP] for values in maps]).astype(np.float32)
    low, high = np.quantile(some, COLOUR_QUANTILES)
    span = max(float(high - low), 1e-12)
    overlays: list[bytes | None] = []
    for thumbnail, values in zip(thumbnails, maps, strict=True):
        image = Image.open(io.BytesIO(thumbnail)).convert("RGB")
        grey = ((values.astype(np.float32) - low) / span).clip(0, 1) * 255
        overlays.append(_encode(Image.blend(image, apply_colormap(grey.astype(np.uint8)), HEAT_MAP_SHARE)))
    return overlays


def _confidence(model: AnomalibModule, paths: list[str]) -> list[NDArray[np.float32]]:
    """Return the confidence of each image by epoch, if the model's training kept that of these images."""
    history: Any = getattr(model, "training_history", None)
    if history is None or history.image_paths != paths:
        return []
    return [values.numpy() for values in history.confidence]


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    draft = path.with_name(f".{path.name}")
    table.to_csv(draft, index=False)
    draft.replace(path)
