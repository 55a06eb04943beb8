# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Layouts that anomalib reads: any root for them, and what is wrong with one, by file.

anomalib refuses a path by how it is spelled, takes hidden files for images, and pairs masks by their order.
"""

import glob
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from anomalib.data import AnomalibDataset
from anomalib.data.utils.path import contains_non_printable_characters, is_path_too_long

from anomalib_cdd.training.image_files import without_hidden

logger = logging.getLogger(__name__)

# anomalib stops at 512 characters; names of folders below the root are added to it
LONGEST = 384


@contextmanager
def plain_root(datamodule: Any) -> Iterator[None]:  # any datamodule
    """Let ``datamodule.root`` be a link of a plain name within the block; anomalib resolves it to the root itself.

    Args:
        datamodule: With ``root`` or without. A root that is spelled plainly stays what it is.
    """
    root = getattr(datamodule, "root", None)
    if root is None or not (contains_non_printable_characters(root) or is_path_too_long(root, LONGEST)):
        yield
        return
    with TemporaryDirectory() as folder:
        link = Path(folder) / "root"
        link.symlink_to(Path(root).absolute(), target_is_directory=True)
        datamodule.root = link
        try:
            yield
        finally:
            datamodule.root = root


def leave_out_hidden(dataset: AnomalibDataset, root: Path) -> None:
    """Drop the images of a data set that are hidden below its root; one line says how many."""
    paths = [Path(path) for path in dataset.samples["image_path"]]
    visible = set(without_hidden(paths, root))
    kept = [path in visible for path in paths]
    if not all(kept):
        logger.warning("%s: %d hidden files left out of %d images", root, len(kept) - sum(kept), len(kept))
        dataset.samples = dataset.samples[kept]


def what_to_mend(datamodule: Any, reason: str) -> str:  # any datamodule
    """Say what is wrong with a layout that anomalib could not read.

    Args:
        datamodule: Its ``root`` and ``category`` are looked through.
        reason: What anomalib says.
    """
    if "too long" in reason or "non-printable" in reason:
        return "Rename it, or use FolderNoisy, which takes any path"
    root = Path(getattr(datamodule, "root", None) or ".")
    files = [path for path in root.rglob("*") if path.is_file()]
    hidden = sorted(set(files).difference(without_hidden(files, root)))
    missing = without_mask(root / getattr(datamodule, "category", ""))
    if hidden:
        return f"Remove {len(hidden)} hidden files from its folders, {hidden[0]} for one"
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        return f"These anomalous images have no mask: {', '.join(map(str, missing[:3]))}{more}"
    return (
        "Does every anomalous test image have its ground truth mask, and a file type that this data set takes "
        "(MVTec AD: .png only; any type: FolderNoisy)?"
    )


def without_mask(folder: Path) -> list[Path]:
    """Return images ``test/<kind>/<name>.*`` for which there is no ``ground_truth/<kind>/<name>*``."""
    images = sorted(path for path in folder.glob("test/*/*") if path.parent.name not in {"good", "ok"})
    masks = folder / "ground_truth"
    return [image for image in images if not any((masks / image.parent.name).glob(f"{glob.escape(image.stem)}*"))]


def broken_links(root: str | Path | None) -> list[Path]:
    """Return the links below a root that point to nothing."""
    return [] if root is None else [path for path in Path(root).rglob("*") if path.is_symlink() and not path.exists()]
