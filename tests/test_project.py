# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""The files around the package agree with it: workflow, citation, metadata."""

import ast
import re
import sys
from importlib.metadata import packages_distributions

import pytest
import yaml
from packaging.specifiers import SpecifierSet
from pages import ROOT, read

import anomalib_cdd

PYPROJECT = read("pyproject.toml")
BY_ANOMALIB = {"openvino", "nncf"}  # of its extra, which ours passes on


def test_the_workflow_does_what_ci_run_does() -> None:
    workflow = yaml.safe_load(read(".github/workflows/ci.yml"))
    assert {"push", "pull_request"} <= set(workflow[True])  # YAML reads the key `on` as true
    [job] = workflow["jobs"].values()
    assert job["runs-on"].startswith("ubuntu")
    versions = [step["with"]["python-version"] for step in job["steps"] if "setup-python" in step.get("uses", "")]
    assert versions == ["3.11"]
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands[0].startswith("google-chrome")  # Ubuntu's chromium, a snap, cannot read /tmp
    assert commands[-1] == "bash .ci/run"
    assert (ROOT / ".ci/run").exists()


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["version"] == anomalib_cdd.__version__
    assert citation["license"] == re.search(r'^license = "(.*)"', PYPROJECT, flags=re.MULTILINE)[1]  # type: ignore[index]
    assert citation["authors"] == [{"name": "the anomalib-cdd authors"}]
    assert not {"doi", "url", "repository-code", "identifiers"} & set(citation)


def test_the_changelog_begins_with_this_version() -> None:
    [heading, *_] = re.findall(r"^## (\S+)", read("CHANGELOG.md"), flags=re.MULTILINE)
    assert anomalib_cdd.__version__.split(".dev")[0] == heading


def test_contributing_is_short() -> None:
    assert len(read("CONTRIBUTING.md").splitlines()) <= 90


@pytest.mark.parametrize("version", re.findall(r"Python :: (3\.\d+)", PYPROJECT))
def test_each_python_that_is_named_may_install_it(version: str) -> None:
    wanted = SpecifierSet(re.search(r'^requires-python = "(.*)"', PYPROJECT, flags=re.MULTILINE)[1])  # type: ignore[index]
    assert version in wanted


def test_every_import_is_a_declared_dependency() -> None:
    asked = {
        re.sub(r"[-_.]+", "-", name).lower() for name in re.findall(r'^ *"([\w.-]+)', PYPROJECT, flags=re.MULTILINE)
    }
    asked |= set(re.findall(r'"([\w-]+)>=', PYPROJECT))
    homes = packages_distributions()
    for path in [*(ROOT / "anomalib_cdd").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        names = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level and node.module}
        names |= {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
        for name in {name.partition(".")[0] for name in names} - sys.stdlib_module_names - BY_ANOMALIB:
            if name not in {"anomalib_cdd", "benchmarks"}:
                assert asked & {re.sub(r"[-_.]+", "-", home).lower() for home in homes.get(name, ())}, (path.name, name)
