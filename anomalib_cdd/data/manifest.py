# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Training splits as CSV files: the manifest, so that a published split can be used again, and the exclude list.

A manifest has two columns, ``image_path`` (relative to the root of the data set, forward slashes, sorted) and
``is_noise`` (0 or 1); one row for each training image. An exclude list has the first column alone: images to leave
out, such as the audit page writes it.
"""

from __future__ import annotations

import csv
import io
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from anomalib_cdd.training.files import written_whole
from anomalib_cdd.training.image_files import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

logger = logging.getLogger(__name__)

COLUMNS = ["image_path", "is_noise"]
EXCLUDE_COLUMN = COLUMNS[0]
# what a person says of an image on the audit page
VERDICTS = ("good", "bad")
REVIEW_SUFFIX = ".json"
FLAGS = {"0": False, "1": True, "false": False, "true": True}


def check_names(names: Iterable[str]) -> None:
    """Refuse names that a list cannot have.

    Raises:
        ValueError: If one is not valid UTF-8.
    """
    for name in names:
        if printable(name) != name:
            msg = f"the name of {printable(name)} is not valid UTF-8, so that no list could have it: rename it"
            raise ValueError(msg)


def write_manifest(path: str | Path, split: Mapping[str, bool]) -> None:
    """Write a split, whole or not at all.

    Args:
        path: File to write. Its folder is made when missing; an older file is replaced.
        split: Relative path of each training image, and whether the image is injected noise.

    Raises:
        ValueError: If a path is not valid UTF-8.
    """
    path = Path(path)
    check_names(split)
    with written_whole(path) as draft, draft.open("w", encoding="utf-8", newline="") as file:
        plain, quoted = (
            csv.writer(file, lineterminator="\n", quoting=kind) for kind in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)
        )
        plain.writerow(COLUMNS)
        for name in sorted(split):
            # a carriage return of its own is not quoted by itself, and ends a row for whoever reads
            (quoted if "\r" in name else plain).writerow((name, int(split[name])))


def read_manifest(path: str | Path) -> dict[str, bool]:
    """Read a split.

    Args:
        path: CSV file with the columns ``image_path`` and ``is_noise`` (0, 1, true or false).

    Returns:
        Relative path of each training image, and whether the image is injected noise.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not such a CSV file; the message names the file and the problem.
    """
    path = Path(path)
    if not path.exists():
        msg = f"manifest {path} does not exist"
        raise FileNotFoundError(msg)
    header, *rows = _read_rows(path) or [[]]
    if header != COLUMNS:
        _refuse(path, f"its first line has to be '{','.join(COLUMNS)}', found '{','.join(header)[:80]}'")
    if not rows:
        _refuse(path, "it lists no image")

    split: dict[str, bool] = {}
    for line, row in enumerate(rows, start=2):
        if len(row) != len(COLUMNS):
            _refuse(path, f"row {line} has {len(row)} values instead of {len(COLUMNS)}")
        name, flag = row
        if name in split:
            _refuse(path, f"row {line} lists '{name}' a second time")
        if flag.strip().lower() not in FLAGS:
            _refuse(path, f"is_noise in row {line} has to be 0, 1, true or false, found '{flag}'")
        split[name] = FLAGS[flag.strip().lower()]
    return split


def check_manifest(
    path: str | Path,
    split: Mapping[str, bool],
    normal: Iterable[str],
    test: Mapping[str, bool],
    root: Path,
) -> None:
    """Check that a split read from a manifest is one of this data set.

    Args:
        path: The manifest, for the message.
        split: What :func:`read_manifest` returned.
        normal: Relative paths of the normal training images.
        test: Relative path of each test image, and whether the image is anomalous.
        root: Folder that the paths are relative to.

    Raises:
        ValueError: If an image is missing, belongs to another data set, or cannot play the part it is given.
    """
    normal = set(normal)
    if not any(name in normal or name in test for name in split):
        _refuse(path, f"none of its {len(split)} images is one of this data set ({root}): it was written for another")
    for name, is_noise in sorted(split.items()):
        if name not in normal and name not in test:
            exists = (root / name).exists()
            _refuse(path, f"'{name}' is " + (f"no image of this data set ({root})" if exists else f"missing in {root}"))
        if is_noise and not test.get(name, False):
            _refuse(path, f"'{name}' is marked as noise but is a normal image: only anomalous test images are injected")
        if not is_noise and name not in normal:
            _refuse(path, f"'{name}' is marked as normal (is_noise 0) but is a test image, not a normal training image")
    if not normal.intersection(split):
        _refuse(path, "it lists no normal training image")


def read_exclude_list(path: str | Path, root: Path | None = None) -> set[str]:
    """Read an exclude list.

    Args:
        path: CSV file with the column ``image_path``; what else it has is not read. Or the review that the audit page
            saves, a ``.json`` file, whose images marked bad are taken.
        root: The data set's. Images of a review are found below it wherever the folder lies that was audited.

    Returns:
        Relative paths of the images to leave out.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not such a CSV file; the message names the file and the problem.
    """
    path = Path(path)
    if not path.exists():
        msg = f"exclude list {path} does not exist"
        raise FileNotFoundError(msg)
    if path.suffix.lower() == REVIEW_SUFFIX:
        return {name for name, verdict in _reviewed(path, root).items() if verdict == "bad"}
    header, *rows = _read_rows(path, "exclude list") or [[]]
    if EXCLUDE_COLUMN not in header:
        _refuse(path, f"its first line has no column '{EXCLUDE_COLUMN}': '{','.join(header)[:80]}'", "exclude list")
    place = header.index(EXCLUDE_COLUMN)
    for line, row in enumerate(rows, start=2):
        if len(row) != len(header):
            _refuse(path, f"row {line} has {len(row)} values instead of {len(header)}", "exclude list")
    return {row[place] for row in rows}


def _reviewed(path: Path, root: Path | None) -> dict[str, str]:
    """Return what a review says, by names relative to the data set's root and not to the folder that was audited."""
    review = read_review(path)
    # of another system a root says nothing here
    if review.root is None or root is None or not Path(review.root).is_absolute():
        return review.images
    audited, root = Path(review.root).resolve(), root.resolve()
    places = {name: audited / name for name in review.images}
    below = {place.relative_to(root).as_posix(): name for name, place in places.items() if place.is_relative_to(root)}
    # what was said of images elsewhere counts for none of this root; where all lie elsewhere, the folder was moved
    if below or root.is_relative_to(audited):
        return {place: review.images[name] for place, name in below.items()}
    return review.images


def _is_of(path: Path, root: Path) -> bool:
    """Return whether a review is of the folder of a data set, of one in it or of one around it."""
    audited = read_review(path).root
    if audited is None or not Path(audited).is_absolute():
        return False
    places = Path(audited).resolve(), root.resolve()
    return places[0].is_relative_to(places[1]) or places[1].is_relative_to(places[0])


class Review(NamedTuple):
    """What a person said of images on the audit page.

    Attributes:
        images: ``good`` or ``bad`` by relative path; an image that nobody has looked at is not in it.
        root: The folder that was audited; ``None`` in files of before it was written.
        saved: When, in ISO 8601; ``None`` likewise.
    """

    images: dict[str, str]
    root: str | None = None
    saved: str | None = None


def read_review(path: str | Path) -> Review:
    """Read what a person said of images on the audit page.

    Args:
        path: JSON file, ``{"root": "/parts", "saved": "2026-11-28T12:00:00Z", "images": {"001.png": "bad", ...}}``; it
            may lack the first two.

    Raises:
        ValueError: If the file is not such a file; the message names it and the problem.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        msg = f"review {path}: it cannot be read as JSON ({error})"
        raise ValueError(msg) from error
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, dict):
        _refuse(path, 'it has no "images": save it on the audit page', "review")
    for name, verdict in images.items():
        if verdict not in VERDICTS:
            _refuse(path, f"'{name}' is {verdict!r}, it has to be one of {', '.join(VERDICTS)}", "review")
    for key in ("root", "saved"):
        if not isinstance(content.get(key), str | None):
            _refuse(path, f"its {key} is {content[key]!r}, it has to be a text", "review")
    return Review(images, content.get("root"), content.get("saved"))


def check_exclude_list(path: str | Path, excluded: set[str], known: Iterable[str], root: Path) -> None:
    """Check that an exclude list is one of this data set.

    Args:
        path: The list, for the message.
        excluded: What :func:`read_exclude_list` returned.
        known: Relative paths of all images of the data set.
        root: Folder that the paths are relative to.

    Raises:
        ValueError: Naming the images that the data set does not have. Of a review that has others, or that is of this
            folder, it is a warning: who has deleted the bad images has done what it asks for.
    """
    path, known = Path(path), set(known)
    unknown = sorted(excluded - known)
    if unknown:
        some = ", ".join(f"'{name}'" for name in unknown[:3]) + (", ..." if len(unknown) > 3 else "")
        problem = f"{len(unknown)} of its {len(excluded)} images are not of this data set ({root}): {some}"
        if path.suffix.lower() != REVIEW_SUFFIX or (known.isdisjoint(_reviewed(path, root)) and not _is_of(path, root)):
            _refuse(path, problem, "exclude list")
        logger.warning("review %s: %s", path, problem)


def _read_rows(path: Path, kind: str = "manifest") -> list[list[str]]:
    try:
        content = path.read_bytes()
        if b"\0" in content:
            _refuse(path, "it contains NUL bytes and is no text file", kind)
        return list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        msg = f"{kind} {path}: it cannot be read as a CSV file ({error})"
        raise ValueError(msg) from error


def _refuse(path: str | Path, problem: str, kind: str = "manifest") -> NoReturn:
    msg = f"{kind} {path}: {problem}"
    raise ValueError(msg)
