# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""What bf16 and exports cost in image AUROC: trained models, test images without overlap.

``python -m benchmarks.exports FOLDER [--data_root DIR]`` takes the checkpoints that ``anomalib-cdd fuad
--checkpoints true --output FOLDER`` has kept, exports each and prints a table.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anomalib.deploy import CompressionType
from anomalib_cdd.benchmark.grid import _fill_data_root
from tqdm.auto import tqdm

from anomalib_cdd import Cdd
from anomalib_cdd.cli.entries import build
from anomalib_cdd.evaluation.measures import auroc
from anomalib_cdd.evaluation.predictions import score_dataset

FORMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "OpenVINO, fp32": ({}, {"INFERENCE_PRECISION_HINT": "f32"}),
    "OpenVINO": ({}, {}),
    "OpenVINO, 8 bits": ({"compression_type": CompressionType.INT8_PTQ}, {}),
}


def measure(model: Cdd, datamodule: Any, folder: Path) -> dict[str, float]:
    """Return the image AUROC of a model in Lightning and in each form of export."""
    import openvino

    plain = score_dataset(model, datamodule.test_data, progress=False)
    images = [datamodule.test_data[index].image[None] for index in range(len(datamodule.test_data))]

    def measured_by(scores: list[float]) -> float:
        of_each = np.array(scores)
        return auroc(of_each[plain.labels == 1], of_each[plain.labels == 0])

    measured = {"Lightning, fp32": measured_by(plain.scores.tolist())}
    of_student, of_both = [], []
    model.eval()
    with torch.inference_mode():
        for image in tqdm(images, desc="bf16", leave=False):
            transformed = model.pre_processor.transform(image)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                of_student.append(model.model(transformed).pred_score.item())
                levels = model.model.teacher(transformed)
                output = model.model.student(levels)
            single = [[level.float() for level in each] for each in (levels, output)]
            of_both.append(model.model.anomaly_map(*single, transformed.shape[-2:]).amax().item())
    measured["Lightning, bf16"] = measured_by(of_student)
    measured["and the teacher in bf16"] = measured_by(of_both)
    for name, (compression, config) in FORMS.items():
        options = compression | ({"datamodule": datamodule} if compression else {})
        network = openvino.compile_model(model.to_openvino(folder / name, **options), "CPU", config)
        scores = [network(image.numpy())["pred_score"].item() for image in tqdm(images, desc=name, leave=False)]
        measured[name] = measured_by(scores)
    return measured


def main(arguments: list[str] | None = None) -> int:
    """Measure every checkpoint of a folder."""
    parser = argparse.ArgumentParser("python -m benchmarks.exports", description=__doc__)
    parser.add_argument("folder", type=Path, help="what `fuad --checkpoints true` wrote")
    parser.add_argument("--data_root", help="as for `fuad`")
    options = parser.parse_args(arguments)
    checkpoints = sorted(options.folder.glob("runs/**/*.ckpt"))
    if not checkpoints:
        parser.error(f"{options.folder} has no checkpoints; run `fuad --checkpoints true`")
    names = ["Lightning, fp32", "Lightning, bf16", "and the teacher in bf16", *FORMS]
    print(f"| cell | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for checkpoint in checkpoints:
        key = checkpoint.relative_to(options.folder / "runs").parts[0]
        record = json.loads((options.folder / "cells" / f"{key}.json").read_text(encoding="utf-8"))
        filled = _fill_data_root(record["config"], options.data_root, record["data"])
        datamodule = build(**filled).datamodule
        datamodule.setup()
        with tempfile.TemporaryDirectory() as folder:
            measured = measure(Cdd.load_from_checkpoint(checkpoint), datamodule, Path(folder))
        cell = f"{record['data']} {record['noise_ratio']} {record['model']} seed {record['seed']}"
        print(f"| {cell} | {' | '.join(f'{measured[name]:.4f}' for name in names)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
