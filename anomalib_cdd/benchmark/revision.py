# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Which code a result comes from: the commit that a record names, and the fingerprint that a cell's key depends on.

The fingerprint is over the source of every room that a result passes through and of the model's own folder, comments,
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
ROOMS = ("cleaning", "data", "evaluation", "teachers", "thresholds", "training")
UNKNOWN = "unknown"


def fingerprint(class_path: str) -> str:
    """Return a hash of the code that a model's results come from, anomalib's version included.

    Args:
        class_path: Of the model. What lies outside this package counts by anomalib's version alone.
    """
    module, _, name = class_path.rpartition(".")
    home = Path(getfile(getattr(import_module(module), name))).parent
    folders = [PACKAGE / room for room in ROOMS] + ([home] if home.is_relative_to(PACKAGE) else [])
    text = "\n".join([version("anomalib"), *map(_code, folders)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def _code(folder: Path) -> str:
    """Return the code of a folder's files, by name."""
    parts = []
    for path in sorted(folder.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                node.body = [each for each in node.body if not _is_text(each)]
        parts += [path.relative_to(PACKAGE).as_posix(), ast.unparse(tree)]
    return "\n".join(parts)


def forget() -> None:
    """Read the code anew at the next question."""
    _code.cache_clear()


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


@cache
def commit() -> str:
    """Return the commit of the checkout that the package lies in, with ``+dirty`` if the package differs from it.

    ``"unknown"`` for an installed package, which is in no checkout, and where there is no git.
    """
    try:
        _git("ls-files", "--error-unmatch", "__init__.py")
        return _git("rev-parse", "--short=12", "HEAD") + ("+dirty" if _git("status", "--porcelain", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return UNKNOWN


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(PACKAGE), *arguments]  # git is where the user has it
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()  # noqa: S603
