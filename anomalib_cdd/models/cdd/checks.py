# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""What CDD refuses, each with the value and the way out: options, training sets, checkpoints."""

import logging
import math
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor

from anomalib_cdd.training.ranks import SMALLEST_SHARE

from .domains import domain_count, global_steps, persistent_epochs

logger = logging.getLogger(__name__)

CHOICES = {"selection": ("consensual", "next", "all")}
# what the domain students and their targets alone read
OF_DOMAIN_STUDENTS = (
    "domains",
    "domain_students",
    "domain_interval",
    "regularization",
    "selection",
    "confident_once",
    "confident_patches",
)
# what is about confident images alone
OF_CONFIDENT_IMAGES = ("confidence_guidance", "confident_distillation", "confident_once")
# in which a training does not change when it goes on from a checkpoint; what it was where a checkpoint does not say
WHO_TEACHES_WHAT = {
    "seed": 0,
    "domains": (2, 3, 3, 2),
    "domain_students": "forked",
    "domain_interval": 1,
    "max_confident": 0.5,
    "confident_patches": 0.0,
}
# 200 epochs of plain Reverse Distillation on the paper's 230 images a category, in batches of 16
PAPER_STEPS = 3000
# rules of thumb, see docs/training.md
FORKED_STEPS = 400
PERSISTENT_STEPS = 48


def schedule_of(domains: Any) -> tuple[int, ...]:
    """Return a schedule of K as plain numbers.

    Raises:
        ValueError: If it is none.
    """
    try:
        return tuple(int(count) for count in domains)
    except (TypeError, ValueError):
        msg = f"domains is {domains!r}; it has to be a schedule of numbers of domains, such as [2]."
        raise ValueError(msg) from None


def check_options(options: Any, defaults: dict[str, Any]) -> None:  # Lightning's hparams
    """Refuse options out of range and contradictions; name those that have no effect.

    Args:
        options: The constructor's arguments.
        defaults: Their defaults.

    Raises:
        ValueError: Naming the option and its value.
    """
    for name, choices in CHOICES.items():
        if options[name] not in choices:
            _refuse(name, options[name], f"one of {', '.join(choices)}")
    if not options.domains or min(options.domains) < 2:
        _refuse("domains", options.domains, "a schedule of numbers of domains, each 2 or more")
    _check_confident(options)
    kind = options.regularization
    if isinstance(kind, str) and kind not in {"s-curve", "linear"}:
        _refuse("regularization", kind, "s-curve, linear or a number")
    if not isinstance(kind, str) and not (math.isfinite(kind) and kind >= 0):
        _refuse("regularization", kind, "a number of 0 or more")
    for name in ("feature_noise", "warmup_epochs"):
        if not (math.isfinite(options[name]) and options[name] >= 0):
            _refuse(name, options[name], "0 or more")
    for name in ("learning_rate", "student_width"):
        if not (math.isfinite(options[name]) and options[name] > 0):
            _refuse(name, options[name], "more than 0")
    _check_cache(options)
    _check_domain_students(options)
    if options.pseudo_normal and not options.domain_construction:
        msg = (
            "pseudo_normal needs domain_construction: without domains there is no other domain's student to learn "
            "from. Switch pseudo_normal off too."
        )
        raise ValueError(msg)
    if not options.pseudo_normal:
        names = [name for name in OF_DOMAIN_STUDENTS if name not in _of_visits(options)]
        idle = [name for name in names if options[name] and options[name] != defaults[name]]
        _tell_idle("pseudo_normal is off, so that no domain student is trained", idle, options)
    elif not options.max_confident:
        idle = [name for name in OF_CONFIDENT_IMAGES if options[name] != defaults[name]]
        _tell_idle("max_confident is 0, so that there are no confident images", idle, options)


def _of_visits(options: Any) -> tuple[str, ...]:
    """Return what says how often the global student visits a confident image: once, or once for each domain."""
    if not (options.max_confident and options.confidence_guidance and options.domain_construction):
        return ()
    return ("confident_once",) if options.confident_once else ("confident_once", "domains")


def _tell_idle(why: str, idle: list[str], options: Any) -> None:
    if idle:
        logger.warning("%s: %s has no effect.", why, ", ".join(f"{name} ({options[name]!r})" for name in idle))


def _check_cache(options: Any) -> None:
    if options.cache_dir is not None and Path(options.cache_dir).is_file():
        _refuse("cache_dir", options.cache_dir, "a folder")


def _check_confident(options: Any) -> None:
    for name in ("max_confident", "confident_patches"):
        if not 0 <= options[name] <= 1:
            _refuse(name, options[name], "in [0, 1]")
    if options.pseudo_normal and options.confident_patches and options.selection == "all":
        msg = (
            f"confident_patches ({options.confident_patches}) needs one student's word on each patch; selection is "
            "'all'. Set confident_patches to 0, or selection to consensual or next."
        )
        raise ValueError(msg)


def _check_domain_students(options: Any) -> None:
    kind, interval = options.domain_students, options.domain_interval
    if isinstance(interval, bool) or not isinstance(interval, int) or interval < 1:
        _refuse("domain_interval", interval, "a number of epochs, 1 or more")
    if kind not in {"forked", "persistent"} and (isinstance(kind, str) or not 0 < kind < 1):
        _refuse("domain_students", kind, "forked, persistent, or the share of the epochs, in (0, 1), before forks")


def _refuse(name: str, value: object, allowed: str) -> None:
    msg = f"{name} is {value!r}; it has to be {allowed}."
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


def tell_budget(samples: int, batch_size: int, epochs: int, options: Any) -> None:
    """Log how many steps the global student will take; warn where that is too few for it to learn.

    Args:
        samples: Number of training samples N.
        batch_size: Images a batch.
        epochs: Number of epochs E.
        options: The constructor's arguments.
    """
    steps = global_steps(epochs, samples, batch_size, options)
    logger.info(
        "The global student will take %d optimiser steps in %d epochs; Reverse Distillation takes about %d at the "
        "paper's 200 epochs of 230 images.",
        steps,
        epochs,
        PAPER_STEPS,
    )
    needed = FORKED_STEPS if persistent_epochs(epochs, options.domain_students) == 0 else PERSISTENT_STEPS
    if options.pseudo_normal and steps < needed:
        logger.warning(
            "%d steps are few: with domain_students %r the student learns little in fewer than about %d. "
            "Set max_epochs to %d or more.",
            steps,
            options.domain_students,
            needed,
            math.ceil(epochs * needed / steps),
        )


def check_checkpoint(checkpoint: dict[str, Any], state: dict[str, Tensor], options: Any, fitting: bool) -> None:
    """Refuse the checkpoint of another model.

    Args:
        checkpoint: What was read.
        state: The model's own ``state_dict``.
        options: The model's.
        fitting: Whether a training is to go on from it.

    Raises:
        ValueError: Saying in what it differs.
    """
    prefix = "model."
    theirs = checkpoint.get("hyper_parameters", {})
    saved = {name: value for name, value in checkpoint.get("state_dict", {}).items() if name.startswith(prefix)}
    own = {name: value for name, value in state.items() if name.startswith(prefix)}
    differing = sorted(saved.keys() ^ own.keys()) or [
        name for name, value in own.items() if saved[name].shape != value.shape
    ]
    if differing:
        msg = (
            f"The checkpoint is not of this model: {len(differing)} tensors differ, the first is {differing[0]!r}. "
            f"Its backbone is {theirs.get('backbone', 'unknown')!r}, this model's is {options.backbone!r}."
        )
        raise ValueError(msg)
    for name, before in WHO_TEACHES_WHAT.items():
        kind, mine = (
            tuple(each) if isinstance(each, list) else each for each in (theirs.get(name, before), options[name])
        )
        if fitting and kind != mine:
            msg = (
                f"The checkpoint's training has {name} {kind!r}, this model {mine!r}: it cannot go on as another "
                f"method. Set {name} to {kind!r}."
            )
            raise ValueError(msg)
