# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Which code a result comes from: the commit that a record names, and the fingerprint that a cell's key depends on.

The fingerprint is over the source of all that a result passes through and of the model's own folder, comments,
docstrings and layout aside. So a change of the method, of how data is read or of a measure makes a cell new, while a
change of the report or of another model does not.
"""

import subprocess
from functools import cache
from importlib import import_module
from pathlib import Path

from anomalib_cdd.training.source import PACKAGE, code_hash, foreign_code, home_of

ROOMS = (
    *("cleaning", "data", "evaluation", "teachers", "thresholds", "training"),
    *("benchmark/cell.py", "benchmark/course.py", "benchmark/scores.py", "cli/entries.py"),
)
UNKNOWN = "unknown"


@cache
def fingerprint(class_path: str, package: Path = PACKAGE) -> str:
    """Return a hash of the code that a model's results come from, anomalib's version included.

    Args:
        class_path: Of the model. A user's own counts by its file, and those of its bases.
        package: This package, or a copy of it.
    """
    module, _, name = class_path.rpartition(".")
    kind = getattr(import_module(module), name)
    return code_hash([*ROOMS, *home_of(kind)], ["anomalib"], package) + foreign_code(kind)


@cache
def commit(package: Path = PACKAGE) -> str:
    """Return the commit of the checkout that the package lies in, with ``+dirty`` if the package differs from it.

    ``"unknown"`` for an installed package, which is in no checkout, and where there is no git.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]  # git is where the user has it
        return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()  # noqa: S603

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("rev-parse", "--short=12", "HEAD") + ("+dirty" if git("status", "--porcelain", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return UNKNOWN
