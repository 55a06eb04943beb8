# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""An epoch of several stages, written as one generator, inside Lightning's own loop.

``training_step`` advances the generator in proportion to the trainer's batches, so that progress, callbacks, precision,
checkpoints and resume are Lightning's. Only for models that step by themselves.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from anomalib.data import Batch
from lightning.pytorch import Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from .compat import averages_weights, saves_within_an_epoch
from .finite import StopsWhenNotFinite, check_finite
from .precision import check_precision, computes_in_bf16
from .ranks import Ranks, gradients

logger = logging.getLogger(__name__)


class StagedEpoch(StopsWhenNotFinite):
    """Mixin before ``AnomalibModule``.

    A model has a generator ``epoch(e, epochs)`` that yields after each optimiser step, says how many there will be
    (``planned_steps``) before the first, and takes them with :meth:`optimize`. On several devices every rank runs the
    same generator and takes a share of each batch.

    Attributes:
        ranks: This rank among those of the training.
        planned_steps: Optimiser steps of the epoch that is under way.
    """

    epoch: Callable[[int, int], Iterator[None]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.automatic_optimization = False
        self.ranks = Ranks()
        self.planned_steps = 1
        self._steps_done = 0
        self._running: tuple[int, Iterator[None]] | None = None
        self._under_way = False
        self._is_to_stop = False

    def setup(self, stage: str) -> None:
        """Refuse what would train something else than asked for, before anything is read."""
        trainer: Trainer = self.trainer  # type: ignore[attr-defined]
        if stage == "fit":
            check_trainer(trainer, type(self).__name__, overridden="configure_optimizers" in vars(self))
            if trainer.fast_dev_run:  # type: ignore[attr-defined]
                # so many batches are what is run; Lightning would count the steps of all optimisers
                trainer.fit_loop.epoch_loop.max_steps = -1
        super().setup(stage)  # type: ignore[misc]

    def on_fit_start(self) -> None:
        """Find the ranks."""
        super().on_fit_start()  # type: ignore[misc]
        self._under_way = self._is_to_stop = False
        trainer: Trainer = self.trainer  # type: ignore[attr-defined]
        self.ranks = Ranks.of(trainer)
        if self.ranks.count > 1:
            # DistributedDataParallel knows neither several optimisers nor several steps a batch: `optimize` averages
            trainer.strategy.model = self  # type: ignore[assignment]

    def on_train_start(self) -> None:
        """Lay resumed moments out as the parameters are: a fused step on a processor takes that for granted."""
        super().on_train_start()  # type: ignore[misc]
        for optimizer in self.all_optimizers():
            for parameter, state in optimizer.optimizer.state.items():
                for name, value in state.items():
                    if value.shape == parameter.shape and value.stride() != parameter.stride():
                        state[name] = torch.empty_like(parameter).copy_(value)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Advance the epoch in proportion to the trainer's batches; the batch itself is not needed.

        Args:
            batch: Ignored: images are read by index, once.
            batch_idx: Index of the batch in the epoch.
        """
        del batch
        trainer: Trainer = self.trainer  # type: ignore[attr-defined]
        epoch = trainer.current_epoch
        if self._running is None or self._running[0] != epoch:
            self._running = (epoch, self.epoch(epoch, trainer.max_epochs or 1))
            self._steps_done, self.planned_steps, self._under_way = 0, 1, True
        share = (batch_idx + 1) / trainer.num_training_batches
        while trainer.is_last_batch or self._steps_done < share * self.planned_steps:
            if next(self._running[1], self) is self:
                # now, and not when the epoch ends: a checkpoint after validation comes before that
                self._under_way = False
                self.on_epoch_trained()
                break
            self._steps_done += 1

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Put off a stop, such as a time limit's, until the epoch has been trained."""
        super().on_train_batch_end(*args, **kwargs)  # type: ignore[misc]
        trainer: Trainer = self.trainer  # type: ignore[attr-defined]
        self._is_to_stop = self._is_to_stop or trainer.should_stop
        trainer.should_stop = self._is_to_stop and not self._under_way

    def on_epoch_trained(self) -> None:
        """Do what a model has to do when the last step of an epoch is taken."""

    def on_train_epoch_end(self) -> None:
        """Forget the epoch that is over."""
        super().on_train_epoch_end()  # type: ignore[misc]
        self._running = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint from within an epoch: a training that went on from it would repeat the epoch's beginning.

        Raises:
            RuntimeError: Saying when a checkpoint can be had.
        """
        super().on_save_checkpoint(checkpoint)  # type: ignore[misc]
        if self._under_way:
            msg = (
                f"Epoch {checkpoint.get('epoch')} is under way: its stages cannot be gone on with from a checkpoint. "
                "Save one when an epoch has ended."
            )
            raise RuntimeError(msg)

    def all_optimizers(self) -> list[LightningOptimizer]:
        """Return the optimisers as a list, also where there is one."""
        optimizers: Any = self.optimizers()  # type: ignore[attr-defined]
        return optimizers if isinstance(optimizers, list) else [optimizers]

    def optimize(self, optimizer: LightningOptimizer, loss: Tensor, stage: str) -> None:
        """Take one optimiser step, with all ranks that have a share of the batch, and log the stage's loss.

        Args:
            optimizer: One of :meth:`all_optimizers`.
            loss: Scalar, of this rank's share.
            stage: What the loss is logged as: ``train_loss_<stage>``.

        Raises:
            NotFiniteError: If the loss is not finite.
        """
        with self.finite(f"stage {stage}"):
            check_finite(loss=loss.detach())
        optimizer.zero_grad()
        self.manual_backward(loss)  # type: ignore[attr-defined]
        self.ranks.average([loss, *gradients(optimizer)])
        optimizer.step()
        shown = {"on_step": False, "on_epoch": True, "prog_bar": stage == "global", "batch_size": 1}
        self.log(f"train_loss_{stage}", loss.detach(), **shown)  # type: ignore[attr-defined]

    def log_epoch(self, **values: float) -> None:
        """Log values of the epoch as ``epoch_<name>``."""
        named = {f"epoch_{name}": float(value) for name, value in values.items()}
        self.log_dict(named, on_step=False, on_epoch=True, batch_size=1)  # type: ignore[attr-defined]

    def end_training(self) -> None:
        """Let go of what an epoch left behind."""
        self._running, self.ranks = None, Ranks()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the running epoch out: anomalib's torch export pickles the whole module, a generator has no copy."""
        return super().__getstate__() | {"_running": None}  # type: ignore[misc]


def check_trainer(trainer: Trainer, model: str, overridden: bool) -> None:
    """Refuse a trainer under which a staged epoch would train something else.

    Args:
        trainer: The trainer that is about to fit.
        model: The model's name, for messages.
        overridden: Whether the model's ``configure_optimizers`` was replaced, as the CLI's ``--optimizer`` does.

    Raises:
        ValueError: Naming the argument and its value.
    """
    check_precision(trainer)
    averaging = [callback for callback in trainer.callbacks if averages_weights(callback)]  # type: ignore[attr-defined]
    inside = [callback for callback in trainer.checkpoint_callbacks if saves_within_an_epoch(callback)]
    if overridden:
        msg = f"{model} has several optimisers; --optimizer would replace them by one. Set --model.learning_rate."
    elif trainer.max_steps != -1 and not getattr(trainer, "fast_dev_run", False):
        msg = (
            f"max_steps is {trainer.max_steps}: the schedules of {model} are in epochs, and an epoch's number of steps "
            "varies. Set max_epochs instead."
        )
    elif trainer.max_epochs is None or trainer.max_epochs <= 0:
        msg = f"max_epochs is {trainer.max_epochs}: the schedules of {model} need to know the end. Set it to 1 or more."
    elif trainer.accumulate_grad_batches != 1:
        msg = f"accumulate_grad_batches is {trainer.accumulate_grad_batches}; {model} steps by itself. Set it to 1."
    elif averaging:
        msg = (
            f"{type(averaging[0]).__name__} keeps the mean of the weights over steps: the students of {model} would "
            "not be those that scored the training images. Leave it out."
        )
    elif inside:
        msg = (
            f"{type(inside[0]).__name__} saves within an epoch, by every_n_train_steps, train_time_interval or "
            f"save_on_exception: an epoch of {model} cannot be gone on with in its middle. Set every_n_epochs instead."
        )
    elif trainer.val_check_interval != 1.0 and trainer.val_check_interval is not None:
        msg = f"val_check_interval is {trainer.val_check_interval}: {model} validates when an epoch ends. Leave it out."
    elif trainer.world_size > 1 and not isinstance(trainer.strategy, DDPStrategy):
        msg = f"strategy is {type(trainer.strategy).__name__}: on several devices {model} trains with strategy: ddp."
    elif trainer.num_nodes > 1:
        msg = f"num_nodes is {trainer.num_nodes}: the devices share a feature cache; take those of one node."
    else:
        device = trainer.strategy.root_device
        if "bf16" in str(trainer.precision) and not computes_in_bf16(device):
            logger.warning(
                "precision is %s and this %s has no bf16 arithmetic: it may take tens of times as long as 32-true.",
                trainer.precision,
                device.type,
            )
        return
    raise ValueError(msg)
