# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are whole or not there.

Lightning writes a checkpoint to the system's temporary folder and moves it over the one before. Where that folder is
another file system (a ``/tmp`` in memory, say) the move is a copy: a process that is killed within it leaves half a
checkpoint in the place of a good one. Here it is written beside and renamed.
"""

import os
from pathlib import Path
from typing import Any

import torch
from anomalib.engine.plugins import AnomalibCheckpointIO
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Trainer


class WholeCheckpointIO(AnomalibCheckpointIO):
    """anomalib's, but for how a local file is written and for what is said of one that cannot be read."""

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = True
    ) -> dict[str, Any]:  # what torch.load takes
        """Read a checkpoint.

        Args:
            path: Where it is.
            map_location: Devices, as ``torch.load`` takes them.
            weights_only: Whether to read plain data alone.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is damaged, or holds more than plain data; the message names it.
        """
        try:
            return super().load_checkpoint(path, map_location, weights_only is not False)
        except FileNotFoundError:
            raise
        except Exception as error:  # a damaged file raises whatever its bytes lead to
            msg = f"Checkpoint {path} is damaged, or holds more than plain data and is not loaded: it could run code."
            raise ValueError(msg) from error

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint beside the place where it belongs, then rename it.

        Args:
            checkpoint: What to write.
            path: Where. Anything but a local path is Lightning's business.
            storage_options: Lightning's.

        Raises:
            OSError: If it cannot be written; an older file of that name is as it was.
        """
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with draft.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except (OSError, RuntimeError) as error:  # torch's own for a full disk
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            msg = f"Checkpoint {path} could not be written ({reason}). An older one of that name is as it was."
            raise OSError(msg) from error
        finally:
            draft.unlink(missing_ok=True)


def guard_checkpoints(trainer: Trainer) -> None:
    """Let a trainer write and read checkpoints by :class:`WholeCheckpointIO`, unless it was given a way of its own."""
    plain = trainer.strategy.checkpoint_io
    if type(plain) in {TorchCheckpointIO, AnomalibCheckpointIO}:
        trainer.strategy.checkpoint_io = WholeCheckpointIO(getattr(plain, "extra_safe_globals", None))
