# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""What CDD refuses, each with the value and the way out: options, trainers, training sets, checkpoints."""

import logging
import math
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from anomalib_cdd.training.precision import computes_in_bf16
from anomalib_cdd.training.ranks import SMALLEST_SHARE

from .domains import domain_count
from .features import NotFiniteError

if TYPE_CHECKING:
    from .lightning_model import Cdd

logger = logging.getLogger(__name__)

CHOICES = {
    "selection": ("consensual", "next", "all"),
    "feature_noise_scale": ("absolute", "relative"),
    "confident_visits": ("each", "once"),
    "domain_optimizer": ("reset", "keep", "fork"),
    "domain_statistics": ("running", "refreshed"),
    "autocast": ("auto", "off"),
    "cache": ("auto", "off"),
}


def check_options(options: Any) -> None:  # Lightning's hparams
    """Refuse options out of range and contradictions.

    Raises:
        ValueError: Naming the option and its value.
    """
    for name, choices in CHOICES.items():
        if options[name] not in choices:
            _refuse(name, options[name], f"one of {', '.join(choices)}")
    if not options.domains or min(options.domains) < 2:
        _refuse("domains", options.domains, "a schedule of numbers of domains, each 2 or more")
    if not 0 <= options.max_confident <= 1:
        _refuse("max_confident", options.max_confident, "in [0, 1]")
    kind = options.regularization
    if isinstance(kind, str) and kind not in {"s-curve", "linear"}:
        _refuse("regularization", kind, "s-curve, linear or a number")
    if not isinstance(kind, str) and not (math.isfinite(kind) and kind >= 0):
        _refuse("regularization", kind, "a number of 0 or more")
    for name in ("feature_noise", "warmup_epochs"):
        if not (math.isfinite(options[name]) and options[name] >= 0):
            _refuse(name, options[name], "0 or more")
    for name in ("learning_rate", "student_width", "domain_passes"):
        if not (math.isfinite(options[name]) and options[name] > 0):
            _refuse(name, options[name], "more than 0")
    if options.gradient_clip_val is not None and not options.gradient_clip_val > 0:
        _refuse("gradient_clip_val", options.gradient_clip_val, "more than 0, or null for no clipping")
    if options.pseudo_normal and not options.domain_construction:
        msg = (
            "pseudo_normal needs domain_construction: without domains there is no other domain's student to learn "
            "from. Switch pseudo_normal off too."
        )
        raise ValueError(msg)


def _refuse(name: str, value: object, allowed: str) -> None:
    msg = f"{name} is {value!r}; it has to be {allowed}."
    raise ValueError(msg)


def check_trainer(trainer: Trainer, options: Any, overridden: bool) -> None:
    """Refuse a trainer under which CDD would train something else.

    Args:
        trainer: The trainer that is about to fit.
        options: The model's.
        overridden: Whether the model's ``configure_optimizers`` was replaced, as the CLI's ``--optimizer`` does.

    Raises:
        ValueError: Naming the argument and its value.
    """
    if overridden:
        msg = (
            "Cdd has an Adam for the global student and one for each domain student; --optimizer would replace them "
            "by one. Leave it out and set --model.learning_rate."
        )
        raise ValueError(msg)
    if trainer.max_steps != -1:
        msg = (
            f"max_steps is {trainer.max_steps}: CDD's schedules are in epochs, and an epoch's number of steps varies. "
            "Set max_epochs instead."
        )
        raise ValueError(msg)
    if trainer.max_epochs is None or trainer.max_epochs <= 0:
        msg = f"max_epochs is {trainer.max_epochs}: CDD's schedules need to know the end. Set it to 1 or more."
        raise ValueError(msg)
    if "bf16" in str(trainer.precision) and not computes_in_bf16(trainer.strategy.root_device):
        logger.warning(
            "precision is %s and this %s has no bf16 arithmetic: it may take tens of times as long as in 32. "
            "Cdd(autocast='auto') takes bf16 where it is fast.",
            trainer.precision,
            trainer.strategy.root_device.type,
        )
    if trainer.world_size > 1:
        _check_ranks(trainer, options)
    if trainer.accumulate_grad_batches != 1:
        msg = f"accumulate_grad_batches is {trainer.accumulate_grad_batches}; Cdd steps by itself. Set it to 1."
        raise ValueError(msg)


def _check_ranks(trainer: Trainer, options: Any) -> None:
    if not isinstance(trainer.strategy, DDPStrategy):  # a value: the user chose it by name
        msg = f"strategy is {type(trainer.strategy).__name__}: on several devices Cdd trains with strategy: ddp."
        raise ValueError(msg)  # noqa: TRY004
    if trainer.num_nodes > 1:
        msg = (
            f"num_nodes is {trainer.num_nodes}: the devices share a feature cache, so that they have to be of one node."
        )
        raise ValueError(msg)
    if options.domain_optimizer == "keep" and options.domain_parallel:
        msg = (
            "domain_optimizer is 'keep' and domain_parallel is on: each device would keep the moments of its own "
            "domains alone, and a checkpoint those of one. Set domain_parallel: false."
        )
        raise ValueError(msg)


def check_statistics(student: nn.Module, options: Any) -> None:
    """Refuse batch statistics of all devices where a device trains by itself: it would wait for the others for ever.

    Raises:
        ValueError: Naming both options.
    """
    if options.domain_parallel and any(isinstance(module, nn.SyncBatchNorm) for module in student.modules()):
        msg = (
            "sync_batchnorm is on and so is domain_parallel: a domain student's batches are on one device. Set "
            "domain_parallel: false, or sync_batchnorm: false."
        )
        raise ValueError(msg)


def check_size(samples: int, batch_size: int, trainer: Trainer, options: Any) -> None:
    """Refuse a training set that is too small for the domains or for batch statistics.

    Raises:
        ValueError: Saying how many images there are and how many it takes.
    """
    if batch_size < 2:
        msg = f"train_batch_size is {batch_size}: a batch of one image has no batch statistics. Set it to 2 or more."
        raise ValueError(msg)
    if batch_size % trainer.world_size or batch_size < SMALLEST_SHARE * trainer.world_size:
        msg = (
            f"train_batch_size is {batch_size}: {trainer.world_size} devices share each batch, so that it has to be a "
            f"multiple of {trainer.world_size} and {SMALLEST_SHARE * trainer.world_size} or more."
        )
        raise ValueError(msg)
    epochs = trainer.max_epochs or 1
    most = max(domain_count(e, epochs, options.domains) for e in range(epochs)) if options.domain_construction else 1
    if samples < 2 * most:
        msg = (
            f"{samples} training images are too few for {most} domains, which take {2 * most} or more. Add images, or "
            "set a schedule with fewer domains, such as domains: [2]."
        )
        raise ValueError(msg)


@contextmanager
def finite(stage: str, epoch: int, options: Any) -> Iterator[None]:
    """Say in which stage of which epoch numbers stopped being finite, and what to do.

    Raises:
        NotFiniteError: In place of another one.
    """
    try:
        yield
    except NotFiniteError as error:
        msg = (
            f"Training diverged in epoch {epoch} (the first is 0), {stage}: {error}. The last checkpoint is of an "
            f"epoch before. Try a lower learning_rate (it is {options.learning_rate}), a gradient_clip_val (it is "
            f"{options.gradient_clip_val}), feature_noise_scale: relative (it is {options.feature_noise_scale}), or "
            "precision bf16-mixed or 32 where it is 16."
        )
        raise NotFiniteError(msg) from error


def check_finite(**values: Tensor) -> None:
    """Refuse what is not finite.

    Raises:
        NotFiniteError: Naming the first such value.
    """
    for name, value in values.items():
        if not value.isfinite().all():
            msg = f"{name} is {value.item()}" if value.numel() == 1 else f"{name} is not finite"
            raise NotFiniteError(msg)


def check_checkpoint(checkpoint: dict[str, Any], model: "Cdd") -> None:
    """Refuse the checkpoint of another model.

    Raises:
        ValueError: Saying in what it differs.
    """
    prefix = "model."
    saved = {name: value for name, value in checkpoint.get("state_dict", {}).items() if name.startswith(prefix)}
    own = {name: value for name, value in model.state_dict().items() if name.startswith(prefix)}
    differing = sorted(saved.keys() ^ own.keys()) or [
        name for name, value in own.items() if saved[name].shape != value.shape
    ]
    if differing:
        backbone = checkpoint.get("hyper_parameters", {}).get("backbone", "unknown")
        msg = (
            f"The checkpoint is not of this model: {len(differing)} tensors differ, the first is {differing[0]!r}. "
            f"Its backbone is {backbone!r}, this model's is {model.options.backbone!r}."
        )
        raise ValueError(msg)


@contextmanager
def readable_checkpoint(path: str | Path) -> Iterator[None]:
    """Turn what loading a bad file raises into one line that names the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no checkpoint of a Cdd model, or carries code.
    """
    if not str(path).startswith(("http://", "https://")) and not Path(path).is_file():
        msg = f"Checkpoint {path} does not exist."
        raise FileNotFoundError(msg)
    try:
        yield
    except pickle.UnpicklingError as error:
        msg = f"Checkpoint {path} is damaged, or holds more than plain data and is not loaded: it could run code."
        raise ValueError(msg) from error
    except ValueError as error:
        msg = f"Checkpoint {path}: {_first_line(error)}"
        raise ValueError(msg) from error
    except Exception as error:  # a damaged file raises whatever its bytes lead to
        msg = f"Checkpoint {path} is not of a Cdd model ({type(error).__name__}: {_first_line(error)})."
        raise ValueError(msg) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:400]
