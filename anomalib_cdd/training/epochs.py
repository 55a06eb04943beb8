# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""What models have in common that train students by ordinary Lightning epochs: how many, and how they are loaded.

A model composes its own training step; this is what Lightning and anomalib ask of it beside that.
"""

from pathlib import Path
from typing import Any

import torch
from anomalib import LearningType
from anomalib.data import Batch
from anomalib.models.components import AnomalibModule
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from .checkpoints import readable_checkpoint
from .finite import StopsWhenNotFinite, check_finite
from .precision import check_precision

# neighbouring runs share no epoch's dropout
EPOCHS_APART = 1_000_003


class TrainsByEpochs:
    """Mixin before ``LabelFreeDefaults``: 200 epochs unless told otherwise, checkpoints that fetch no weights.

    Attributes:
        several_rates: Whether parts of the model learn at rates of their own, which one optimizer in place of the
            model's would not keep.
    """

    default_epochs: int | None = 200
    several_rates = False
    model: Any

    def setup(self, stage: str) -> None:
        """Refuse an optimizer that would move all parts of the model at one rate, and a precision that images lack.

        Raises:
            ValueError: If ``configure_optimizers`` was replaced, as the CLI's ``--optimizer`` does, or by precision.
        """
        if stage == "fit":
            check_precision(self.trainer)  # type: ignore[attr-defined]
        if stage == "fit" and self.several_rates and "configure_optimizers" in vars(self):
            msg = (
                f"Parts of {type(self).__name__} learn at rates of their own; --optimizer would replace them by one. "
                "Leave it out and set --model.learning_rate."
            )
            raise ValueError(msg)
        super().setup(stage)  # type: ignore[misc]  # AnomalibModule's

    def on_train_start(self) -> None:
        """Train in training mode and at this model's rate, whatever an evaluation, an export or a checkpoint left."""
        super().on_train_start()  # type: ignore[misc]  # LightningModule's
        self.model.train()
        module: Any = self
        rate, schedules = getattr(self, "learning_rate", None), module.trainer.lr_scheduler_configs
        if rate is not None and not schedules and "configure_optimizers" not in vars(self):
            # the student's, the first group of the first; other parts' rates are constants
            module.trainer.optimizers[0].param_groups[0]["lr"] = rate

    def on_train_epoch_start(self) -> None:
        """Let what draws by a seed of its own have one of the run's seed and the epoch, as after a resume."""
        super().on_train_epoch_start()  # type: ignore[misc]  # LightningModule's
        seed = torch.initial_seed() * EPOCHS_APART + self.current_epoch  # type: ignore[attr-defined]
        for part in self.model.modules():
            if hasattr(part, "reseed"):
                part.reseed(seed)

    def validation_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        """Score a batch.

        Args:
            batch: Images of shape ``(B, 3, H, W)``, normalised.
            batch_idx: Index of the batch.

        Returns:
            The batch with anomaly maps and scores.
        """
        del batch_idx
        return batch.update(**self.model(batch.image)._asdict())

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path, **kwargs: Any) -> AnomalibModule:
        """Load a model; the teacher's weights come from the checkpoint, so that nothing is fetched.

        Args:
            checkpoint_path: A checkpoint that Lightning wrote.
            kwargs: Constructor arguments to override, and those of anomalib's ``load_from_checkpoint``.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is no checkpoint of this model, or holds anything but plain data.
        """
        options = {"pre_trained": False, "weights": None, **kwargs}
        with readable_checkpoint(checkpoint_path, cls.__name__):
            return super().load_from_checkpoint(checkpoint_path, **options)  # type: ignore[misc]  # AnomalibModule's

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Arguments that the trainer must have."""
        return {"num_sanity_val_steps": 0}

    @property
    def learning_type(self) -> LearningType:
        """One-class: there are no labels in training."""
        return LearningType.ONE_CLASS


class TakesSteps(StopsWhenNotFinite, TrainsByEpochs):
    """A model that takes several optimiser steps a batch, each of a part with an optimiser of its own.

    Attributes:
        parts: Names of the parts, in the order of their optimisers.
    """

    several_rates = True
    parts: tuple[str, ...] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.automatic_optimization = False

    def setup(self, stage: str) -> None:
        """Refuse several devices: Lightning averages the gradients of one step a batch.

        Raises:
            ValueError: Naming their number.
        """
        trainer = self.trainer  # type: ignore[attr-defined]  # AnomalibModule's
        if stage == "fit" and trainer.world_size > 1:
            msg = (
                f"There are {trainer.world_size} devices: {type(self).__name__} takes several steps a batch and trains "
                "on one. Set devices: 1."
            )
            raise ValueError(msg)
        super().setup(stage)

    def take_step(self, part: str, loss: Tensor) -> None:
        """Take an optimiser step of a part and log the loss as ``train_loss_<part>``; the bar shows the first part's.

        Raises:
            NotFiniteError: If the loss is not finite.
        """
        module: Any = self
        with self.finite(f"the {part}'s step"):
            check_finite(loss=loss.detach())
        optimizers = module.optimizers()  # Lightning's union; one is no list
        optimizer = optimizers[self.parts.index(part)] if isinstance(optimizers, list) else optimizers
        optimizer.zero_grad()
        module.manual_backward(loss)
        optimizer.step()
        module.log(f"train_loss_{part}", loss.detach(), on_epoch=True, prog_bar=part == self.parts[0], batch_size=1)
