# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""What models have in common that train students by ordinary Lightning epochs: how many, and how they are loaded.

A model composes its own training step; this is what Lightning and anomalib ask of it beside that.
"""

from pathlib import Path
from typing import Any, ClassVar

from anomalib import LearningType
from anomalib.data import Batch
from anomalib.models.components import AnomalibModule
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT


class TrainsByEpochs:
    """Mixin before ``AnomalibModule``: 200 epochs unless told otherwise, checkpoints that fetch no weights."""

    default_epochs: ClassVar[int] = 200
    model: Any

    # jsonargparse and Lightning give no other place to say the method's own number of epochs: `trainer_arguments`
    # overrides the user, and once `fit` has begun an absent `max_epochs` cannot be told from 1000
    @LightningModule.trainer.setter  # type: ignore[attr-defined]
    def trainer(self, trainer: Trainer | None) -> None:
        """Attach the trainer; where it was given no number of epochs it takes the method's own."""
        if trainer is not None and getattr(trainer, "max_epochs", 0) is None and trainer.max_steps == -1:
            trainer.fit_loop.max_epochs = self.default_epochs
        LightningModule.trainer.fset(self, trainer)  # type: ignore[attr-defined]

    def setup(self, stage: str) -> None:
        """Let checkpoints be written whole or not at all."""
        super().setup(stage)  # type: ignore[misc]  # AnomalibModule's
        # not before: it imports anomalib's engine
        from .checkpoints import guard_checkpoints

        guard_checkpoints(self.trainer)

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
        """
        options = {"pre_trained": False, "weights": None, **kwargs}
        return super().load_from_checkpoint(checkpoint_path, **options)  # type: ignore[misc]  # AnomalibModule's

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Arguments that the trainer must have."""
        return {"num_sanity_val_steps": 0}

    @property
    def learning_type(self) -> LearningType:
        """One-class: there are no labels in training."""
        return LearningType.ONE_CLASS
