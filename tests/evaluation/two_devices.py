# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""A script of its own, as Lightning starts one process a device by running the script again.

``two_devices.py DEVICES DATA OUTPUT``: tests an untrained model with ``FuadEvaluator`` and writes what it logged.
"""

import json
import sys
from pathlib import Path

import torch
from anomalib.engine import Engine
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import seed_everything
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anomalib_cdd import Cdd, FuadEvaluator, MVTecNoisy


def test(devices: int, root: Path, output: Path) -> None:
    seed_everything(0, verbose=False)
    steps = Compose([Resize((64, 64), antialias=True), Normalize(mean=[0.5] * 3, std=[0.5] * 3)])
    options = {"backbone": "test_resnet", "pre_trained": False, "student_width": 8, "visualizer": False, "audit": False}
    model = Cdd(**options, pre_processor=PreProcessor(steps), post_processor=False, evaluator=FuadEvaluator())
    # 17 test images: one of two devices gets the first one again
    data = MVTecNoisy(root=root, noise_ratio=0.25, val_split_mode="none", eval_batch_size=4, num_workers=0)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    strategy = "ddp" if devices > 1 else "auto"
    engine = Engine(accelerator="cpu", devices=devices, strategy=strategy, default_root_dir=output, **quiet)
    [logged] = engine.test(model, datamodule=data, verbose=False)
    (output / f"{devices}-{engine.trainer.global_rank}.json").write_text(json.dumps(logged))


if __name__ == "__main__":
    torch.set_num_threads(1)
    test(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
