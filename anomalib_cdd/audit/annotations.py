# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""The ranked list in the formats of other tools: COCO, Label Studio and FiftyOne.

Each image brings its score, each region of an image above the cut a polygon and the highest value of the map within.
Formats: cocodataset.org/#format-data; labelstud.io/guide/predictions (polygons in per cent of the image);
FiftyOneImageClassificationDataset (files named in data.json).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
from numpy.typing import NDArray

from anomalib_cdd.data.manifest import VERDICTS
from anomalib_cdd.training.files import write_text

COCO, LABEL_STUDIO, LABEL_CONFIG, FIFTYONE = "coco.json", "label_studio.json", "label_studio.xml", "fiftyone"
LABEL = "anomaly"
UNSEEN = "unseen"
# outlines are drawn on a map of this longest side, and rounded to this share of a pixel of it
OUTLINE_SIDE, TOLERANCE = 256, 0.75
SMALLEST_AREA = 4.0
LABEL_STUDIO_CONFIG = f"""<View>
  <Image name="image" value="$image"/>
  <PolygonLabels name="label" toName="image">
    <Label value="{LABEL}" background="red"/>
  </PolygonLabels>
</View>
"""


@dataclass(frozen=True)
class Region:
    """An outlined part of an image.

    Attributes:
        points: Corners x, y in parts of the image's width and height, shape ``(P, 2)``, in [0, 1].
        score: Highest value of the anomaly map within.
    """

    points: NDArray[np.float64]
    score: float

    def box(self) -> tuple[float, float, float, float]:
        """Return left, top, width and height in parts of the image."""
        (left, top), (right, bottom) = self.points.min(axis=0), self.points.max(axis=0)
        return float(left), float(top), float(right - left), float(bottom - top)


@dataclass(frozen=True)
class AnnotatedImage:
    """One image of the list.

    Attributes:
        path: The file.
        name: Its path relative to the folder.
        width: In pixels.
        height: In pixels.
        score: Higher is more anomalous.
        position: Share of the images that do not score higher, in (0, 1].
        review: ``good``, ``bad``, or empty where nobody has looked.
        regions: Of an image above the cut.
    """

    path: Path
    name: str
    width: int
    height: int
    score: float
    position: float
    review: str = ""
    regions: Sequence[Region] = field(default_factory=list)


def outline(values: NDArray[np.floating], threshold: float) -> list[Region]:
    """Return the regions in which an anomaly map lies above a threshold.

    Args:
        values: Map of the whole image ``(h, w)``.
        threshold: On the scale of the map.
    """
    height, width = values.shape
    scale = OUTLINE_SIDE / max(height, width)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    resized = cv2.resize(values.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
    mask = (resized > threshold).astype(np.uint8)
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    regions = []
    for contour in contours:
        inside = cv2.drawContours(np.zeros_like(mask), [contour], -1, 1, cv2.FILLED).astype(bool)
        corners = cv2.approxPolyDP(contour, TOLERANCE, closed=True)[:, 0]
        if len(corners) >= 3 and cv2.contourArea(corners) >= SMALLEST_AREA:
            # a contour runs through the centres of a region's outer pixels
            points = (corners + 0.5) / np.asarray(size, dtype=np.float64)
            regions.append(Region(points, float(resized[inside].max())))
    return sorted(regions, key=lambda region: region.score, reverse=True)


def write_annotations(folder: Path, images: Sequence[AnnotatedImage], root_name: str) -> None:
    """Write ``coco.json``, ``label_studio.json`` with its ``label_studio.xml``, and ``fiftyone/``.

    Args:
        folder: Where.
        images: In the order of the list.
        root_name: Of the folder that their names are relative to, without what it lies in.

    Raises:
        OSError: If a file cannot be written.
    """
    write_text(folder / COCO, _text(coco(images)))
    write_text(folder / LABEL_STUDIO, _text(label_studio(images, root_name)))
    write_text(folder / LABEL_CONFIG, LABEL_STUDIO_CONFIG)
    labels, files = fiftyone(images)
    write_text(folder / FIFTYONE / "labels.json", _text(labels))
    write_text(folder / FIFTYONE / "data.json", _text(files))


def coco(images: Sequence[AnnotatedImage]) -> dict[str, Any]:
    """Return a COCO data set: file names relative to the folder, pixels, ``score`` on images and annotations."""
    annotations: list[dict[str, Any]] = []
    for number, image in enumerate(images, start=1):
        size = np.asarray([image.width, image.height])
        for region in image.regions:
            points = region.points * size
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "segmentation": [_rounded(points.ravel())],
                    "bbox": _rounded(np.asarray(region.box()) * [*size, *size]),
                    "area": round(float(cv2.contourArea(points.astype(np.float32))), 2),
                    "iscrowd": 0,
                    "score": region.score,
                }
            )
    return {
        "info": {"description": "Images from most to least suspicious, regions from their anomaly maps"},
        "categories": [{"id": 1, "name": LABEL, "supercategory": ""}],
        "images": [
            {
                "id": number,
                "file_name": image.name,
                "width": image.width,
                "height": image.height,
                "score": image.score,
                "review": image.review,
            }
            for number, image in enumerate(images, start=1)
        ],
        "annotations": annotations,
    }


def label_studio(images: Sequence[AnnotatedImage], root_name: str) -> list[dict[str, Any]]:
    """Return Label Studio tasks with pre-annotations.

    Images are asked for as local files, by the folder's name and their own: ``LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT``
    has to name its parent, as the folder has to be a storage of the project, and a storage lies below the root. A
    prediction's score has to lie in [0, 1] there: it is the image's position, its own score is in ``data``.
    """
    tasks = []
    for image in images:
        result = [
            {
                "id": f"region-{number}",
                "type": "polygonlabels",
                "from_name": "label",
                "to_name": "image",
                "original_width": image.width,
                "original_height": image.height,
                "image_rotation": 0,
                "score": region.score,
                "value": {
                    "points": [_rounded(point) for point in region.points * 100],
                    "polygonlabels": [LABEL],
                    "closed": True,
                },
            }
            for number, region in enumerate(image.regions)
        ]
        data = {
            "image": f"/data/local-files/?d={quote(f'{root_name}/{image.name}'.lstrip('/'))}",
            "name": image.name,
            "score": image.score,
            "review": image.review,
        }
        prediction = {"model_version": "anomalib-cdd", "score": image.position, "result": result}
        tasks.append({"data": data, "predictions": [prediction]})
    return tasks


def fiftyone(images: Sequence[AnnotatedImage]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return ``labels.json`` and ``data.json`` of a FiftyOneImageClassificationDataset.

    The label of an image is its review, or ``unseen``; the confidence its score. Its regions come by ``coco.json``,
    which FiftyOne merges into the same samples.
    """
    labels = {
        f"{number:06}": {
            "label": image.review or UNSEEN,
            "confidence": image.score,
            "attributes": {"rank": number, "position": image.position},
        }
        for number, image in enumerate(images, start=1)
    }
    files = {f"{number:06}": str(image.path.absolute()) for number, image in enumerate(images, start=1)}
    return {"classes": [*VERDICTS, UNSEEN], "labels": labels}, files


def _rounded(values: NDArray[np.floating]) -> list[float]:
    return [round(float(value), 3) for value in values]


def _text(content: Any) -> str:  # plain data
    return json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n"
