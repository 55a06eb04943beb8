# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""What touches a private name of Lightning or anomalib, with the public way it waits for, or mends a way of theirs."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from anomalib.data import AnomalibDataModule, ImageBatch, ImageItem
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, OnExceptionCheckpoint
from lightning.pytorch.trainer.connectors.data_connector import _DataLoaderSource, _request_dataloader
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, Dataset


def training_loader(trainer: Trainer) -> DataLoader:
    """Return the training loader that the user gave.

    Raises:
        ValueError: If it is not one loader of a data set with a length.
    """
    # before its first epoch the loop has no public name for the loader
    loader = _request_dataloader(trainer.fit_loop._data_source)  # noqa: SLF001
    if not isinstance(loader, DataLoader) or not hasattr(loader.dataset, "__len__") or loader.batch_size is None:
        msg = f"It takes one DataLoader of a data set with a length and a batch size, not {type(loader).__name__}."
        raise ValueError(msg)
    return loader


def spare_images(trainer: Trainer, loader: DataLoader, images: int) -> None:
    """Let the loop of this fit run over empty batches: its images have been read."""
    placeholder = placeholder_loader(images, loader.batch_size or 1)
    # the name is of no use to a loader, but stays for the next fit's data module
    trainer.fit_loop._data_source = _DataLoaderSource(placeholder, "train_dataloader")  # noqa: SLF001


def placeholder_loader(images: int, batch_size: int) -> DataLoader:
    """Return a loader with the batches of the training loader and nothing in them.

    It drives the trainer's progress once the features are cached, at no cost in decoded images.
    """
    items = cast("Dataset", [ImageItem(image=torch.zeros(3, 1, 1))] * images)
    return DataLoader(items, batch_size=batch_size, collate_fn=ImageBatch.collate)


def set_root(trainer: Trainer, root: Path) -> None:
    """Move a trainer's results: ``default_root_dir`` is read only."""
    trainer._default_root_dir = str(root)  # type: ignore[attr-defined]  # noqa: SLF001


def saves_within_an_epoch(callback: Checkpoint) -> bool:
    """Return whether a checkpoint callback saves by steps, by time or at an error: of the first two it tells nobody."""
    return _saves_by_steps(callback) or saves_at_an_error(callback)


def _saves_by_steps(callback: Checkpoint) -> bool:
    return any(getattr(callback, name, None) for name in ("_every_n_train_steps", "_train_time_interval"))


def saves_at_an_error(callback: Checkpoint) -> bool:
    """Return whether a checkpoint callback saves when a fit ends by an error."""
    return isinstance(callback, OnExceptionCheckpoint) or bool(getattr(callback, "save_on_exception", False))


def averages_weights(callback: Callback) -> bool:
    """Return whether a callback keeps a mean of the weights in place of the weights; not every Lightning has such."""
    return any(kind.__name__ == "WeightAveraging" for kind in type(callback).__mro__)


def may_keep_an_early_one(callback: Checkpoint) -> bool:
    """Return whether what a checkpoint callback keeps may be of an epoch before the last; it tells nobody of epochs."""
    is_chosen = bool(getattr(callback, "monitor", None)) or getattr(callback, "_every_n_epochs", 1) > 1
    # saved when an epoch is validated, before it is known whether the training stops there
    is_chosen = is_chosen or getattr(callback, "_save_on_train_epoch_end", None) is False
    return is_chosen or getattr(callback, "save_top_k", 1) == -1 or _saves_by_steps(callback)


@contextmanager
def plain_interrupts() -> Iterator[None]:
    """Let Ctrl-C within a fit be a ``KeyboardInterrupt``: Lightning makes it the exit of the process with status 1."""
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise


def datamodule_of(trainer: Trainer, stage: str) -> Any:  # of any library, or None
    """Return the data module of a stage that is being run, ``None`` where it was given loaders.

    Args:
        trainer: The trainer.
        stage: ``fit``, ``validate``, ``test`` or ``predict``.
    """
    given = _given(trainer, stage)[0]
    return given if isinstance(given, LightningDataModule) else None


def _given(trainer: Trainer, stage: str) -> list[Any]:
    loops: dict[str, list[Any]] = {
        "fit": [trainer.fit_loop, trainer.fit_loop.epoch_loop.val_loop],
        "validate": [trainer.validate_loop],
        "test": [trainer.test_loop],
        "predict": [trainer.predict_loop],
    }
    # there is no public name for what a loop was given; `trainer.datamodule` may be of an earlier run
    return [loop._data_source.instance for loop in loops[stage]]  # noqa: SLF001


def datasets_of(trainer: Trainer, stage: str) -> list[Dataset]:
    """Return the data sets that a stage reads, of its data module or its loaders; a fit's training set comes first.

    Args:
        trainer: A trainer whose run is being set up.
        stage: ``fit``, ``validate``, ``test`` or ``predict``.
    """
    given = _given(trainer, stage)
    if isinstance(given[0], LightningDataModule):
        names = [f"{subset}_data" for subset in ("train", "val", "test")]
        return [getattr(given[0], name) for name in names if hasattr(given[0], name)]
    loaders = [loader for one in given if one is not None for loader in CombinedLoader(one, "sequential").flattened]
    return [loader.dataset for loader in loaders if hasattr(loader, "dataset")]


class SubcommandHooks:
    """Public names for what anomalib's command line has private ones for; it waits for a hook for plugins."""

    def _set_install_subcommand(self, action_subcommand: Any) -> None:
        # the one place where anomalib hands over its subcommands while it builds them
        super()._set_install_subcommand(action_subcommand)  # type: ignore[misc]
        self.add_own_subcommands(action_subcommand)

    def _run_subcommand(self) -> None:
        self.before_subcommand()
        with self.around_subcommand():
            super()._run_subcommand()  # type: ignore[misc]

    def add_own_subcommands(self, action: Any) -> None:
        """Add subcommands of one's own to jsonargparse's action."""

    def before_subcommand(self) -> None:
        """Do what has to be done before a subcommand runs."""

    def around_subcommand(self) -> AbstractContextManager[None]:
        """Return what a subcommand runs in."""
        return nullcontext()


class CheckpointedOptions:
    """A post-processor whose ``checkpointed_options`` are kept in checkpoints beside anomalib's, which has no hook."""

    checkpointed_options: tuple[str, ...] = ()

    @property
    def _checkpoint_config_keys(self) -> tuple[str, ...]:
        return (*super()._checkpoint_config_keys, *self.checkpointed_options)  # type: ignore[misc]


class QuantizesStudent:
    """A model whose ``compression_type=INT8_PTQ`` goes by training images; anomalib's has no hook for how it does."""

    def _post_training_quantization_ov(self, model: Any, datamodule: AnomalibDataModule | None = None) -> Any:
        from .quantization import quantize  # which reads images by what builds on this module

        return quantize(model, datamodule, self)
