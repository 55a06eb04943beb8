# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Files that are whole or not there: written beside their place, flushed to disk and renamed."""

import glob
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# what reading an ``.npz`` raises that is damaged, by where the damage is
DAMAGED = (OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error)


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Write a file by way of a draft beside it, so that a killed process leaves the old file or the new one.

    Args:
        path: The file. Its folder is made if need be.

    Yields:
        Where to write. When the block ends without an error the draft takes the file's place; else it is deleted.

    Raises:
        OSError: If the folder cannot be made or the file cannot be written; an older file is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*"):
        if is_of_the_dead(left):  # a kill runs no clean-up
            left.unlink(missing_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield draft
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with written_whole(path) as draft:
        draft.write_text(text, encoding="utf-8", newline="")


def is_of_the_dead(draft: Path) -> bool:
    """Return whether a draft, whose name ends in the number of its process, is of one that runs no more."""
    process = draft.suffix[1:]
    if not process.isdigit() or int(process) == os.getpid():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except OSError:  # somebody else's, alive
        return False
    return False
