# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""One HTML file in which a person looks through a training set, from most to least suspicious.

The file needs nothing but a browser: pictures, style and script are in it, and it may not load anything else. What
is selected in it is downloaded as a CSV of image paths. The page itself is ``page.html.j2``.
"""

import math
import os
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TEMPLATE = "page.html.j2"
# first bytes of an image file: the page embeds it as it is, so a browser must know the format
MEDIA_TYPES = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG": "image/png", b"RIFF": "image/webp"}
CONFIDENCE_DIGITS = 4


@dataclass(frozen=True)
class AuditImage:
    """One training image.

    Attributes:
        name: Path relative to the folder: shown, and what the CSV says.
        score: Higher is more suspicious; any finite number.
        image: Encoded thumbnail: JPEG, PNG or WebP.
        heat_map: The thumbnail under its heat map, encoded, of the same size; ``None`` if the model has none.
        confidence: Over the epochs; may be empty, and NaN where an epoch has none.
        is_noise: Whether the image was injected, where that is known.
    """

    name: str
    score: float
    image: bytes
    heat_map: bytes | None
    confidence: Sequence[float] = ()
    is_noise: bool | None = None


def write_page(
    path: Path, images: Sequence[AuditImage], *, title: str, cut: float | None = None, subtitle: str = ""
) -> None:
    """Write the page, whole or not at all: a reader never sees half of it.

    Args:
        path: The HTML file. Its folder is made if need be.
        images: The training images in any order; of equal scores the first comes first.
        title: Heading of the page.
        cut: Score above which images are marked when the page opens. ``None`` marks none.
        subtitle: Line below the heading.

    Raises:
        ValueError: If there are no images, a score or the cut is not a finite number, a name cannot be written as
            UTF-8, or a thumbnail is neither JPEG, PNG nor WebP.
    """
    if not images:
        msg = "There are no images to show: give at least one."
        raise ValueError(msg)
    if cut is not None and not math.isfinite(cut):
        msg = f"The cut is {cut}: give a finite score, or None to mark no image."
        raise ValueError(msg)
    # here and not above: every import of the package would pay for it
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    ranked = [_entry(image) for image in sorted(images, key=lambda image: image.score, reverse=True)]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    data = {"images": ranked, "cut": None if cut is None else float(cut)}
    html = environment.get_template(TEMPLATE).render(title=title, subtitle=subtitle, data=data)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(html, encoding="utf-8")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _entry(image: AuditImage) -> dict[str, Any]:
    """Return what the page's script knows of one image; JSON has no NaN."""
    if not math.isfinite(image.score):
        msg = f"The score of {image.name!r} is {image.score}: an image without a finite score has no rank."
        raise ValueError(msg)
    try:
        image.name.encode()
    except UnicodeEncodeError as error:
        msg = f"The name {image.name!r} is not valid UTF-8, so that the CSV could not list it: rename the file."
        raise ValueError(msg) from error
    return {
        "name": image.name,
        "score": float(image.score),
        "image": _data_url(image.name, image.image),
        "heatMap": None if image.heat_map is None else _data_url(image.name, image.heat_map),
        "confidence": [float(f"{v:.{CONFIDENCE_DIGITS}g}") if math.isfinite(v) else None for v in image.confidence],
        "isNoise": None if image.is_noise is None else bool(image.is_noise),
    }


def _data_url(name: str, encoded: bytes) -> str:
    media_type = next((kind for start, kind in MEDIA_TYPES.items() if encoded.startswith(start)), None)
    if media_type is None:
        msg = f"A thumbnail of {name!r} starts with {encoded[:4]!r}: encode it as JPEG, PNG or WebP."
        raise ValueError(msg)
    return f"data:{media_type};base64,{b64encode(encoded).decode()}"
