# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Data sets and models as entries of a YAML file: ``class_path``, ``init_args`` and, for a model, its ``trainer``.

jsonargparse checks and instantiates them with the arguments that anomalib's CLI gives it, so what is written here
can be written there, nested classes and short names included.
"""

import json
from collections.abc import Collection
from typing import Any, NamedTuple

from anomalib.data import AnomalibDataModule
from anomalib.models import AnomalibModule
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch import Trainer

from .parsers import kept_parsers

Entry = dict[str, Any]
OF_A_MODEL = ("class_path", "init_args", "trainer")

# No label takes part in a training: there is no validation. One device: for more, Lightning starts the command again.
TRAINER_DEFAULTS: Entry = {"logger": False, "devices": 1, "limit_val_batches": 0, "num_sanity_val_steps": 0}


class ConfigError(ValueError):
    """The configuration is wrong; the message names the key."""


class Components(NamedTuple):
    """What a run is made of, instantiated."""

    datamodule: AnomalibDataModule
    model: AnomalibModule
    trainer: Entry
    """Arguments of ``Engine``."""


def resolve_data(name: str, entry: Entry) -> Entry:
    """Check a data set's entry and fill in every default.

    Args:
        name: What error messages call the entry, such as ``data.tiles``.
        entry: ``class_path`` and ``init_args``. Validation is off unless ``val_split_mode`` is given.

    Returns:
        The entry in plain data that JSON can hold.

    Raises:
        ConfigError: If the class does not exist, takes no such argument, or takes no noise.
    """
    _check_keys(name, entry, {"class_path", "init_args"})
    resolved = _resolve(name, {"data": entry})["data"]
    init_args = resolved.setdefault("init_args", {})
    if "noise_ratio" not in init_args:
        msg = f"{name}: {entry['class_path']} takes no noise_ratio. Use a Noisy class of anomalib_cdd.data."
        raise ConfigError(msg)
    if "val_split_mode" in init_args and "val_split_mode" not in entry.get("init_args", {}):
        init_args["val_split_mode"] = "none"
    return resolved


def resolve_model(name: str, entry: Entry, known: Collection[str] = OF_A_MODEL) -> tuple[Entry, Entry]:
    """Check a model's entry and fill in every default of the model.

    Args:
        name: What error messages call the entry, such as ``models.rd``.
        entry: ``class_path``, ``init_args`` and ``trainer``; ``clean``, where it is known.
        known: Keys that the entry may have.

    Returns:
        The model in plain data that JSON can hold, and the trainer's arguments as far as they are written.

    Raises:
        ConfigError: If the class does not exist or takes no such argument, or if it asks for several devices.
    """
    _check_keys(name, entry, known)
    trainer = entry.get("trainer") or {}
    if not isinstance(trainer, dict):
        msg = f"{name}.trainer: {trainer!r} is no mapping. Give arguments of Lightning's Trainer by name, or nothing."
        raise ConfigError(msg)
    if str(trainer.get("devices", 1)) != "1":
        msg = f"{name}.trainer.devices is {trainer['devices']!r}: a model trains on one device here. Leave it out."
        raise ConfigError(msg)
    model = {key: value for key, value in entry.items() if key not in {"trainer", "clean"}}
    resolved = _resolve(name, {"model": model, "trainer": trainer})
    resolved["model"].setdefault("init_args", {})
    return resolved["model"], {key: resolved["trainer"][key] for key in trainer}


def build(data: Entry, model: Entry, trainer: Entry) -> Components:
    """Instantiate a data set, a model and the trainer's arguments; see :func:`resolve_data`, :func:`resolve_model`."""
    parser = _parser("data", "model", "trainer")
    with kept_parsers():
        built = parser.instantiate_classes(parser.parse_object({"data": data, "model": model, "trainer": trainer}))
    return Components(built.data, built.model, TRAINER_DEFAULTS | {key: built.trainer[key] for key in trainer})


def build_data(data: Entry) -> AnomalibDataModule:
    """Instantiate a data set alone; see :func:`resolve_data`."""
    parser = _parser("data")
    with kept_parsers():
        return parser.instantiate_classes(parser.parse_object({"data": data})).data


def _resolve(name: str, entries: Entry) -> Entry:
    parser = _parser(*entries)
    with kept_parsers():
        try:
            parsed = parser.parse_object(entries)
        except ArgumentError as error:
            msg = f"{name}: {_reason(error)}"
            raise ConfigError(msg) from error
        return json.loads(parser.dump(parsed, format="json", skip_none=False, skip_validation=True))


def _reason(error: ArgumentError) -> str:
    """Return jsonargparse's message without the values that it repeats."""
    repeated = ("Given value", "- Expected a <class 'NoneType'>", "Subtypes:", "Errors:", "Does not validate")
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if not line.startswith(repeated))


def _check_keys(name: str, entry: Entry, known: Collection[str]) -> None:
    unknown = sorted(set(entry) - set(known))
    if unknown or "class_path" not in entry:
        fault = f"unknown key {unknown[0]!r}" if unknown else "no class_path"
        msg = f"{name}: {fault}. Known: {sorted(known)}; on the command line an entry is given whole, as JSON."
        raise ConfigError(msg)


def _parser(*keys: str) -> ArgumentParser:
    """Return a parser of the keys, set up as in anomalib's CLI."""
    parser = ArgumentParser(exit_on_error=False)
    if "data" in keys:
        parser.add_subclass_arguments(AnomalibDataModule, "data", fail_untyped=False, required=True)
    if "model" in keys:
        parser.add_subclass_arguments(AnomalibModule, "model", fail_untyped=False, required=True)
    if "trainer" in keys:
        parser.add_class_arguments(Trainer, "trainer", fail_untyped=False, instantiate=False, sub_configs=True)
    return parser
