# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""What every model of this package has unless told otherwise: post-processor, audit, visualiser, pre-processor, reader.

The rooms above this one say what these are (:func:`provide`, called when the package is imported), so that a model
knows neither of them and can move into anomalib as it stands.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torchvision.transforms.v2 import CenterCrop, Compose, Normalize, Resize

from .checkpoints import guard_checkpoints
from .compat import saves_at_an_error
from .exports import FaithfulExports
from .read_alike import ReadAlike, Reader
from .reading import WHITE
from .results import keep_latest, link_latest, use_one_results_folder
from .visualization import UncroppedVisualizer

_PROVIDED: dict[str, Callable[..., Any]] = {}


def provide(
    *,
    post_processor: Callable[[], PostProcessor],
    audit: Callable[[], Callback],
    normalisation: Callable[[str | None], tuple[Sequence[float], Sequence[float]]],
) -> None:
    """Say what a default post-processor is, the audit of a training set, and how a teacher's images are normalised."""
    _PROVIDED.update(post_processor=post_processor, audit=audit, normalisation=normalisation)


class GivesBack(Callback):
    """Tears a model down when its fit ends by an error, where Lightning does not: a retry needs the memory."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let the model give back what it holds for its training."""
        del exception
        # a checkpoint that is written of the error comes after this, and needs all that there is
        saves = any(saves_at_an_error(callback) for callback in trainer.checkpoint_callbacks)
        if trainer.state.fn == TrainerFn.FITTING and not saves:
            pl_module.teardown("fit")


class LabelFreeDefaults(FaithfulExports):
    """Mixin before ``AnomalibModule``: thresholds without labels, the audit when a fit ends, maps in their place.

    Exports give the same scores, see :class:`~anomalib_cdd.training.exports.FaithfulExports`.

    Attributes:
        default_epochs: The method's own number of epochs, where the user gives none; ``None`` leaves it to Lightning.
    """

    default_epochs: int | None = None

    # `trainer_arguments` overrides the user, and once `fit` has begun an absent `max_epochs` cannot be told from 1000
    @LightningModule.trainer.setter  # type: ignore[attr-defined]
    def trainer(self, trainer: Trainer | None) -> None:
        """Attach the trainer; where it was given no number of epochs it takes the method's own."""
        unset = trainer is not None and getattr(trainer, "max_epochs", 0) is None and trainer.max_steps == -1
        if unset and self.default_epochs is not None:
            trainer.fit_loop.max_epochs = self.default_epochs  # type: ignore[union-attr]
        is_fit = getattr(getattr(trainer, "state", None), "fn", None) == TrainerFn.FITTING
        if trainer is not None and is_fit and trainer.is_global_zero:
            # now: if the data cannot be had the fit ends before a model is set up
            keep_latest(Path(trainer.default_root_dir))
        LightningModule.trainer.fset(self, trainer)  # type: ignore[attr-defined]

    def setup(self, stage: str) -> None:
        """Write whole checkpoints, into one folder, and leave ``latest`` at a run that has one."""
        super().setup(stage)  # type: ignore[misc]
        if stage == "fit":
            use_one_results_folder(self.trainer)
        guard_checkpoints(self.trainer)

    def on_train_end(self) -> None:
        """Let ``latest`` lead to this run, saved or not."""
        super().on_train_end()  # type: ignore[misc]
        if self.trainer.is_global_zero:
            link_latest(Path(self.trainer.default_root_dir))

    @property
    def reader(self) -> Reader:
        """Reads images as the model's training set was read; every data set that the model is given reads by it."""
        return self.__dict__.setdefault("_reader", Reader())

    @property
    def white_level(self) -> int:
        """What became 1 in training images of more than eight bits; 65535 if there were none. For ``read_image``."""
        return self.reader.white or WHITE

    def configure_callbacks(self) -> Sequence[Callback]:
        """Return the model's components that are callbacks, its reading and, unless ``audit`` is off, the audit."""
        callbacks: Any = super().configure_callbacks()  # type: ignore[misc]  # AnomalibModule's
        callbacks = [callbacks] if isinstance(callbacks, Callback) else list(callbacks)
        callbacks += [ReadAlike(), GivesBack()]
        return [*callbacks, _PROVIDED["audit"]()] if self.hparams.get("audit", True) else callbacks  # type: ignore[attr-defined]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is white to the model."""
        super().on_save_checkpoint(checkpoint)  # type: ignore[misc]
        checkpoint["white_level"] = self.reader.white

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Read from now on as the checkpoint's training did."""
        super().on_load_checkpoint(checkpoint)  # type: ignore[misc]
        self.reader.white = checkpoint.get("white_level")

    def configure_post_processor(self) -> PostProcessor:
        """Return the default post-processor: thresholds and normalisation from the training images alone."""
        return _PROVIDED["post_processor"]()

    @classmethod
    def configure_visualizer(cls) -> UncroppedVisualizer:
        """Return anomalib's visualiser, with the map in its place on images that are cropped."""
        return UncroppedVisualizer()

    @staticmethod
    def configure_pre_processor(
        image_size: tuple[int, int] | None = None,
        center_crop_size: tuple[int, int] | None = None,
        backbone: str | None = None,
    ) -> PreProcessor:
        """Return the default pre-processor: resize, centre crop, normalisation of the teacher.

        Args:
            image_size: Height and width to resize to; 256 x 256 by default.
            center_crop_size: Height and width of the crop; 7/8 of the image size by default (224 x 224).
            backbone: The teacher, whose mean and standard deviation are used. ImageNet's by default.
        """
        image_size = image_size or (256, 256)
        crop = center_crop_size or (image_size[0] * 7 // 8, image_size[1] * 7 // 8)
        mean, std = _PROVIDED["normalisation"](backbone)
        steps = [Resize(image_size, antialias=True), CenterCrop(crop), Normalize(mean=list(mean), std=list(std))]
        return PreProcessor(transform=Compose(steps))
