# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""A checkpoint is whole or not there, however its writing ends."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.engine.plugins import AnomalibCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.plugins import AsyncCheckpointIO

from anomalib_cdd.training.checkpoints import WholeCheckpointIO, guard_checkpoints

OLD, NEW = {"weights": torch.zeros(3)}, {"weights": torch.ones(3)}


class Killed(BaseException):
    """Stands for a SIGKILL: nothing in its way may tidy up."""


def value(path: Path) -> float:
    return torch.load(path, weights_only=True)["weights"][0].item()


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "model.ckpt"
    for content in (OLD, NEW):
        WholeCheckpointIO().save_checkpoint(content, path)
        assert torch.equal(WholeCheckpointIO().load_checkpoint(path)["weights"], content["weights"])
    assert list(path.parent.iterdir()) == [path]


def test_at_no_moment_of_a_write_is_there_half_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call that touches the file is the last one once."""
    path = tmp_path / "model.ckpt"
    io, save = WholeCheckpointIO(), torch.save
    io.save_checkpoint(OLD, path)
    seen = []

    def half(checkpoint: Any, file: Any) -> None:
        save(checkpoint, file)
        file.truncate(file.tell() // 2)
        raise Killed

    def before_rename(draft: Path, target: Path) -> None:
        seen.append((value(draft), value(target)))
        raise Killed

    for owner, name, deadly in ((torch, "save", half), (Path, "replace", before_rename)):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, deadly)
            with pytest.raises(Killed):
                io.save_checkpoint(NEW, path)
        assert value(path) == 0
    # what is renamed is whole already, and one rename does it
    assert seen == [(1, 0)]


def test_lightning_alone_can_leave_half_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason for a way of our own: should this fail, Lightning has learned it."""
    path = tmp_path / "model.ckpt"
    AnomalibCheckpointIO().save_checkpoint(OLD, path)

    def elsewhere(*_: Any) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    def killed(source: str, target: str, **_: Any) -> None:
        content = Path(source).read_bytes()
        Path(target).write_bytes(content[: len(content) // 2])
        raise Killed

    monkeypatch.setattr(os, "rename", elsewhere)
    monkeypatch.setattr(shutil, "copyfile", killed)
    with pytest.raises(Killed):
        AnomalibCheckpointIO().save_checkpoint(NEW, path)
    with pytest.raises((RuntimeError, EOFError)):
        value(path)


def test_a_full_disk_is_said_and_costs_neither_the_old_checkpoint_nor_room(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    WholeCheckpointIO().save_checkpoint(OLD, path)
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    (tmp_path / f".{path.name}.{os.getpid()}").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"model\.ckpt could not be written: .+\. An older one") as raised:
        WholeCheckpointIO().save_checkpoint({"weights": torch.ones(1_000_000)}, path)
    assert "\n" not in str(raised.value)
    assert value(path) == 0
    assert list(tmp_path.iterdir()) == [path]


def test_a_way_of_ones_own_is_left_alone(tmp_path: Path) -> None:
    for given, expected in ((None, WholeCheckpointIO), (AsyncCheckpointIO(), AsyncCheckpointIO)):
        trainer = Trainer(accelerator="cpu", logger=False, plugins=given, default_root_dir=tmp_path)
        guard_checkpoints(trainer)
        assert type(trainer.strategy.checkpoint_io) is expected
    plugin = AnomalibCheckpointIO(extra_safe_globals=[Path])
    trainer = Trainer(accelerator="cpu", logger=False, plugins=plugin, default_root_dir=tmp_path)
    guard_checkpoints(trainer)
    assert trainer.strategy.checkpoint_io.extra_safe_globals == [Path]
