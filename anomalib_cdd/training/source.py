# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""A hash of this package's code, comments, docstrings and layout aside: what is kept beyond a run depends on it."""

import ast
import hashlib
import sys
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from inspect import getfile
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
LIBRARIES = {PACKAGE.name, "anomalib", "lightning", "torch", *sys.stdlib_module_names}


def code_hash(rooms: Sequence[str], dependencies: Sequence[str], package: Path | None = None) -> str:
    """Return a hash of code.

    Args:
        rooms: Folders and files of this package.
        dependencies: Distributions that count by their versions.
        package: A copy of this package; ``None`` is this one.
    """
    package = package or PACKAGE
    text = "\n".join([*map(version, dependencies), *(_code(package, room) for room in rooms)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def home_of(kind: type) -> list[str]:
    """Return the folders of a class and of its bases as rooms, those of this package."""
    homes = {Path(file).parent for each in kind.__mro__ for file in _file_of(each)}
    return sorted(home.relative_to(PACKAGE).as_posix() for home in homes if home.is_relative_to(PACKAGE))


def foreign_code(kind: type) -> str:
    """Return a hash of the code of a user's own class and bases; empty where there are none.

    What is of this package counts by its rooms, what is of the libraries that it builds on by their versions.
    """
    own = [each for each in kind.__mro__ if each.__module__.partition(".")[0] not in LIBRARIES]
    files = sorted({file for each in own for file in _file_of(each)})
    return hashlib.sha256(b"\n".join(Path(file).read_bytes() for file in files)).hexdigest()[:16] if files else ""


def _file_of(kind: type) -> list[str]:
    """Return the file of a class; none where it has none, as what a notebook defines."""
    try:
        return [getfile(kind)]
    except (OSError, TypeError):
        return []


def _code(package: Path, room: str) -> str:
    """Return the code of a file, or of a folder's files by name."""
    parts, place = [], package / room
    for path in [place] if place.is_file() else sorted(place.rglob("*.py")):
        parts += [path.relative_to(package).as_posix(), _bare(path.read_text(encoding="utf-8"))]
    return "\n".join(parts)


@cache
def _bare(source: str) -> str:
    """Return code without comments, docstrings and layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [each for each in node.body if not _is_text(each)]
    return ast.unparse(tree)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
