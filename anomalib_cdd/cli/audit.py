# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""``anomalib-cdd audit``: any folder of images, ranked without a model, by a checkpoint or by cross-domain training."""

import inspect
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from anomalib.data import AnomalibDataModule
from anomalib.models import AnomalibModule, list_models
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from anomalib_cdd.audit.callback import FOLDER
from anomalib_cdd.audit.duplicates import find_duplicates
from anomalib_cdd.audit.page import audited_root
from anomalib_cdd.audit.results import PAGE, REVIEW, Shown, check_folder, open_images, write_results
from anomalib_cdd.audit.scores import (
    ScoredImages,
    score_by_cross_domain_training,
    score_by_model,
    score_by_recurrence,
)
from anomalib_cdd.cli.entries import OF_A_MODEL, ConfigError
from anomalib_cdd.data import FolderNoisy
from anomalib_cdd.data.manifest import read_review
from anomalib_cdd.teachers.backbones import PYPI_TEACHER, check_backbone
from anomalib_cdd.training.images import TrainingImages

DOMAINS = 3
logger = logging.getLogger(__name__)

PARTS = "cross_domain"
RESULTS = Path("results") / FOLDER
DESCRIPTION = f"""
Rank the images of a folder from most to least suspicious, on a page to look through and to mark. Without a model
nothing is trained: an image is suspicious where it shows what the others do not. With --ckpt_path a trained model
scores the images. With --model alone, {DOMAINS} of it are trained, each on a part of the folder, and each scores what
it has not learned from. The page says which it was, and whether scores are out of sample.
"""


def get_parser() -> ArgumentParser:
    """Return the parser of ``anomalib-cdd audit``."""
    parser = ArgumentParser(description=DESCRIPTION)
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="YAML file with these options.")
    parser.add_argument("--data", type=Path, required=True, help="Folder of images, searched with all its subfolders.")
    parser.add_argument("--ckpt_path", type=Path, help="Checkpoint of a trained model.")
    parser.add_argument(
        "--model",
        type=str | dict[str, Any],
        help="The checkpoint's model (default: Cdd), or the one to train: a name, a class path, or a dictionary with "
        "class_path, init_args and trainer.",
    )
    parser.add_argument(
        "--domains", type=int, help=f"Parts of the folder when --model is trained (default: {DOMAINS})."
    )
    parser.add_argument(
        "--backbone", type=str, default=PYPI_TEACHER, help="timm name of the network that sees without a model."
    )
    parser.add_argument(
        "--output",
        type=Path,
        help=f"Folder of the results (default: {RESULTS} and the name of the folder); its review.json is kept.",
    )
    parser.add_argument("--batch_size", type=int, default=16, help="Images a batch.")
    return parser


def run(config: Namespace) -> Path:
    """Write the list, the page and the annotation files.

    Args:
        config: What :func:`get_parser` parses.

    Returns:
        Path of the page.

    Raises:
        ConfigError: If the checkpoint, the model, the folder or an image cannot be used.
    """
    is_named = config.output is not None
    if not is_named:
        config.output = RESULTS / config.data.resolve().name
    with _blaming("", OSError):  # a path that is too long, or not to be looked at, says so itself
        _check(config)
        _check_other(config, is_named)
    of_data = f"--data {config.data}: "
    # torch's own, and a teacher without weights; what a model says that is trained here keeps its name and traceback
    own = () if config.model is not None and config.ckpt_path is None else (RuntimeError,)
    try:
        with _blaming(of_data, ValueError, OSError, *own):
            datamodule = _folder(config.data, config.batch_size)
            _check_output(config.output, len(datamodule.train_data))
            shown = open_images(TrainingImages(datamodule.train_data, None, config.batch_size))
            datamodule.train_data = shown.images.dataset
            scored = _score(config, shown, datamodule)
        title = f"Images of {config.data.resolve().name}, the most suspicious first"
        with _blaming(of_data, ValueError), _blaming(f"--output {config.output}: ", OSError):
            page, reviewed = write_results(shown, scored, config.output, root=config.data, title=title)
    except KeyboardInterrupt:
        print("\ninterrupted: the audit is not whole; start it again", file=sys.stderr)
        sys.exit(130)
    left_out = f" ({len(shown.unreadable)} more cannot be read)" if shown.unreadable else ""
    print(f"{len(scored.scores)} images{left_out}, the most suspicious first: {page.resolve()}")
    if (config.output / REVIEW).exists():
        print(f"{reviewed} verdicts were taken over from {config.output / REVIEW}")
    return page


@contextmanager
def _blaming(prefix: str, *kinds: type[Exception]) -> Iterator[None]:
    """Let errors of some kinds be one line that begins with what is to blame."""
    try:
        yield
    except ConfigError:
        raise
    except kinds as error:
        msg = f"{prefix}{_one_line(error)}"
        raise ConfigError(msg) from error


def _check(config: Namespace) -> None:
    """Refuse at once what would fail after minutes."""
    if not config.data.is_dir():
        what = "this is a file: name its folder" if config.data.is_file() else "there is no such folder"
        msg = f"--data {config.data}: {what}."
        raise ConfigError(msg)
    if config.ckpt_path is not None and not config.ckpt_path.is_file():
        msg = f"--ckpt_path {config.ckpt_path}: there is no such file."
        raise ConfigError(msg)
    if config.batch_size < 1:
        msg = f"--batch_size {config.batch_size}: give a number of images, at least 1."
        raise ConfigError(msg)
    if config.model is None and config.ckpt_path is None:
        try:
            check_backbone(config.backbone)
        except ValueError as error:
            msg = f"--backbone {config.backbone}: {error}"
            raise ConfigError(msg) from error
    elif config.backbone != PYPI_TEACHER:
        msg = f"--backbone {config.backbone} is for an audit without --model and --ckpt_path: a model has its own."
        raise ConfigError(msg)
    if config.model is not None:
        _check_model(config.model)
    if config.domains is not None and (config.ckpt_path is not None or config.model is None):
        msg = f"--domains {config.domains} is for a --model that is trained here, without --ckpt_path."
        raise ConfigError(msg)
    if config.domains is not None and config.domains < 2:
        msg = f"--domains {config.domains}: at least 2, as each part is scored by a model of the others."
        raise ConfigError(msg)
    if (config.output / REVIEW).exists():
        try:
            read_review(config.output / REVIEW)
        except ValueError as error:
            raise ConfigError(_one_line(error)) from error


def _check_model(model: str | dict[str, Any]) -> None:
    if isinstance(model, str):
        model_class(model)
        return
    if "class_path" not in model or set(model) - set(OF_A_MODEL):
        msg = f"--model {model}: it takes class_path, init_args and trainer."
        raise ConfigError(msg)
    for key, value in model.items():
        kind, what = (str, "the name of a class") if key == "class_path" else (dict | None, "names and values")
        if not isinstance(value, kind):
            msg = f"--model: {key} has to be {what}, found {value!r}."
            raise ConfigError(msg)
    model_class(model["class_path"])


def _check_other(config: Namespace, is_named: bool) -> None:
    """Let the audit of another folder of the same name be replaced only where the person has named its place."""
    other = audited_root(config.output / PAGE)
    if other is None or other == config.data.resolve():
        return
    if not is_named:
        msg = f"{config.output} has the audit of {other}: name another folder by --output, or this one to replace it."
        raise ConfigError(msg)
    logger.warning("The audit of %s in %s will be replaced", other, config.output)


def _check_output(folder: Path, count: int) -> None:
    """Refuse a folder before minutes have been spent on what it cannot take."""
    try:
        check_folder(folder, count)
    except OSError as error:
        msg = f"--output {folder}: {_one_line(error)}"
        raise ConfigError(msg) from error


def _score(config: Namespace, shown: Shown, datamodule: AnomalibDataModule) -> ScoredImages:
    if config.ckpt_path is None and config.model is None:
        return score_by_recurrence(shown.images, backbone=config.backbone)
    entry: dict[str, Any] = config.model if isinstance(config.model, dict) else {"class_path": config.model or "Cdd"}
    if config.ckpt_path is not None:
        scored = score_by_model(load_model(entry["class_path"], config.ckpt_path), shown.images)
    else:
        make_model = _factory(entry)
        folder, trainer = config.output / PARTS, entry.get("trainer") or {}
        try:
            scored = score_by_cross_domain_training(make_model, datamodule, config.domains or DOMAINS, folder, trainer)
        except (TypeError, MisconfigurationException) as error:  # an argument that the trainer does not have or take
            msg = f"--model {entry['class_path']}: {_one_line(error)}"
            raise ConfigError(msg) from error
    return replace(scored, duplicates=find_duplicates(shown.images.dataset, config.batch_size))


def _factory(entry: dict[str, Any]) -> Callable[[], AnomalibModule]:
    """Return what makes an untrained model of an entry, tried once."""
    kind, init_args = model_class(entry["class_path"]), dict(entry.get("init_args") or {})
    if "audit" in inspect.signature(kind).parameters:
        init_args.setdefault("audit", False)  # the page is of all parts
    make_model = partial(kind, **init_args)
    try:
        make_model()
    except (TypeError, ValueError, RuntimeError, OSError) as error:  # OSError: weights that cannot be fetched
        msg = f"--model {kind.__name__}: {_one_line(error)}"
        raise ConfigError(msg) from error
    return make_model


def model_class(name: str) -> type[AnomalibModule]:
    """Find a model's class by its name, as anomalib does but without building the model.

    Args:
        name: In snake or Pascal case, or a dotted class path.

    Raises:
        ConfigError: If there is no such model.
    """
    if name.endswith(".ckpt"):
        msg = f"--model {name}: this is a checkpoint: give it as --ckpt_path, and --model names its class."
        raise ConfigError(msg)
    if "." in name:
        module, _, wanted = name.rpartition(".")
        try:
            found = getattr(import_module(module), wanted)
        except (ImportError, AttributeError, TypeError, ValueError) as error:  # the latter two of dots alone
            msg = f"--model {name}: {_one_line(error)}"
            raise ConfigError(msg) from error
        if isinstance(found, type) and issubclass(found, AnomalibModule):
            return found
    wanted = name.replace("_", "").lower()
    for kind in AnomalibModule.__subclasses__():
        if kind.__name__.lower() == wanted:
            return kind
    names = sorted(list_models("pascal"))
    near = get_close_matches(name, names, 1)
    msg = (
        f"--model {name}: there is no such model{f', is it {near[0]}?' if near else '.'} There are {', '.join(names)}."
    )
    raise ConfigError(msg)


def load_model(name: str, path: Path) -> AnomalibModule:
    """Load a checkpoint.

    Args:
        name: The model's name or class path.
        path: The checkpoint.

    Raises:
        ConfigError: If there is no such model, or no such checkpoint of it.
    """
    kind = model_class(name)
    # its weights are the checkpoint's: ImageNet's need not be fetched first
    known: dict[str, Any] = {"pre_trained": False} if "pre_trained" in inspect.signature(kind).parameters else {}
    try:
        return kind.load_from_checkpoint(path, map_location="cpu", **known)
    except Exception as error:  # a damaged file raises whatever its bytes lead to
        msg = f"--ckpt_path {path} is no checkpoint of {kind.__name__}: {_one_line(error)}"
        raise ConfigError(msg) from error


def _folder(path: Path, batch_size: int) -> FolderNoisy:
    """Return every image of a folder as a training set."""
    datamodule = FolderNoisy(
        name=path.resolve().name,
        root=path,
        normal_dir=".",
        noise_ratio=0,
        test_split_mode="none",
        val_split_mode="none",
        train_batch_size=batch_size,
        eval_batch_size=batch_size,
        num_workers=0,
    )
    datamodule.setup()
    return datamodule


def _one_line(error: BaseException) -> str:
    return next((line for line in map(str.strip, str(error).splitlines()) if line), type(error).__name__)
