# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""``anomalib-cdd audit``: the audit of any folder by any anomalib checkpoint."""

from pathlib import Path

from anomalib.data import Folder
from anomalib.models import AnomalibModule, get_model
from jsonargparse import ArgumentParser, Namespace

from anomalib_cdd.audit.callback import FOLDER, write_audit
from anomalib_cdd.cli.entries import ConfigError
from anomalib_cdd.data import FolderNoisy
from anomalib_cdd.training.images import TrainingImages


def get_parser() -> ArgumentParser:
    """Return the parser of ``anomalib-cdd audit``."""
    parser = ArgumentParser(description="Rank the images of a folder from most to least suspicious, on a page to mail.")
    parser.add_argument("--ckpt_path", type=Path, required=True, help="Checkpoint of a trained model.")
    parser.add_argument("--data", type=Path, required=True, help="Folder of images, searched with all its subfolders.")
    parser.add_argument("--model", type=str, default="Cdd", help="The checkpoint's model: a name or a class path.")
    parser.add_argument("--output", type=Path, default=Path("results") / FOLDER, help="Folder of the results.")
    parser.add_argument("--batch_size", type=int, default=16, help="Images a batch.")
    return parser


def run(config: Namespace) -> Path:
    """Write scores and page.

    Args:
        config: What :func:`get_parser` parses.

    Returns:
        Path of the page.

    Raises:
        ConfigError: If the checkpoint, the model or the folder cannot be used.
    """
    model = _load(config.model, config.ckpt_path)
    datamodule = _folder(config.data)
    images = TrainingImages(datamodule.train_data, None, config.batch_size)
    page = write_audit(model, images, config.output, root=config.data)
    print(f"{len(datamodule.train_data)} images, the most suspicious first: {page.resolve()}")
    return page


def _load(name: str, path: Path) -> AnomalibModule:
    if not path.is_file():
        msg = f"--ckpt_path {path}: there is no such file."
        raise ConfigError(msg)
    try:
        kind = type(get_model(name, pre_trained=False))
    except Exception as error:
        msg = f"--model {name}: {error}"
        raise ConfigError(msg) from error
    try:
        return kind.load_from_checkpoint(path, map_location="cpu")
    except Exception as error:  # a damaged file raises whatever its bytes lead to
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        msg = f"--ckpt_path {path} is no checkpoint of {kind.__name__}: {reason}"
        raise ConfigError(msg) from error


def _folder(path: Path) -> Folder:
    if not path.is_dir():
        msg = f"--data {path}: there is no such folder."
        raise ConfigError(msg)
    datamodule = FolderNoisy(
        name=path.resolve().name,
        root=path,
        normal_dir=".",
        noise_ratio=0,
        test_split_mode="none",
        val_split_mode="none",
        num_workers=0,
    )
    try:
        datamodule.setup()
    except (ValueError, RuntimeError, OSError) as error:
        msg = f"--data {path}: {error}"
        raise ConfigError(msg) from error
    return datamodule
