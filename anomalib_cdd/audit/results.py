# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""What an audit leaves in its folder: the list of scores, the page, and the list in other tools' formats.

Scores are written first, as they are what must not be lost, and every file whole or not at all. A ``review.json``
that a person has put there is read and shown, and never written.
"""

import csv
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryFile
from typing import NamedTuple

import numpy as np
import pandas as pd
from anomalib.models import AnomalibModule
from numpy.typing import NDArray

from anomalib_cdd.data.manifest import Review, read_review
from anomalib_cdd.data.noise import relative_names
from anomalib_cdd.thresholds.estimators import label_free_pixel_threshold, label_free_threshold
from anomalib_cdd.training.files import written_whole
from anomalib_cdd.training.image_files import printable
from anomalib_cdd.training.images import TrainingImages

from .annotations import COCO, FIFTYONE, LABEL_CONFIG, LABEL_STUDIO, AnnotatedImage, Region, outline, write_annotations
from .duplicates import find_duplicates
from .page import AuditImage, check_place, write_page
from .pictures import Picture, flags, look_at, overlays
from .scores import ScoredImages, score_by_model

logger = logging.getLogger(__name__)

SCORES = "training_scores.csv"
PAGE = "index.html"
REVIEW = "review.json"
TARGETS = (SCORES, PAGE, COCO, LABEL_STUDIO, LABEL_CONFIG, FIFTYONE)
SCORES_START, HEADER = b"rank,image_path,score", 100
# where the page's cut and the outlines stand at first: what this share of good parts, and of their pixels, exceeds
CUT_FALSE_ALARMS = 0.05
PIXEL_FALSE_ALARMS = 0.01
SAMPLED_SIDE = 16  # pixels of a map, on an even grid


@dataclass(frozen=True)
class Shown:
    """Readable images beside what their files show, in the order of the data set."""

    images: TrainingImages
    pictures: list[Picture]
    unreadable: dict[str, str]


class Written(NamedTuple):
    """The page, and of how many of its images ``review.json`` brought a verdict."""

    page: Path
    reviewed: int


def open_images(images: TrainingImages, *, progress: bool = True) -> Shown:
    """Look at every file of a data set and leave out what cannot be read, each named in the log.

    Args:
        images: The data set and how it is read.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: If none can be read.
    """
    paths = [str(path) for path in images.dataset.samples["image_path"]]
    pictures, unreadable = look_at(paths, progress=progress)
    for path, reason in unreadable.items():
        logger.warning("Left out, as it cannot be read: %s (%s)", printable(path), reason)
    if len(unreadable) == len(paths):
        msg = f"None of {len(paths)} images can be read, {printable(paths[0])} for one: {unreadable[paths[0]]}"
        raise ValueError(msg)
    readable = [row for row, picture in enumerate(pictures) if picture is not None]
    if unreadable:
        images = images._replace(dataset=images.dataset.subsample(readable))
    return Shown(images, [picture for picture in pictures if picture is not None], unreadable)


def check_folder(folder: Path, count: int) -> None:
    """Refuse a folder that the results of a number of images cannot go into, before minutes are spent on scores.

    Raises:
        FileExistsError: If it has files of these names that no audit wrote, naming one.
        OSError: If nothing can be written there.
    """
    check_place(folder / PAGE, count)
    found = next((name for name in TARGETS if (folder / name).exists()), None)
    if found is not None and not _is_ours(folder / SCORES):
        msg = f"{folder / found} is not of an audit, which would need that name: write the results into another folder."
        raise FileExistsError(msg)
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with TemporaryFile(dir=folder):
            pass
    finally:
        for place in made:
            place.rmdir()


def _is_ours(scores: Path) -> bool:
    """Return whether a list is an audit's: it is what every audit writes first."""
    if not scores.is_file():
        return False
    with scores.open("rb") as file:
        return file.readline(HEADER).replace(b'"', b"").startswith(SCORES_START)


def write_audit(
    model: AnomalibModule,
    images: TrainingImages,
    folder: str | Path,
    *,
    root: str | Path | None = None,
    progress: bool = True,
) -> Path:
    """Audit the images that a model was trained on; see :func:`write_results`.

    Args:
        model: A trained anomalib model.
        images: Its training set and how that is read.
        folder: Where the files go.
        root: Folder that image paths are written relative to; their common folder if there is none.
        progress: Whether to show progress bars.

    Returns:
        Path of the page.

    Raises:
        ValueError: If the model gives no finite scores, or no image can be read.
        OSError: See :func:`check_folder`.
    """
    check_folder(Path(folder), len(images.dataset))
    shown = open_images(images, progress=progress)
    scored = score_by_model(model, shown.images, trained_on=True, progress=progress, device=model.device)
    duplicates = find_duplicates(shown.images.dataset, images.batch_size, progress=progress)
    scored = replace(scored, duplicates=duplicates)
    return write_results(shown, scored, folder, root=root, title="Training images, the most suspicious first").page


def write_results(
    shown: Shown, scored: ScoredImages, folder: str | Path, *, root: str | Path | None = None, title: str
) -> Written:
    """Write ``training_scores.csv``, ``index.html``, ``coco.json``, ``label_studio.json`` and ``fiftyone/``.

    Args:
        shown: The images and what their files show.
        scored: Their scores, in the same order.
        folder: Where the files go. A ``review.json`` there is shown on the page and in the lists, unless it names
            another root.
        root: Folder that image paths are written relative to; their common folder if there is none.
        title: Heading of the page.

    Raises:
        ValueError: If a score is not finite, or the review cannot be read.
        OSError: If a file cannot be written.
    """
    folder = Path(folder)
    check_folder(folder, len(scored.scores))
    base, name_of = relative_names([*scored.image_paths, *shown.unreadable], root)
    (review, _, reviewed_at), foreign = _review_of(folder, base)
    names = [name_of[path] for path in scored.image_paths]
    cut = label_free_threshold(scored.scores, CUT_FALSE_ALARMS)
    table = _table(shown, scored, names, review)
    ranked = table.sort_values("score", ascending=False, kind="stable")
    ranked.insert(0, "rank", np.arange(1, len(ranked) + 1))
    annotated = _annotated(shown.pictures, scored, ranked, cut)
    thumbnails = [picture.thumbnail for picture in shown.pictures]
    heat_maps = overlays(thumbnails, scored.maps) if scored.maps is not None else [None] * len(names)
    curve_name, curve = next(iter(scored.curves.items()), ("", np.empty((0, len(names)))))
    noise = table["is_noise"] if "is_noise" in table else [None] * len(names)
    audited = [
        AuditImage(
            name=name,
            score=float(scored.scores[row]),
            image=thumbnails[row],
            heat_map=heat_maps[row],
            curve=curve[:, row].tolist(),
            is_noise=noise[row],
            flags=table["flags"][row].split("; ") if table["flags"][row] else [],
            percentile=None if scored.percentiles is None else float(scored.percentiles[row]),
        )
        for row, name in enumerate(names)
    ]
    # a carriage return of its own would end a row for whoever reads
    quoting = csv.QUOTE_NONNUMERIC if ranked["image_path"].str.contains("\r").any() else csv.QUOTE_MINIMAL
    with written_whole(folder / SCORES) as draft:
        ranked.to_csv(draft, index=False, quoting=quoting)
    write_annotations(folder, annotated, base.name)
    write_page(
        folder / PAGE,
        audited,
        title=title,
        cut=cut,
        notes=[*_notes(scored, review, names, [printable(name_of[path]) for path in shown.unreadable]), *foreign],
        groups=scored.duplicates,
        root=str(base.resolve()),
        review=review,
        reviewed_at=reviewed_at or "",
        curve_name=curve_name,
        files="" if any(picture.is_deep for picture in shown.pictures) else base.resolve().as_uri(),
    )
    return Written(folder / PAGE, int((table["review"] != "").sum()))


def _review_of(folder: Path, base: Path) -> tuple[Review, list[str]]:
    """Return the review that lies in a folder, and a note in place of one of another root."""
    path = folder / REVIEW
    if not path.exists():
        return Review({}), []
    review = read_review(path)
    if review.saved is None:  # a file of before, or written by hand
        review = review._replace(saved=datetime.fromtimestamp(path.stat().st_mtime, timezone.utc).isoformat())
    if review.root is None or Path(review.root).resolve() == base.resolve():
        return review, []
    note = (
        f"{path} is a review of {review.root} and is not applied to {base.resolve()}. "
        f'If that folder was moved here, delete the line "root" of the file.'
    )
    logger.warning(note)
    return Review({}), [note]


def _table(shown: Shown, scored: ScoredImages, names: list[str], review: dict[str, str]) -> pd.DataFrame:
    """Return one row an image, in the order of the data set."""
    table = pd.DataFrame({"image_path": names, "score": scored.scores})
    if scored.model_scores is not None:
        table["model_score"] = scored.model_scores
    table["scored_by"] = scored.scored_by
    table["sample"] = scored.sample
    if scored.percentiles is not None:
        table["percentile"] = scored.percentiles
    samples = shown.images.dataset.samples
    if "is_noise" in samples and samples["is_noise"].any():
        table["is_noise"] = samples["is_noise"].to_numpy(dtype=bool)
    table["flags"] = ["; ".join(found) for found in flags(shown.pictures)]
    group_of = {row: number for number, group in enumerate(scored.duplicates, start=1) for row in group}
    table["duplicates"] = pd.array([group_of.get(row) for row in range(len(names))], dtype="Int64")
    table["review"] = [review.get(name, "") for name in names]
    curves = {
        f"{name}_{epoch}": values
        for name, curve in scored.curves.items()
        for epoch, values in enumerate(curve, start=1)
    }
    return pd.concat([table, pd.DataFrame(curves, index=table.index)], axis=1)


def _notes(scored: ScoredImages, review: dict[str, str], names: list[str], unreadable: list[str]) -> list[str]:
    """Return what stands below the page's heading."""
    notes = [f"{len(names):,} images, ranked by {scored.scored_by}. {scored.notes[0]}", *scored.notes[1:]]
    if unreadable:
        some = ", ".join(unreadable[:3]) + (", …" if len(unreadable) > 3 else "")
        notes.append(f"{len(unreadable)} more cannot be read: {some}")
    gone = len(set(review).difference(names, unreadable))
    if gone:
        notes.append(f"{REVIEW} speaks of {gone} images more, which are not here.")
    return notes


def _annotated(
    pictures: Sequence[Picture], scored: ScoredImages, ranked: pd.DataFrame, cut: float
) -> list[AnnotatedImage]:
    """Return the ranked images, those above the cut with outlines."""
    regions: dict[int, list[Region]] = {}
    if scored.maps is not None:
        threshold = _pixel_threshold(scored.maps, scored.scores)
        regions = {row: outline(scored.maps[row], threshold) for row in np.flatnonzero(scored.scores > cut).tolist()}
    return [
        AnnotatedImage(
            path=Path(scored.image_paths[row]),
            name=ranked["image_path"][row],
            width=pictures[row].width,
            height=pictures[row].height,
            score=float(scored.scores[row]),
            position=1 - place / len(ranked),
            review=ranked["review"][row],
            regions=regions.get(row, []),
        )
        for place, row in enumerate(ranked.index)
    ]


def _pixel_threshold(maps: Sequence[NDArray[np.floating]], scores: NDArray[np.float32]) -> float:
    """Return the value that a hundredth of the pixels of good images exceeds."""
    sampled = []
    for values in maps:
        rows, columns = (((np.arange(SAMPLED_SIDE) + 0.5) * side / SAMPLED_SIDE).astype(int) for side in values.shape)
        sampled.append(values[np.ix_(rows, columns)].ravel())
    return label_free_pixel_threshold(np.asarray(sampled, dtype=np.float32), scores, PIXEL_FALSE_ALARMS)
