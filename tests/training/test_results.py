# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""``latest`` leads to a run with a checkpoint, whatever became of the last one; nothing of a killed process is left."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from anomalib.engine import Engine
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import Callback
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anomalib_cdd import Cdd, MVTecNoisy
from anomalib_cdd.training.files import write_text

Fit = Callable[..., Path]


class Stop(Callback):
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        raise InterruptedError


def broken(stage: str | None = None) -> None:
    raise FileNotFoundError(stage)


@pytest.fixture
def fit(mvtec_root: Path, tmp_path: Path) -> Fit:
    def run(*callbacks: Callback, breaks: bool = False) -> Path:
        steps = [Resize((64, 64), antialias=True), Normalize(mean=[0.5] * 3, std=[0.5] * 3)]
        options = {"backbone": "test_resnet", "pre_trained": False, "student_width": 8, "audit": False}
        model = Cdd(**options, pre_processor=PreProcessor(Compose(steps)), visualizer=False)
        data = MVTecNoisy(root=mvtec_root, noise_ratio=0.25, val_split_mode="none", train_batch_size=4, num_workers=0)
        engine = Engine(
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            callbacks=list(callbacks),
            default_root_dir=tmp_path,
        )
        if breaks:
            data.prepare_data = data.setup = broken  # type: ignore[method-assign]
        engine.fit(model, datamodule=data)
        return Path(engine.trainer.default_root_dir)

    return run


def test_latest_leads_to_the_last_run_that_can_be_loaded(fit: Fit, tmp_path: Path) -> None:
    first = fit()
    latest = tmp_path / "Cdd" / "MVTecAD" / "bottle" / "latest"
    if not latest.is_symlink():
        latest = next(tmp_path.rglob("latest"))
    assert latest.resolve() == first.resolve()
    with pytest.raises(InterruptedError):
        fit(Stop())
    assert len(list(latest.parent.glob("v*"))) == 2
    assert latest.resolve() == first.resolve()
    with pytest.raises(FileNotFoundError):
        fit(breaks=True)
    assert latest.resolve() == first.resolve()
    third = fit()
    assert third != first
    assert latest.resolve() == third.resolve()


def test_drafts_of_the_dead_are_swept_and_those_of_the_living_are_not(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = tmp_path / f".results.csv.{dead.pid}"
    alive = tmp_path / f".results.csv.{os.getppid()}"
    other = tmp_path / ".results.csv.backup"
    for draft in (left, alive, other):
        draft.write_text("half")
    write_text(path, "whole")
    assert path.read_text() == "whole"
    assert not left.exists()
    assert alive.exists()
    assert other.exists()


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "table.csv"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]
