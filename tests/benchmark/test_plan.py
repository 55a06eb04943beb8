# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""A result knows the code that it comes from."""

import importlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest

import anomalib_cdd
from anomalib_cdd import Cdd
from anomalib_cdd.benchmark.plan import Cell
from anomalib_cdd.benchmark.revision import commit, fingerprint
from anomalib_cdd.training import source

CDD, PADIM = "anomalib_cdd.models.cdd.lightning_model.Cdd", "anomalib.models.Padim"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of this package in a repository of its own."""
    package = tmp_path / "checkout" / "anomalib_cdd"
    copytree(Path(anomalib_cdd.__file__).parent, package, ignore=ignore_patterns("__pycache__"))
    git(package, "init", "--quiet")
    git(package, "add", ".")
    git(package, "-c", "user.name=x", "-c", "user.email=x@example.org", "commit", "--quiet", "-m", "all")
    return package


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize(
    ("file", "old", "new", "cdd_changes", "padim_changes"),
    [
        ("models/cdd/domains.py", "\n\n\n", "\n\n\n# a comment\n", False, False),
        ("models/cdd/domains.py", '"""', '"""More. ', False, False),
        ("models/cdd/domains.py", "def batches(", "A = 1\n\n\ndef batches(", True, False),
        ("data/noise.py", "def relative_names(", "A = 1\n\n\ndef relative_names(", True, True),
        ("benchmark/scores.py", "def threshold_measures(", "A = 1\n\n\ndef threshold_measures(", True, True),
        ("cli/entries.py", '"limit_val_batches": 0', '"limit_val_batches": 1', True, True),
        ("benchmark/tables.py", "DECIMALS = 3", "DECIMALS = 4", False, False),
    ],
)
def test_the_key_changes_with_the_code_that_results_come_from(
    package: Path, file: str, old: str, new: str, cdd_changes: bool, padim_changes: bool
) -> None:
    path = package / file
    before = [fingerprint(name, package) for name in (CDD, PADIM)]
    assert before == [fingerprint(name) for name in (CDD, PADIM)]
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    fingerprint.cache_clear()
    after = [fingerprint(name, package) for name in (CDD, PADIM)]
    assert [one != other for one, other in zip(before, after, strict=True)] == [cdd_changes, padim_changes]


def test_the_commit_says_whether_the_package_differs_from_it(package: Path) -> None:
    (package.parent / "results.csv").write_text("no part of it")
    clean = commit(package)
    assert len(clean) == 12
    assert git(package, "rev-parse", "HEAD").startswith(clean)
    commit.cache_clear()
    (package / "new.py").write_text("")
    assert commit(package) == f"{clean}+dirty"


def test_a_package_in_no_checkout_has_no_commit(package: Path) -> None:
    git(package, "rm", "-r", "--cached", "--quiet", ".")
    assert commit(package) == "unknown"


def test_another_code_makes_another_key() -> None:
    cell = Cell("tiles", 0.1, "cdd", 0, {}, code=fingerprint(CDD))
    assert replace(cell, code=fingerprint(PADIM)).key != cell.key


def test_the_key_changes_with_a_users_own_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    found = {}
    for base in ("anomalib_cdd.Cdd", "anomalib.models.Padim"):
        for version in (1, 2):
            module, name = base.rsplit(".", 1)
            text = f"from {module} import {name}\n\n\nclass Mine({name}):\n    VERSION = {version}\n"
            (tmp_path / "mine_model.py").write_text(text)
            sys.modules.pop("mine_model", None)
            importlib.invalidate_caches()
            fingerprint.cache_clear()
            found[base, version] = fingerprint("mine_model.Mine")
    fingerprint.cache_clear()
    assert len(set(found.values())) == 4
    # what it inherits of this package counts too
    assert source.home_of(type("Mine", (Cdd,), {})) == source.home_of(Cdd)
    assert "models/cdd" in source.home_of(Cdd)
