# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Imports point down the list of rooms in CONTRIBUTING.md; models know neither data nor one another."""

import ast
import re
from pathlib import Path

import pytest
from pages import ROOT, read

PACKAGE = ROOT / "anomalib_cdd"
ROOMS = re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`.*?) \|", read("CONTRIBUTING.md"), flags=re.MULTILINE)))
OF_MODELS = {"teachers", "training", "thresholds"}


def imports(path: Path) -> set[str]:
    """Modules of this package that a file imports, without the package's name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            home = path.parents[node.level - 1].relative_to(ROOT).parts if node.level else ()
            module = [*home, *(node.module or "").split(".")]
            names = [[*module, name.name] for name in node.names]
        elif isinstance(node, ast.Import):
            names = [name.name.split(".") for name in node.names]
        else:
            continue
        found |= {".".join(name[1:]) for name in names if name[0] == PACKAGE.name and len(name) > 1}
    return found


def test_the_list_is_of_all_rooms() -> None:
    assert sorted(ROOMS) == sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_down(room: str) -> None:
    above = set(ROOMS[: ROOMS.index(room)])
    for path in (PACKAGE / room).rglob("*.py"):
        assert {name for name in imports(path) if name.split(".")[0] in above} == set(), path


def test_models_know_neither_data_nor_one_another() -> None:
    for path in (PACKAGE / "data").rglob("*.py"):
        assert not [name for name in imports(path) if name.startswith("models")], path
    for path in (PACKAGE / "models").glob("*/*.py"):
        own = f"models.{path.parent.name}"
        strange = {name for name in imports(path) if name.split(".")[0] not in OF_MODELS and not name.startswith(own)}
        assert strange == set(), path
