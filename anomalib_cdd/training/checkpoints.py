# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are whole or not there.

Lightning writes a checkpoint to the system's temporary folder and moves it over the one before. Where that folder is
another file system (a ``/tmp`` in memory, say) the move is a copy: a process that is killed within it leaves half a
checkpoint in the place of a good one. Here it is written beside and renamed.
"""

import errno
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from anomalib.engine.plugins import AnomalibCheckpointIO
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Trainer

from .compat import may_keep_an_early_one
from .files import written_whole
from .results import LATEST, link_latest

MEGABYTE = 2**20


@contextmanager
def readable_checkpoint(path: str | Path, model: str = "this model") -> Iterator[None]:
    """Turn what reading a bad file raises into one line that names the file; anything else keeps its own name.

    Args:
        path: The checkpoint.
        model: Whose it should be, for the message.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, holds more than plain data, or is of something else.
    """
    if "://" not in str(path) and not Path(path).is_file():
        msg = f"Checkpoint {path} does not exist."
        raise FileNotFoundError(msg)
    try:
        yield
    except pickle.UnpicklingError as error:
        # torch names the class that it refuses; anything else is a stream that makes no sense
        if "GLOBAL" in str(error) or "Unsupported class" in str(error):
            msg = f"Checkpoint {path} holds more than plain data and is not loaded: it could run code."
        else:  # torch's own words advise to read it without care
            msg = f"Checkpoint {path} is damaged, or is no checkpoint."
        raise ValueError(msg) from error
    except EOFError as error:
        msg = f"Checkpoint {path} is damaged: it ends too early."
        raise ValueError(msg) from error
    except RuntimeError as error:
        if "loading state_dict" in str(error):
            msg = f"Checkpoint {path} is not of {model} ({' '.join(str(error).split())[:400]})."
            raise ValueError(msg) from error
        if "zip archive" not in str(error) and "PytorchStreamReader" not in str(error):
            raise
        msg = f"Checkpoint {path} is damaged ({_first_line(error)})."
        raise ValueError(msg) from error
    except OSError as error:
        if str(path) in str(error):
            raise
        msg = f"Checkpoint {path} is damaged ({_first_line(error)})."  # it leads to places before the file's beginning
        raise ValueError(msg) from error
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:  # what is in it has another shape
        if str(path) in str(error):
            raise
        msg = f"Checkpoint {path} is not of {model} ({type(error).__name__}: {_first_line(error)})."
        raise ValueError(msg) from error


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
        with readable_checkpoint(path):
            return super().load_checkpoint(path, map_location, weights_only is not False)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint beside the place where it belongs, then rename it; ``latest`` leads to it from then on.

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
        try:
            with written_whole(path) as draft, draft.open("wb") as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:  # torch's own for a full disk
            number = getattr(error, "errno", None) or getattr(error.__context__, "errno", None)
            free = shutil.disk_usage(path.parent).free
            full = number == errno.ENOSPC or free < MEGABYTE
            reason = f"the disk is full, {free / MEGABYTE:,.0f} MiB free" if full else _first_line(error)
            msg = f"Checkpoint {path} could not be written: {reason}. An older one of that name is as it was."
            raise OSError(msg) from error
        run = next((folder for folder in path.parents if (folder.parent / LATEST).is_symlink()), None)
        if run is not None:
            link_latest(run)


def may_be_kept(trainer: Trainer) -> bool:
    """Return whether a checkpoint that is written now may be the one that is loaded later.

    It is the last of the training, one that a measure chooses, or one of every few epochs or steps. Where nothing says
    when a training ends any may be.
    """
    epochs, steps = trainer.max_epochs or 1, trainer.max_steps
    ends = epochs > 0 or steps > 0
    is_last = 0 < epochs <= trainer.current_epoch + 1 or 0 < steps <= trainer.global_step
    chosen = any(may_keep_an_early_one(callback) for callback in trainer.checkpoint_callbacks)
    chosen = chosen or trainer.check_val_every_n_epoch != 1  # Lightning saves where it validates
    return trainer.should_stop or is_last or chosen or not ends


def guard_checkpoints(trainer: Trainer) -> None:
    """Let a trainer write and read checkpoints by :class:`WholeCheckpointIO`, unless it was given a way of its own."""
    plain = trainer.strategy.checkpoint_io
    if type(plain) in {TorchCheckpointIO, AnomalibCheckpointIO}:
        trainer.strategy.checkpoint_io = WholeCheckpointIO(getattr(plain, "extra_safe_globals", None))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:400]
