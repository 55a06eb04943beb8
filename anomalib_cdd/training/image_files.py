# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""The image files of a folder: what a system or an editor leaves behind is no image."""

import hashlib
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

logger = logging.getLogger(__name__)


def image_files(folder: str | Path, extensions: Sequence[str] | None = None) -> list[Path]:
    """List the images of a folder and of all folders in it; one line says how many other files were left out.

    Args:
        folder: The folder. Any name and length of path that the file system takes.
        extensions: Endings of images, each with its dot; case does not matter. torchvision's by default.

    Returns:
        Paths, sorted; none of a hidden file (such as ``._1.png``) or in a hidden folder (``.ipynb_checkpoints``).

    Raises:
        FileNotFoundError: If there is no such folder, or an image is a link to nowhere.
        ValueError: If an ending has no dot.
    """
    folder = Path(folder)
    if not folder.is_dir():
        msg = f"there is no folder {folder}"
        raise FileNotFoundError(msg)
    endings = tuple(ending.lower() for ending in extensions or IMG_EXTENSIONS)
    if not all(ending.startswith(".") for ending in endings):
        msg = f"extensions have to start with a dot, found {', '.join(map(repr, extensions or ()))}"
        raise ValueError(msg)
    places = sorted(folder.rglob("*"))
    files = [path for path in places if not path.is_dir()]
    linked = [path for path in places if path.is_symlink() and path.is_dir()]
    if linked:
        logger.warning("%s: links to folders are not followed, such as %s", folder, linked[0])
    visible = without_hidden(files, folder)
    images = [path for path in visible if path.suffix.lower() in endings]
    broken = [path for path in images if not path.exists()]
    if broken:
        msg = f"{broken[0]} is a link to nowhere; mend or remove it"
        raise FileNotFoundError(msg)
    if len(images) < len(files):
        hidden, others = len(files) - len(visible), len(visible) - len(images)
        logger.warning(
            "%s: %d files left out, %d of them hidden and %d no images by their names (%s)",
            folder, len(files) - len(images), hidden, others, ", ".join(endings),
        )  # fmt: skip
    return images


def contents_of(paths: Iterable[str | Path]) -> list[str]:
    """Return what tells files apart wherever they lie and whatever they are called.

    Returns:
        Of each file a hash of all of it; empty where it cannot be read.
    """
    return [_content(path) for path in paths]


def _content(path: str | Path) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:32]
    except OSError:
        return ""


def first_of_each(contents: Sequence[str]) -> list[int]:
    """Return for each of N files the first one with the same content: who has learned from one knows the other.

    Args:
        contents: What :func:`contents_of` returns. A file that could not be read is alone.
    """
    first: dict[str, int] = {}
    return [first.setdefault(content or f"file {number}", number) for number, content in enumerate(contents)]


def without_hidden(files: Iterable[Path], folder: Path) -> list[Path]:
    """Leave out files whose path below ``folder`` has a part that begins with a dot."""

    def is_hidden(path: Path) -> bool:
        inside = path.relative_to(folder) if path.is_relative_to(folder) else Path(path.name)
        return any(part.startswith(".") for part in inside.parts)

    return [path for path in files if not is_hidden(path)]


def printable(path: str) -> str:
    """Return a path with what is not valid UTF-8 escaped."""
    return path.encode(errors="backslashreplace").decode()
