# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Cross-domain training around any anomalib model: each image is scored by a model that was trained without it.

The training set is dealt out in K parts, as the domains of Cross-Domain Distillation; K models are each trained on what
is not in their part. A part that is finished is a file, so that a run can be stopped and gone on with.
"""

import hashlib
import json
import logging
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from anomalib.data import AnomalibDataModule
from anomalib.engine import Engine
from anomalib.models import AnomalibModule
from lightning.pytorch import seed_everything
from lightning.pytorch.utilities.seed import isolate_rng
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from anomalib_cdd.data.clean import Cleaned, Cleaning
from anomalib_cdd.data.noise import NoiseInjection
from anomalib_cdd.training.compat import plain_interrupts
from anomalib_cdd.training.files import DAMAGED, written_whole
from anomalib_cdd.training.image_files import contents_of, first_of_each
from anomalib_cdd.training.report import TrainingReport
from anomalib_cdd.training.scoring import iterate_predictions
from anomalib_cdd.training.source import code_hash, foreign_code, home_of
from anomalib_cdd.training.visualization import small_maps

from .rules import pick

logger = logging.getLogger(__name__)

TOP_SHARE = 0.01
ROOMS = ("cleaning", "data", "teachers", "thresholds", "training")
DEPENDENCIES = ("anomalib", "lightning", "timm", "torch", "torchvision")
# no label takes part in a training: there is no validation
TRAINER_DEFAULTS = {"logger": False, "devices": 1, "limit_val_batches": 0, "num_sanity_val_steps": 0}


def cross_domain_scores(
    model_factory: Callable[[], AnomalibModule],
    datamodule: AnomalibDataModule,
    domains: int = 3,
    *,
    folder: str | Path,
    trainer: Mapping[str, Any] | None = None,
    seed: int = 0,
    in_sample: bool = False,
    progress: bool = True,
) -> TrainingReport:
    """Score the training images of a datamodule by models that were trained without them.

    Args:
        model_factory: Makes a model that has learned nothing; called once for each part.
        datamodule: Its ``train_data`` is dealt out; it is set up if it has not been, and not changed.
        domains: Number of parts K, at least 2.
        folder: Where the scores of each part are kept. The same call with the same images goes on where it stopped.
        trainer: Arguments of ``Engine``, such as ``max_epochs``. Each model is trained on one device
            where it names no number.
        seed: Seed of the parts and of each training.
        in_sample: Let every model vote on every image, also those that it was trained on, and take the mean: only to
            measure what that costs. A call without it goes on with the same parts.
        progress: Whether to show progress bars.

    Returns:
        Of each image the mean of the top 1 % of its anomaly map, or the model's score where it has no map; and small
        maps, unless votes are in sample.

    Raises:
        ValueError: If there are fewer than two images for each part, or a model's scores are not finite.
    """
    if not hasattr(datamodule, "train_data"):
        datamodule.setup()
    dataset, folder = datamodule.train_data, Path(folder)
    # a model that has learned from one copy of a file is none that has not learned from the other
    first = np.array(first_of_each(contents_of(dataset.samples["image_path"])))
    files = np.unique(first)
    parts = [np.flatnonzero(np.isin(first, files[part])) for part in deal(len(files), domains, seed)]
    key = _fingerprint(model_factory(), datamodule, domains, seed, trainer or {})
    votes = np.full((domains, len(dataset)), np.nan, dtype=np.float32)
    maps: dict[int, NDArray[np.float32]] = {}
    for number, part in enumerate(tqdm(parts, desc="domains", unit="model", disable=not progress)):
        path = folder / f"part_{number + 1}_of_{domains}.npz"
        asked = np.arange(len(dataset)) if in_sample else part
        known = _read(path, key, asked)
        if known is None:
            rest = np.setdiff1d(np.arange(len(dataset)), part)
            with isolate_rng():
                seed_everything(seed + number, verbose=False)
                model = _train(model_factory(), datamodule, rest, dict(trainer or {}), progress)
            known = _said(model, datamodule, asked, progress)
            _write(path, key, known)
        votes[number, asked] = known.scores
        maps |= zip(asked.tolist(), known.maps, strict=False)
    paths = [str(path) for path in dataset.samples["image_path"]]
    whole = not in_sample and len(maps) == len(dataset)
    return TrainingReport(
        paths, np.nanmean(votes, axis=0), maps=[maps[row] for row in range(len(dataset))] if whole else None
    )


def write_exclude_list(
    report: TrainingReport, datamodule: NoiseInjection, path: str | Path, rule: Cleaning | None = None
) -> Cleaned:
    """Write the most suspicious images of a report as a file that ``exclude`` reads, to train on what is left.

    What the datamodule's own ``exclude`` and ``clean`` have left out is in it too.

    Args:
        report: Of the datamodule's training images, such as :func:`cross_domain_scores` returns it.
        datamodule: One of this package's, set up.
        path: CSV file to write, whole or not at all.
        rule: Whose ``share`` or ``deviations`` says how many, where copies of a file count as one image; the others of
            its options have no say. The default rule without.

    Returns:
        What was left out, and how much noise that leaves where the truth is known.
    """
    samples = datamodule.train_data.samples.set_index("image_path").loc[report.image_paths]
    is_noise = samples["is_noise"].to_numpy(dtype=bool)
    copies = np.array(first_of_each(contents_of(report.image_paths)))
    left_out = pick(report.scores, rule or Cleaning(), copies)
    cleaned = Cleaned(report.image_paths, report.scores, left_out, is_noise if is_noise.any() else None)
    before = datamodule.excluded
    if (own := datamodule.cleaned) is not None:
        before = before | {datamodule.image_names[own.image_paths[row]] for row in np.flatnonzero(own.left_out)}
    cleaned.write(Path(path), datamodule.image_names, before)
    return cleaned


def deal(count: int, domains: int, seed: int) -> list[NDArray[np.int64]]:
    """Deal images out in parts of equal size, or one apart.

    Args:
        count: Number of images N.
        domains: Number of parts K.
        seed: Seed of the order.

    Returns:
        Rows of each part, ascending.

    Raises:
        ValueError: If K is below 2, or there are fewer than two images for each part.
    """
    if domains < 2:
        msg = f"domains has to be at least 2, found {domains}: with one part no model is left that has not seen it."
        raise ValueError(msg)
    if count < 2 * domains:
        msg = f"{count} training images are too few for {domains} domains: at most {count // 2} are possible."
        raise ValueError(msg)
    order = np.random.default_rng(seed).permutation(count)
    return [np.sort(part) for part in np.array_split(order, domains)]


def top_mean(maps: Tensor) -> Tensor:
    """Return the mean of the highest 1 % of each map ``(B, H, W)``, at least one value, shape ``(B,)``."""
    values = maps.flatten(1)
    return values.topk(max(1, int(TOP_SHARE * values.shape[1])), dim=1).values.mean(dim=1)


class _Said(NamedTuple):
    """What a model said of some images: their rows ``(n,)``, scores ``(n,)``, and maps, as many or none."""

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]
    maps: list[NDArray[np.float32]]


class _Part(AnomalibDataModule):
    """Some of a datamodule's training images, read and augmented as there; nothing to validate or test."""

    def __init__(self, whole: AnomalibDataModule, rows: NDArray[np.int64]) -> None:
        super().__init__(
            train_batch_size=whole.train_batch_size,
            eval_batch_size=whole.eval_batch_size,
            num_workers=whole.num_workers,
            train_augmentations=whole.train_augmentations,
            test_augmentations=whole.test_augmentations,
            val_split_mode="none",
            test_split_mode="none",
        )
        self.rows = whole.train_data.subsample(rows.tolist())

    def _setup(self, _stage: str | None = None) -> None:
        self.train_data = self.rows

    def _create_test_split(self) -> None:
        """There is no test set to split."""


def _train(
    model: AnomalibModule, whole: AnomalibDataModule, rows: NDArray[np.int64], trainer: dict[str, Any], progress: bool
) -> AnomalibModule:
    bars = {"enable_progress_bar": progress, "enable_model_summary": False}
    with tempfile.TemporaryDirectory(prefix="cross-domain-") as folder:
        engine = Engine(**{**TRAINER_DEFAULTS, **bars, **trainer, "default_root_dir": folder})
        with plain_interrupts():
            engine.fit(model, datamodule=_Part(whole, rows))
    return model


def _said(model: AnomalibModule, whole: AnomalibDataModule, rows: NDArray[np.int64], progress: bool) -> _Said:
    found, small = [], []
    transform = getattr(model.pre_processor, "transform", None)
    for batch, scores, maps, _ in iterate_predictions(
        model,
        whole.train_data.subsample(rows.tolist()),
        augmentations=whole.test_augmentations,
        batch_size=whole.eval_batch_size,
        num_workers=whole.num_workers,
        progress=progress,
    ):
        found.append(scores if maps is None else top_mean(maps))
        if maps is not None:
            small += small_maps(maps, transform, batch.image)
    return _Said(rows, torch.cat(found).cpu().numpy(), small)


def _fingerprint(model: AnomalibModule, data: AnomalibDataModule, *settings: Any) -> str:
    """Name what the scores depend on: code, model, images, how they are read, and settings."""
    code = code_hash([*ROOMS, *home_of(type(model))], DEPENDENCIES) + foreign_code(type(model))
    files = [Path(path) for path in data.train_data.samples["image_path"]]
    if (weights := model.hparams.get("weights")) and Path(weights).is_file():
        files.append(Path(weights))
    states = [(str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    made_of = [type(model).__qualname__, {name: str(value) for name, value in model.hparams.items()}]
    # hparams leave the pre-processor out
    read = [model.pre_processor, data.train_augmentations, data.test_augmentations, data.train_batch_size]
    content = json.dumps([code, made_of, states, [str(each) for each in read], settings], default=str, sort_keys=True)
    content = re.sub(r" at 0x[0-9a-f]+", "", content)  # where an object lies in memory is no setting
    return hashlib.sha256(content.encode()).hexdigest()


def _write(path: Path, key: str, said: _Said) -> None:
    """Write what was said of a part; images, and so maps, may differ in shape."""
    shapes = np.array([each.shape for each in said.maps], dtype=np.int64).reshape(-1, 2)
    pixels = np.concatenate([each.ravel() for each in said.maps] or [np.zeros(0, dtype=np.float32)])
    with written_whole(path) as draft, draft.open("wb") as file:
        np.savez(file, rows=said.rows, scores=said.scores, shapes=shapes, pixels=pixels, key=key)


def _read(path: Path, key: str, rows: NDArray[np.int64]) -> _Said | None:
    """Read what was said of some images; ``None`` where there is nothing of these images and this model."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as content:
            scores, known, found = content["scores"], content["rows"], str(content["key"])
            ends = content["shapes"].prod(axis=1).cumsum()[:-1]
            pixels = np.split(content["pixels"], ends) if len(content["shapes"]) else []
            maps = [each.reshape(shape) for each, shape in zip(pixels, content["shapes"], strict=True)]
    except DAMAGED:
        logger.warning("The file of scores %s is damaged; its model is trained again", path)
        return None
    if found == key and np.isin(known, rows).all() and len(known) < len(rows):
        logger.info("The file of scores %s is of its own part alone; its model is trained again to score all", path)
        return None
    if found != key or scores.shape != known.shape or not np.isin(rows, known).all():
        logger.warning("The file of scores %s is of other images or settings; its model is trained again", path)
        return None
    asked = np.searchsorted(known, rows)
    return _Said(rows, scores[asked], [maps[row] for row in asked] if maps else [])
