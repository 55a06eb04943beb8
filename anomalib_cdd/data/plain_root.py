# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""A short ASCII name for a root of any name: anomalib's readers of layouts refuse a path by how it is spelled."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from anomalib.data.utils.path import contains_non_printable_characters, is_path_too_long

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
