# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""The page on which a person looks through images, from most to least suspicious, and says which are good and bad.

It needs nothing but a browser and may load nothing else. Up to a thousand images it is one file with everything in it;
of more, data and pictures lie in a folder beside it, and only what is on the screen is loaded. Markup, style and script
are ``page.html.j2``, ``page.css`` and ``page.js``.
"""

import hashlib
import html
import json
import math
import os
import re
import shutil
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anomalib_cdd.training.files import is_of_the_dead, write_text

TEMPLATE = "page.html.j2"
THUMBNAILS = "thumbnails"
DATA_FILE = "data.js"
ROOT_NAME = "anomalib-cdd-audit-of"
HEAD = 20_000  # characters of a page, in which its root stands: paths have 4096 bytes at most
EMBEDDED = 1000
PICTURES_A_FILE = 32
# first bytes of an image file: a browser must know the format
FORMATS = {b"\xff\xd8\xff": "jpeg", b"\x89PNG": "png", b"RIFF": "webp"}
CURVE_DIGITS = 3
CURVE_POINTS = 20


@dataclass(frozen=True)
class AuditImage:
    """One image.

    Attributes:
        name: Path relative to the folder: shown, and what lists and reviews say.
        score: Higher is more suspicious; any finite number.
        image: Encoded thumbnail: JPEG, PNG or WebP.
        heat_map: The thumbnail under its heat map, encoded, of the same size; ``None`` if there is none.
        curve: Values over the epochs; may be empty, and NaN where an epoch has none.
        is_noise: Whether the image was injected, where that is known.
        flags: What is odd about the file, in a word or two each.
        percentile: Share of the training images that score lower, in per cent, where that is known.
    """

    name: str
    score: float
    image: bytes
    heat_map: bytes | None
    curve: Sequence[float] = ()
    is_noise: bool | None = None
    flags: Sequence[str] = ()
    percentile: float | None = None


def check_place(path: Path, count: int) -> None:
    """Refuse a place for the page of a number of images that something else has.

    Raises:
        FileExistsError: Naming it.
    """
    folder = path.parent / THUMBNAILS
    if count > EMBEDDED and folder.exists() and not (folder / DATA_FILE).exists():
        msg = f"{folder} is not of an audit page, which would need that name: write the page into another folder."
        raise FileExistsError(msg)
    if path.parent.exists() and not path.parent.is_dir():
        msg = f"{path.parent} is a file: write the page into a folder."
        raise FileExistsError(msg)


def audited_root(path: Path) -> Path | None:
    """Return the folder that a page is of; ``None`` where there is no page or it does not say."""
    if not path.is_file():
        return None
    with path.open(encoding="utf-8", errors="replace") as file:
        found = re.search(f'<meta name="{ROOT_NAME}" content="([^"]+)">', file.read(HEAD))
    return Path(html.unescape(found[1])).resolve() if found else None


def write_page(
    path: Path,
    images: Sequence[AuditImage],
    *,
    title: str,
    cut: float | None = None,
    notes: Sequence[str] = (),
    groups: Sequence[Sequence[int]] = (),
    root: str = "",
    review: Mapping[str, str] | None = None,
    reviewed_at: str = "",
    curve_name: str = "",
    files: str = "",
) -> None:
    """Write the page, whole or not at all: a reader never sees half of it.

    Args:
        path: The HTML file. Its folder is made if need be; of more than a thousand images, ``thumbnails/`` lies beside.
        images: In any order; of equal scores the first comes first.
        title: Heading of the page.
        cut: Score above which images are marked when the page opens. ``None`` marks none.
        notes: Lines below the heading.
        groups: Near-duplicates, as places in ``images``: disjoint, of two or more.
        root: The folder that was audited: reviews say so, and drafts in a browser are kept by it.
        review: ``good`` or ``bad`` by name, to begin with.
        reviewed_at: When that was said, in ISO 8601: what a draft in the browser says later goes before it.
        curve_name: What the curves show.
        files: URI of the folder that names are relative to, from which a browser on the same machine shows an image
            itself when it is enlarged; none, where it would look other than its thumbnail.

    Raises:
        ValueError: If there are no images, a score or the cut is not a finite number, a name cannot be written as
            UTF-8, or a thumbnail is neither JPEG, PNG nor WebP.
        OSError: If a file cannot be written, or what lies there is of somebody else.
    """
    check_place(path, len(images))
    if not images:
        msg = "There are no images to show: give at least one."
        raise ValueError(msg)
    if cut is not None and not math.isfinite(cut):
        msg = f"The cut is {cut}: give a finite score, or None to mark no image."
        raise ValueError(msg)
    order = sorted(range(len(images)), key=lambda place: images[place].score, reverse=True)
    rank = {place: index for index, place in enumerate(order)}
    ranked = [images[place] for place in order]
    data: dict[str, Any] = {
        "root": root,
        "images": [_entry(image) for image in ranked],
        "groups": [sorted(rank[place] for place in group) for group in groups],
        "cut": None if cut is None else float(cut),
        "review": dict(review or {}),
        "reviewedAt": reviewed_at,
        "curveName": curve_name,
        "files": files,
        "hasHeatMaps": any(image.heat_map is not None for image in images),
        "picturesAFile": PICTURES_A_FILE if len(ranked) > EMBEDDED else 0,
    }
    # a page that is open while another takes its place would show the other's pictures under its names
    data["stamp"] = hashlib.sha256(_compact(data["images"]).encode()).hexdigest()[:16]
    folder = path.parent / THUMBNAILS
    if len(ranked) > EMBEDDED:
        _write_beside(folder, ranked, data)
        write_text(path, _render(title, notes, root, data_file=f"{THUMBNAILS}/{DATA_FILE}", data={}))
    else:
        for image, entry in zip(ranked, data["images"], strict=True):
            entry["pictures"] = _pictures(image)
        write_text(path, _render(title, notes, root, data_file="", data=data))
        if (folder / DATA_FILE).exists():  # of an earlier, larger set
            shutil.rmtree(folder, ignore_errors=True)


def _render(title: str, notes: Sequence[str], root: str, *, data_file: str, data: Mapping[str, Any]) -> str:
    # here and not above: every import of the package would pay for it
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template(TEMPLATE).render(
        title=title, notes=notes, root_name=ROOT_NAME, root=root, folder=THUMBNAILS, data_file=data_file, data=data
    )


def _write_beside(folder: Path, ranked: Sequence[AuditImage], data: dict[str, Any]) -> None:
    """Write data and pictures into a folder that takes the old one's place when it is whole.

    They are scripts, as a page that is opened from disk can load no JSON; some pictures a file, as file systems and
    whoever copies the folder suffer from a hundred thousand.
    """
    draft, old = (folder.with_name(f".{folder.name}.{kind}{os.getpid()}") for kind in ("", "old."))
    for left in folder.parent.glob(f".{folder.name}.*"):
        if is_of_the_dead(left):  # a kill runs no clean-up
            shutil.rmtree(left, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        (draft / DATA_FILE).write_text(f"window.auditData = {_compact(data)};\n", encoding="utf-8")
        for number, start in enumerate(range(0, len(ranked), PICTURES_A_FILE)):
            pictures = [_pictures(image) for image in ranked[start : start + PICTURES_A_FILE]]
            script = f"auditPictures({_compact(data['stamp'])}, {number}, {_compact(pictures)});\n"
            (draft / f"{number}.js").write_text(script, encoding="utf-8")
        if folder.exists():
            folder.replace(old)
        draft.replace(folder)
    finally:
        for left in (draft, old):
            shutil.rmtree(left, ignore_errors=True)


def _entry(image: AuditImage) -> dict[str, Any]:
    """Return what the page's script knows of one image, but for its pictures; JSON has no NaN."""
    if not math.isfinite(image.score):
        msg = f"The score of {image.name!r} is {image.score}: an image without a finite score has no rank."
        raise ValueError(msg)
    try:
        image.name.encode()
    except UnicodeEncodeError as error:
        msg = f"The name {image.name!r} is not valid UTF-8, so that the CSV could not list it: rename the file."
        raise ValueError(msg) from error
    entry: dict[str, Any] = {"name": image.name, "score": float(image.score)}
    # what is not known is not written: of many images that would be most of the page
    if len(image.curve):
        entry["curve"] = [float(f"{v:.{CURVE_DIGITS}g}") if math.isfinite(v) else None for v in _thinned(image.curve)]
    if image.is_noise is not None:
        entry["isNoise"] = bool(image.is_noise)
    if image.flags:
        entry["flags"] = list(image.flags)
    if image.percentile is not None:
        entry["percentile"] = round(float(image.percentile), 2)
    return entry


def _thinned(curve: Sequence[float]) -> Sequence[float]:
    """Return at most twenty points of a curve, the first and the last among them: a small line shows no more."""
    if len(curve) <= CURVE_POINTS:
        return curve
    return [curve[place] for place in np.linspace(0, len(curve) - 1, CURVE_POINTS).round().astype(int)]


def _pictures(image: AuditImage) -> list[str]:
    """Return the thumbnail and, if there is one, the heat map as data URLs."""
    return [_data_url(image.name, encoded) for encoded in (image.image, image.heat_map) if encoded is not None]


def _data_url(name: str, encoded: bytes) -> str:
    found = next((kind for start, kind in FORMATS.items() if encoded.startswith(start)), None)
    if found is None:
        msg = f"A thumbnail of {name!r} starts with {encoded[:4]!r}: encode it as JPEG, PNG or WebP."
        raise ValueError(msg)
    return f"data:image/{found};base64,{b64encode(encoded).decode()}"


def _compact(content: Any) -> str:  # plain data
    return json.dumps(content, allow_nan=False, separators=(",", ":"))
