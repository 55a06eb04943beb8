# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""What is released installs by itself and works where there is no repository.

``make test-release`` (minutes, needs the package index) builds both files, installs the wheel and what it asks for into
a fresh environment of RELEASE_PYTHON, this Python by default, and uses it from another folder.
"""

import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from pages import ROOT
from samples import make_sample, save

import anomalib_cdd

pytestmark = pytest.mark.release
TRAIN = "train --model anomalib_cdd.Cdd --model.backbone efficientnet_lite0_pypi --data anomalib_cdd.FolderNoisy"
TRAIN += " --data.name parts --data.root parts --data.normal_dir . --data.noise_ratio 0 --data.test_split_mode none"
TRAIN += " --data.val_split_mode none --data.num_workers 0 --trainer.max_epochs 1"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel, built from the source distribution, and that."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", folder, ROOT], check=True)
    [wheel], [sources] = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sources


@pytest.fixture(scope="module")
def program(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Return what runs a program of a fresh environment, in a folder of images, as nobody's but its own."""
    home = tmp_path_factory.mktemp("fresh")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL"))}
    environment |= {"HF_HUB_OFFLINE": "1", "MPLBACKEND": "agg"}

    def run(name: str, *arguments: str) -> str:
        command = [home / "venv" / "bin" / name, *arguments]
        done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout

    subprocess.run([os.environ.get("RELEASE_PYTHON", sys.executable), "-m", "venv", home / "venv"], check=True)
    run("python", "-m", "pip", "install", "--quiet", f"{built[0]}[cpu,demo]")
    for number in range(12):
        save(make_sample(number).image, home / "parts" / f"{number:03}.png")
    return run


def test_the_wheel_is_the_package_and_nothing_else(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[0]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    committed = subprocess.run(
        ["git", "ls-files", "anomalib_cdd"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert names == set(committed)
    assert {Path(name).suffix for name in names} >= {".j2", ".css", ".js", ".csv", ".typed"}


def test_the_sources_have_what_their_tests_need(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[1]) as sources:
        names = {name.partition("/")[2] for name in sources.getnames()}
    committed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(committed.stdout.splitlines()) - names == set()


def test_its_requirements_agree(program: Callable[..., str]) -> None:
    assert "No broken requirements found" in program("python", "-m", "pip", "check")


def test_it_is_the_installed_one(program: Callable[..., str]) -> None:
    code = "import anomalib_cdd; print(anomalib_cdd.__version__, anomalib_cdd.__file__)"
    version, path = program("python", "-c", code).split()
    assert version == anomalib_cdd.__version__
    assert "site-packages" in path


def test_it_trains_by_anomalibs_own_command(program: Callable[..., str], tmp_path: Path) -> None:
    program("anomalib", *TRAIN.split(), "--default_root_dir", str(tmp_path))
    assert next(tmp_path.rglob("model.ckpt"))
    assert len(pd.read_csv(next(tmp_path.rglob("audit/training_scores.csv")))) == 12


def test_it_audits_a_folder(program: Callable[..., str], tmp_path: Path) -> None:
    program("anomalib-cdd", "audit", "--data", "parts", "--output", str(tmp_path))
    assert len(pd.read_csv(tmp_path / "training_scores.csv")) == 12
    assert "000.png" in (tmp_path / "index.html").read_text(encoding="utf-8")
