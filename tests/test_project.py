# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""The files around the package agree with it: workflow, citation, metadata."""

import re

import pytest
import yaml
from packaging.specifiers import SpecifierSet
from pages import ROOT, read

import anomalib_cdd

PYPROJECT = read("pyproject.toml")


def test_the_workflow_does_what_ci_run_does() -> None:
    workflow = yaml.safe_load(read(".github/workflows/ci.yml"))
    assert {"push", "pull_request"} <= set(workflow[True])  # YAML reads the key `on` as true
    [job] = workflow["jobs"].values()
    assert job["runs-on"].startswith("ubuntu")
    versions = [step["with"]["python-version"] for step in job["steps"] if "setup-python" in step.get("uses", "")]
    assert versions == ["3.11"]
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert "chromium" in commands[0]
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
