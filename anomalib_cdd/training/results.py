# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""One results folder for all ranks of a run, and a link ``latest`` that always leads to a run with a checkpoint."""

from contextlib import suppress
from pathlib import Path

from lightning.pytorch import Trainer

from .compat import set_root
from .ranks import Ranks

LATEST = "latest"


def use_one_results_folder(trainer: Trainer) -> None:
    """Have every rank write where the first does, and leave ``latest`` at a run that can be loaded.

    anomalib makes a results folder in each process and lets ``latest`` point to the last one before anything is in it.
    """
    ranks, own = Ranks.of(trainer), Path(trainer.default_root_dir)
    root = Path(ranks.tell(str(own)))
    if own != root:
        with suppress(OSError):  # not empty, or gone
            own.rmdir()
        set_root(trainer, root)
    ranks.wait()
    if ranks.is_first:
        keep_latest(root)


def keep_latest(run: Path) -> None:
    """Let ``latest`` beside a run's folder lead to the last run that has a checkpoint, where there is such a link."""
    if (run.parent / LATEST).is_symlink():
        runs = [other for other in run.parent.glob("v*") if any(other.rglob("*.ckpt"))]
        link_latest(max(runs, key=lambda other: other.stat().st_mtime, default=run))


def link_latest(run: Path) -> None:
    """Let ``latest`` beside a run's folder lead to it; where there is no such link there is none afterwards."""
    latest = run.parent / LATEST
    if not latest.is_symlink() or latest.resolve() == run.resolve():
        return
    draft = latest.with_name(f".{LATEST}")
    draft.unlink(missing_ok=True)
    draft.symlink_to(run.resolve(), target_is_directory=True)
    draft.replace(latest)
