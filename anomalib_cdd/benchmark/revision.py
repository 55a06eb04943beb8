# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Which code a result comes from: the commit that a record names, and the fingerprint that a cell's key depends on.

The fingerprint is over the source of all that a result passes through and of the model's own folder, comments,
docstrings and layout aside. So a change of the method, of how data is read or of a measure makes a cell new, while a
change of the report or of another model does not.
"""

import ast
import hashlib
import subprocess
from functools import cache
from importlib import import_module
from importlib.metadata import version
from inspect import getfile
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
ROOMS = (
    *("cleaning", "data", "evaluation", "teachers", "thresholds", "training"),
    *("benchmark/cell.py", "benchmark/course.py", "benchmark/scores.py"),
)
UNKNOWN = "unknown"


@cache
def fingerprint(class_path: str, package: Path = PACKAGE) -> str:
    """Return a hash of the code that a model's results come from, anomalib's version included.

    Args:
        class_path: Of the model. What lies outside this package counts by anomalib's version alone.
        package: This package, or a copy of it.
    """
    module, _, name = class_path.rpartition(".")
    home = Path(getfile(getattr(import_module(module), name))).parent
    rooms = [*ROOMS, *([home.relative_to(PACKAGE).as_posix()] if home.is_relative_to(PACKAGE) else [])]
    text = "\n".join([version("anomalib"), *(_code(package, room) for room in rooms)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _code(package: Path, room: str) -> str:
    """Return the code of a file, or of a folder's files by name."""
    parts, place = [], package / room
    for path in [place] if place.is_file() else sorted(place.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                node.body = [each for each in node.body if not _is_text(each)]
        parts += [path.relative_to(package).as_posix(), ast.unparse(tree)]
    return "\n".join(parts)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


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
